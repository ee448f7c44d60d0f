"""The runtime: from a bundle to labels, with numpy, Pillow and one inference engine.

from edgecnn.runtime import Classifier
print(Classifier.load().classify("photo.jpg").top)
"""

from typing import Any

__all__ = ["Classifier"]


def __getattr__(name: str) -> Any:
    if name == "Classifier":
        from edgecnn.runtime.classifier import Classifier

        return Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
