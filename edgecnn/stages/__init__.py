"""One module per working command: it turns inputs into files by calling the rooms below, and reports its progress."""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgecnn.train.loop import TrainProgress


class Reporter(Protocol):
    def note(self, text: str) -> None:
        """Report a line of text, such as the stage that begins."""

    def detail(self, text: str) -> None:
        """Report a line of text that decides nothing: what edgecnn chose by itself, and why."""

    def training(self, progress: "TrainProgress") -> None:
        """Report the progress of training."""

    def working(self, what: str, done: int, total: int) -> None:
        """Report the progress of other long work, in items."""


class Silent:
    def note(self, text: str) -> None: ...
    def detail(self, text: str) -> None: ...
    def training(self, progress: "TrainProgress") -> None: ...
    def working(self, what: str, done: int, total: int) -> None: ...
