"""The API's classifier: loaded by the first request, and used by one thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from edgecnn.errors import BundleError

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier

T = TypeVar("T")

MOST_WAITING = 8
"""How many requests may wait for the thread, including the one in progress."""


class Busy(Exception):
    """Too many requests are waiting already."""


class Inference:
    """Runs work on a classifier, one at a time."""

    def __init__(self, load: Callable[[], "Classifier"]) -> None:
        self._load = load
        self._classifier: Classifier | None = None
        self._thread = ThreadPoolExecutor(1, "inference")
        self._waiting = 0

    async def run(self, work: Callable[["Classifier"], T]) -> T:
        """Return the result of `work`; Busy if MOST_WAITING requests wait. Errors of loading and of `work` pass through."""
        if self._waiting >= MOST_WAITING:
            raise Busy
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        finally:
            self._waiting -= 1

    def _run(self, work: Callable[["Classifier"], T]) -> T:
        if self._classifier is None:
            self._classifier = self._load()
        return work(self._classifier)


def load(path: str, model_sha256: str, region: list[float] | None = None, **choice: Any) -> "Classifier":
    """Load the same classifier as the camera loop; BundleError if its bundle has changed since."""
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(path, region=None if region is None else (*region,), **choice)  # type: ignore[arg-type]
    if classifier.model_sha256 != model_sha256:
        raise BundleError(f"{path} has changed since the camera loop read it. Restart edgecnn.")
    return classifier
