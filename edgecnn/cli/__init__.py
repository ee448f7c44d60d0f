"""The command line. A command's module is imported when the command runs, or for the list of all of them."""

import gc

# Imported objects stay alive: looking for garbage among them takes a tenth of a short command.
gc.set_threshold(100_000)

import atexit
import contextlib
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import typer
import typer.core

from edgecnn import __version__, files
from edgecnn.errors import EdgeCNNError, OutputError
from edgecnn.labels import printable_lines

COMMANDS = {
    name.rstrip("_"): name
    for name in (
        "inspect", "train", "import_", "export", "verify", "bundle", "run", "compare", "layers", "stress", "report", "classify",
        "explain", "capture", "review", "slot", "update", "service", "release", "deploy", "selftest", "benchmark", "doctor", "cameras",
        "networks", "datasets", "targets",
    )
}  # fmt: skip
"""The commands in `--help` order, each with its function; `import` is a Python keyword."""

MODULES = {
    "run": "train", "bundle": "export", "report": "export", "compare": "verify", "layers": "verify", "selftest": "doctor",
    "benchmark": "doctor", "cameras": "capture", "datasets": "networks", "targets": "networks",
}  # fmt: skip
"""The module of each command that is not in a module of its own name."""

BROKEN_PIPE = 141
"""Exit code when the reader of standard output has gone: that of a process killed by SIGPIPE."""


class Command(typer.core.TyperCommand):
    """A command whose help lists options under headings; after an action, such as `slot add --help`, it covers only that action."""

    actions: Mapping[str, str] = MappingProxyType({})
    action = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line; if a value is not a number, report which number is expected."""
        self.action = next((arg for arg in args if arg in self.actions), "")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            from edgecnn.cli.help import expect_number

            expect_number(error)
            raise

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        if self.action:
            from edgecnn.cli.help import of_action

            self.help = of_action(self.help or "", f"{ctx.command_path} {self.action}")
        super().format_help_text(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        from edgecnn.cli.help import sections

        for heading, rows in sections(self, ctx, self.action).items():
            with formatter.section(heading):
                formatter.write_dl(rows)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the arguments as typed; typer puts braces around required ones."""
        if self.action:
            return [piece for piece in (self.action, self.actions[self.action], "[OPTIONS]") if piece]
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]


class Commands(typer.core.TyperGroup):
    """A group that builds a command only when needed: building all of them takes longer than classifying an image."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        names: dict[str, Any] = dict.fromkeys(COMMANDS)  # for the list and for suggestions
        self.commands = names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        name = COMMANDS[cmd_name]
        module = importlib.import_module(f"edgecnn.cli.{MODULES.get(name, name)}")
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, cls=Command)(getattr(module, name))
        command: Any = typer.main.get_command(single)
        command.actions = getattr(module, "ACTIONS", command.actions)
        return command

    def invoke(self, ctx: Any) -> Any:
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


def print_version(requested: bool) -> None:
    if requested:
        print(f"edgecnn {__version__}")
        raise typer.Exit


@app.callback()
def edgecnn(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=print_version, help="Print the version."),
) -> None:
    """From labelled images to a verified int8 classifier on a small board."""


def main(leave: Callable[[int], object] = sys.exit) -> None:
    """Run the command line and exit with its code. An EdgeCNNError prints one message, no traceback, and sets its own code."""
    files.stderr_is_ours = True
    # Pillow warns about damaged metadata. Such an image counts as upright, or raises an ImageError.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    code = 0
    try:
        try:
            app(prog_name="edgecnn")
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        sys.stdout.flush()
    except EdgeCNNError as error:
        code = failed(error)
    except ModuleNotFoundError as error:
        from edgecnn.cli.help import missing_extra

        lacking = missing_extra(error)
        if lacking is None:
            raise
        code = failed(lacking)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        # The stages turn errors of their own files into OutputError, so this one comes from standard output.
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EDQUOT, errno.EPIPE):
            raise
        drop_output()
        gone = error.errno == errno.EPIPE
        code = BROKEN_PIPE if gone else failed(OutputError(f"cannot write standard output: {error.strerror}."))
    leave(code)


main.__code__ = main.__code__.replace(co_stacksize=20_000)
"""Python keeps call frames in chunks of 16 KiB. If a chunk ends just before a call in a loop, such as in numpy's import, each call maps and
unmaps a new one: 5 ms. A first frame this large gets one chunk of 256 KiB, with room for all others."""


def leave_at_once(code: int) -> None:
    """End the process without freeing objects, which takes a twentieth of a short command; exit handlers, such as TensorFlow's, do run."""
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # `main` has reported a failed write to standard output
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def console_script() -> None:
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        # numpy's OpenBLAS would start one thread per core, which cost a short command 35 to 50 ms; nothing here calls it.
        # Not in os.environ: a command that this one runs must see the user's own value.
        os.putenv("OPENBLAS_NUM_THREADS", "1")
    main(leave_at_once)


def failed(error: EdgeCNNError) -> int:
    print(f"edgecnn: error: {printable_lines(str(error))}", file=sys.stderr)
    return error.exit_code


def drop_output() -> None:
    """Discard what standard output still holds, so that the interpreter does not fail on it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
