"""The command line adds to an error what its own options can do about it."""

import ast
import pickle
import re
from pathlib import Path
from typing import get_args

import pytest
import typer

from edgecnn import errors
from edgecnn.cli import COMMANDS, app
from edgecnn.cli.advice import ADVICE, with_advice
from edgecnn.stress.stress_report import Remedy

PACKAGE = Path(errors.__file__).parent


def advice_in_the_package() -> set[str]:
    """Return the advice that errors are raised with anywhere."""
    return {
        keyword.value.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in vars(errors)
        for keyword in node.keywords
        if keyword.arg == "advice" and isinstance(keyword.value, ast.Constant)
    }


def test_every_advice_has_its_sentence():
    assert advice_in_the_package() | set(get_args(Remedy)) <= set(ADVICE)


@pytest.mark.parametrize("text", ADVICE.values())
def test_advice_names_options_that_exist(text):
    group = typer.main.get_command(app)
    known = {option for name in COMMANDS for item in group.get_command(None, name).params for option in item.opts}
    named = set(re.findall(r"--[a-z][a-z-]*", text))
    assert named and named <= known


@pytest.mark.parametrize(
    "kind", [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
)
def test_an_error_keeps_its_text_and_advice(kind):
    error = pickle.loads(pickle.dumps(kind("x.tflite exists.", advice="replace")))
    assert (str(error), error.advice) == ("x.tflite exists.", "replace")
    assert with_advice(error) == "x.tflite exists. Add --force to replace it."
    assert with_advice(kind("it is broken")) == "it is broken"
