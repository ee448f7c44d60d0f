"""Progress bars on standard error: drawn in a terminal, elsewhere one line per epoch."""

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from edgecnn.labels import printable, printable_lines

if TYPE_CHECKING:
    from edgecnn.train.loop import TrainProgress


class ProgressReporter:
    """A pipeline's Reporter that draws with rich; it shows details only if `full`. Use as a context manager."""

    def __init__(self, full: bool = True) -> None:
        self.full = full
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[state]}"),
            console=self.console, transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self.task = self.bars.add_task("", total=None, visible=False, state="")

    def __enter__(self) -> "ProgressReporter":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def note(self, text: str) -> None:
        self.console.print(printable_lines(text), markup=False)

    def detail(self, text: str) -> None:
        if self.full:
            self.note(text)

    def training(self, progress: "TrainProgress") -> None:
        """Show an epoch's loss, accuracy, images/s and the time left in the phase. A line stays when the epoch ends."""
        epoch = f"{progress.phase} epoch {progress.epoch}/{progress.epochs}"
        state = (
            f"loss {progress.loss:.4f}  accuracy {progress.accuracy:.2%}  {progress.images_per_s:,.0f} images/s  "
            f"{clock(progress.seconds_left)} left"
        )
        self._show(epoch, progress.images, progress.total_images, state)
        if progress.validation_accuracy is not None:
            int8 = ""
            if progress.int8_accuracy is not None:
                int8 = f"  int8 {progress.int8_accuracy:.2%}, {progress.int8_agreement:.2%} as float"
            self.note(f"{epoch}  {state}  validation {progress.validation_accuracy:.2%}{int8}")

    def working(self, what: str, done: int, total: int) -> None:
        state = f"{done:,} of {total:,}" if total else f"{done:,}"
        self._show(what, done, total, state)

    def _show(self, description: str, done: int, total: int, state: str) -> None:
        visible, text = not total or done < total, printable(description)
        self.bars.tasks[0].total = total or None  # `update` would take None for unchanged
        self.bars.update(self.task, description=text, completed=done, state=state, visible=visible)


def clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
