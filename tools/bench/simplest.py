"""The simplest way to a classifier: logistic regression on the features of the whole EfficientNet-Lite0 at 224x224."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecnn.evaluate.statistics import paired_interval

if TYPE_CHECKING:
    from edgecnn.data import Dataset
    from edgecnn.recipe import Recipe
    from edgecnn.train.candidates import Photos

FAMILY, SIDE = "efficientnet_lite0", 224

STRENGTHS, MOST_ITERATIONS = (0.01, 0.1, 1.0), 200


def all_photos(archive: Path) -> tuple["Recipe", "Dataset", "Photos"]:
    """Return an archive's recipe, and all of its photos, as a dataset whose only split is train."""
    from edgecnn.data import open_dataset
    from edgecnn.recipe import build_recipe
    from edgecnn.train.candidates import Photos

    recipe = build_recipe({"data": {"source": str(archive.resolve())}})
    dataset = open_dataset(recipe.data)
    whole = dataset.redivided({item.hash: "train" for part in dataset.items.values() for item in part})
    return recipe, whole, Photos(whole, ("train",), 3, recipe.seed, 10**6, None)


def features_of(photos: "Photos", recipe: "Recipe", kept: Path) -> np.ndarray:
    """Return the features of photos, float32 (n, length). The folder `kept` caches them."""
    from edgecnn.networks.blocks import is_whole
    from edgecnn.train.candidates import frozen_features

    reading = recipe.input_scale, recipe.input_zero_point
    found = frozen_features(FAMILY, (SIDE, SIDE), photos, reading, kept)
    return next(values for rung, values in found.items() if is_whole(rung))


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


def gain(before: np.ndarray, after: np.ndarray) -> list[float]:
    """Return what right answers, bool (n,), gain over others on the same photos, in points, and the ends of its 95 % interval."""
    lost, gained, n = int(np.sum(before & ~after)), int(np.sum(after & ~before)), len(before)
    low, high = paired_interval(lost, gained, n)
    return [100 * (gained - lost) / n, -high, -low]
