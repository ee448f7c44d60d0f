"""Error texts: the options that they name exist, and the texts survive pickling between processes."""

import ast
import pickle
import re
from pathlib import Path

import typer

from edgecnn import errors
from edgecnn.cli import COMMANDS, app

PACKAGE = Path(errors.__file__).parent
OTHER_PROGRAMS = {"--codec", "--upgrade"}  # options of rpicam-vid and pip
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


def texts():
    """Yield each constant text in a call that creates an error, with its location."""
    names = {kind.__name__ for kind in KINDS}
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                for part in ast.walk(call):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield f"{path.relative_to(PACKAGE)}:{part.lineno}", part.value


def test_options_that_errors_name_exist():
    group = typer.main.get_command(app)
    known = {option for name in COMMANDS for item in group.get_command(None, name).params for option in item.opts}
    named = {(place, option) for place, text in texts() for option in re.findall(r"(?<![\\w-])--[a-z][a-z0-9-]+", text)}
    assert len(named) > 20
    assert not [(place, option) for place, option in sorted(named) if option not in known | OTHER_PROGRAMS]


def test_an_error_keeps_its_text_through_a_pickle():
    for kind in KINDS:
        assert str(pickle.loads(pickle.dumps(kind("x.tflite exists.")))) == "x.tflite exists.", kind
