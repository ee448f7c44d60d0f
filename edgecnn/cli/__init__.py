"""The command line. A command's module is imported when the command is asked for, or for the list of all."""

import atexit
import errno
import gc
import importlib
import os
import sys
from typing import Any

import typer
import typer.core

from edgecnn import __version__
from edgecnn.errors import EdgeCNNError, OutputError

COMMANDS = {
    "train": "workstation",
    "export": "export",
    "verify": "verify",
    "bundle": "workstation",
    "run": "workstation",
    "classify": "device",
    "selftest": "device",
    "networks": "workstation",
    "datasets": "workstation",
    "targets": "device",
}
"""The commands in the order of `--help`, and the module beside this file whose function of that name each is."""

BROKEN_PIPE = 141
"""Exit code where the reader of standard output went away: that of a process ended by SIGPIPE."""


class Commands(typer.core.TyperGroup):
    """A group that builds a command when it is asked for: building all of them takes longer than classifying an image."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        names: dict[str, Any] = dict.fromkeys(COMMANDS)  # for the list and for suggestions
        self.commands = names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Build one command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"edgecnn.cli.{COMMANDS[cmd_name]}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(getattr(module, cmd_name))
        return typer.main.get_command(single)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and end quietly if the reader of standard output has gone."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()
            raise typer.Exit(BROKEN_PIPE) from None
        return result


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version and stop, if it was asked for."""
    if wanted:
        print(f"edgecnn {__version__}")
        raise typer.Exit


@app.callback()
def edgecnn(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=print_version, help="Print the version."),
) -> None:
    """From labelled images to a verified int8 classifier on a small board."""


def main() -> None:
    """Run the command line and exit: an EdgeCNNError is one message and its own exit code, without a traceback."""
    gc.set_threshold(
        100_000
    )  # importing makes objects that stay: looking for garbage among them is a tenth of a short command
    atexit.register(gc.freeze)  # and so is looking once more at the end
    try:
        app(prog_name="edgecnn")
    except EdgeCNNError as error:
        sys.exit(failed(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # The stages turn what their files raise into OutputError: what is left is standard output.
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT):
            raise
        drop_output()
        sys.exit(failed(OutputError(f"cannot write standard output: {error.strerror}.")))


def failed(error: EdgeCNNError) -> int:
    """Print an error and return its exit code."""
    print(f"edgecnn: error: {error}", file=sys.stderr)
    return error.exit_code


def drop_output() -> None:
    """Send what standard output still holds nowhere, so that the interpreter does not fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
