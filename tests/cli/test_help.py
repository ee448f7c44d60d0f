import re
import subprocess
import sys

import pytest

from edgecnn.cli import COMMANDS

HEAVY = (
    "tensorflow",
    "tf_keras",
    "onnxruntime",
    "ai_edge_litert",
    "tflite_runtime",
    "numpy",
    "PIL",
    "rich",
    "matplotlib",
)


def imported_by(*arguments):
    """Return which heavy modules a command line imports."""
    code = (
        "import sys\nfrom edgecnn.cli import main\n"
        f"sys.argv = ['edgecnn', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('IMPORTED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.splitlines()[-1].split()[1:]


def test_help_imports_no_engine_and_nothing_heavy():
    assert imported_by("--help") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_imports_nothing_heavy(command):
    assert imported_by(command, "--help") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example_and_every_default(edgecnn, command):
    result = edgecnn(command, "--help")
    assert result.code == 0
    assert re.search(rf"Examples?:\n +(.*\| )?edgecnn {command}", result.out), result.out
    options = re.split(r"\n(?=  -)", result.out[result.out.index("Options:") :])[1:]
    arguments = re.split(r"\n(?=  \w|  \[)", result.out[result.out.find("Arguments:") : result.out.index("Options:")])
    for text in options + [item for item in arguments if item.startswith("  ")]:
        stated = " ".join(text.split())
        assert "--help" in stated or "[default: " in stated or "; required" in stated or "[required]" in stated, stated


def test_the_list_of_commands(edgecnn):
    listed = edgecnn("--help").out
    for command in COMMANDS:
        assert f"\n  {command} " in listed


def test_version(edgecnn):
    import edgecnn as package

    assert edgecnn("--version").out == f"edgecnn {package.__version__}\n"
