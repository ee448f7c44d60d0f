"""The simplest way to a classifier: logistic regression on the features of the whole EfficientNet-Lite0 at 224x224."""

from typing import Any

import numpy as np

FAMILY, SIDE, CHANNELS = "efficientnet_lite0", 224, 3
BATCH = 32


def fitted(features: np.ndarray, classes: np.ndarray) -> Any:
    """Fit the regression to features (n, length) of classes int64 (n,). Five folds choose its regularization."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    from edgecnn.train.candidates import MOST_ITERATIONS, STRENGTHS

    steps = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS))
    way = GridSearchCV(steps, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=5)
    with threadpool_limits(1):
        return way.fit(features, classes)


def features_of(images: np.ndarray, reading: tuple[float, int]) -> np.ndarray:
    """Return the features, float32 (n, length), of images uint8 (n, SIDE, SIDE, CHANNELS), whose code has this scale and zero point."""
    from edgecnn.networks.efficientnet_lite import all_features, is_whole
    from edgecnn.networks.keras import keras
    from edgecnn.networks.predict import predictor
    from edgecnn.networks.pretrained import load_weights, read_weights, source_of

    rungs, model = all_features(FAMILY, SIDE, SIDE, CHANNELS)
    source = source_of(rungs[0])
    assert source is not None
    load_weights(model, read_weights(source))
    whole = next(output for rung, output in zip(rungs, model.outputs, strict=True) if is_whole(rung))
    return predictor(keras.Model(model.inputs, whole), *reading, BATCH)(images)
