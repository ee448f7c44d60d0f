"""The simplest way to a classifier: logistic regression on the features of the whole EfficientNet-Lite0 at 224x224."""

from typing import Any

import numpy as np

FAMILY, SIDE = "efficientnet_lite0", 224

STRENGTHS, MOST_ITERATIONS = (0.01, 0.1, 1.0), 200


def fitted(features: np.ndarray, classes: np.ndarray) -> Any:
    """Fit the regression to features (n, length) of classes int64 (n,). Five folds choose its regularization."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    steps = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS))
    way = GridSearchCV(steps, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=5)
    with threadpool_limits(1):
        return way.fit(features, classes)
