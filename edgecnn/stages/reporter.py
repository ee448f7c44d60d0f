"""What a stage tells whoever waits for it."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgecnn.train.loop import TrainProgress


class Reporter(Protocol):
    def note(self, text: str) -> None:
        """A line of text, such as the stage that begins."""

    def training(self, progress: "TrainProgress") -> None:
        """Where training stands."""

    def working(self, what: str, done: int, total: int) -> None:
        """Where other long work stands, in items."""


class Silent:
    def note(self, text: str) -> None: ...
    def training(self, progress: "TrainProgress") -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
