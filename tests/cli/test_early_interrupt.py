"""Ctrl-C while a command starts: a real SIGINT at the import of one module after another."""

import subprocess
import sys
import tomllib

import pytest

from edgecnn.runtime.engines import engines_for, is_installed

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)

INTERRUPT = """
import os, runpy, signal, sys

def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
        pass

class Dropped:
    __del__ = interrupt

class Name:
    __set_name__ = interrupt

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.stderr.write("now\\n")
            sys.stderr.flush()
            {act}

sys.meta_path.insert(0, Interrupt())
sys.argv = ["edgecnn", *{arguments!r}]
{start}
"""
AT_ONCE = "os.kill(os.getpid(), signal.SIGINT)"
AS_MODULE = 'runpy.run_module("edgecnn", run_name="__main__", alter_sys=True)'


@pytest.fixture(scope="module")
def as_script(root):
    """The code that an installed `edgecnn` runs."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["edgecnn"].partition(":")
    return f"from {module} import {function}\nsys.exit({function}())"


MODULES = (
    "edgecnn.cli", "typer", "typer.core", "edgecnn.errors", "edgecnn.cli.classify", "edgecnn.runtime.classifier", "numpy", "PIL.Image",
    "ai_edge_litert",
)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "script"),
    [("edgecnn.cli", False), *((name, True) for name in MODULES)],
)
def test_ctrl_c_while_it_starts_is_quiet(tmp_path, as_script, module, script):
    if module == "ai_edge_litert" and not is_installed("litert"):
        pytest.skip("LiteRT is not installed")
    code = INTERRUPT.format(
        module=module,
        act=AT_ONCE,
        arguments=["classify", "synthetic:64x48?frames=1", "--json"],
        start=as_script if script else AS_MODULE,
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 130, result.stderr
    assert result.stderr.startswith("now\n")
    assert "Traceback" not in result.stderr and "KeyboardInterrupt" not in result.stderr, result.stderr


@pytest.mark.parametrize("module", ["edgecnn.cli", "edgecnn.cli.classify", "edgecnn.runtime.classifier"])
@pytest.mark.parametrize("act", ["Dropped()", "type('Settings', (), {'name': Name()})"])
def test_ctrl_c_is_not_lost_if_python_ignores_or_wraps_it(tmp_path, as_script, module, act):
    """It ignores one in a destructor, as in the callbacks with which imports free their locks, and wraps one in `__set_name__`."""
    arguments = ["classify", "synthetic:64x48", "--json"]
    code = INTERRUPT.format(module=module, act=act, arguments=arguments, start=as_script)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr and "KeyboardInterrupt" not in result.stderr, result.stderr


AT_A_CALL = """
import os, signal, sys
from edgecnn.__main__ import run

def count(frame, event, argument):
    global left
    left -= event == "call"
    if not left:
        sys.setprofile(None)
        sys.stderr.write("now\\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGINT)

left = {call}
sys.argv = ["edgecnn", *{arguments!r}]
sys.setprofile(count)
run()
"""


@pytest.mark.parametrize("arguments", [["train", "--help"], ["classify", "synthetic:64x48?frames=50"]])
@pytest.mark.parametrize("call", [2, 300, 10_000])
def test_ctrl_c_at_one_call_after_another_is_quiet(tmp_path, arguments, call):
    """From the first line of `edgecnn` on; Python's own start is outside our control."""
    code = AT_A_CALL.format(call=call, arguments=arguments)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stderr.startswith("now\n") and result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr and "KeyboardInterrupt" not in result.stderr, result.stderr
