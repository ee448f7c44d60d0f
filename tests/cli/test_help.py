import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import edgecnn.cli as edgecnn_cli
from edgecnn.cli import COMMANDS
from edgecnn.cli.workstation_options import Data, Training
from edgecnn.recipe.keys import keys
from edgecnn.runtime.engines import ENGINES, PROVIDERS
from edgecnn.tables import fields_of

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


HELPS = f"""
import sys
from edgecnn.cli import COMMANDS, main
for arguments in ([], *([name] for name in COMMANDS)):
    sys.argv = ["edgecnn", *arguments, "--help"]
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    print("IMPORTED", *arguments, code, *[name for name in {HEAVY!r} if name in sys.modules])
"""


def test_no_help_imports_anything_heavy():
    """Run all of them in one process: an import shows in its command's line and in those below it."""
    done = subprocess.run([sys.executable, "-c", HELPS], capture_output=True, text=True, check=True)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("IMPORTED")]
    assert lines == [["0"], *([name, "0"] for name in COMMANDS)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example_and_every_default(edgecnn, command):
    result = edgecnn(command, "--help")
    assert result.code == 0
    assert re.search(rf"Examples?:\n +(.*\| )?edgecnn {command}", result.out), result.out
    rows = rows_of(result.out)
    assert {name.split()[0].rstrip(",") for name in rows if name.startswith("-")} >= {"-h", "--json"}
    for stated in rows.values():
        assert "--help" in stated or "[default: " in stated or "; required" in stated or "[required]" in stated, stated
        assert "[default: (" not in stated, "a default is shown as a value"


def rows_of(text):
    """Return the arguments and options of a help text: the syntax of each, and its whole row on one line."""
    sections = re.split(r"\n\n(?=\S[^\n]*:\n)", text)[1:]
    rows = [row for section in sections for row in re.split(r"\n(?=  \S)", section)[1:]]
    return {re.split(r"\s{2,}", row.strip())[0]: " ".join(row.split()) for row in rows}


def test_an_option_of_a_boards_files_takes_the_same_thing_in_each_command(edgecnn):
    takes = {}
    for command in ("update", "slot", "service"):
        for flag, kind in re.findall(
            r"^ +(?:-\w, )?(--[\w-]+) ([A-Z|]+)", edgecnn(command, "--help").out, re.MULTILINE
        ):
            takes.setdefault(flag, set()).add(kind)
    assert all(len(kinds) == 1 for kinds in takes.values()), takes
    assert (takes["--prefix"], takes["--root"], takes["--slots"]) == ({"DIR"}, {"FILE"}, {"DIR"})
    assert "--slots" in edgecnn("slot", "list", "--root", "slots").err, "the former name leads to the new one"


def test_long_helps_have_headings(edgecnn):
    for command in ("train", "run", "verify", "classify", "benchmark", "capture"):
        lengths = [
            len(re.findall(r"\n  -", section))
            for section in re.split(r"\n\n(?=\S[^\n]*:\n)", edgecnn(command, "--help").out)
        ]
        assert max(lengths) <= 10, (command, lengths)


CHOSEN = {"network", "group_by", "init", "epochs", "qat_epochs", "batch_size", "learning_rate"}
"""Options whose recipe key leaves the choice to edgecnn by default."""


def test_the_defaults_of_recipe_keys_match_the_recipe(edgecnn):
    defaults = {key.name: key.default for key in keys()}
    entries = [*fields_of(Data).values(), *fields_of(Training).values()]
    options = {
        entry.name: entry.metadata["keys"][0]
        for entry in entries
        if entry.metadata.get("keys", ("",))[0] in defaults and entry.name not in ("size", "region")
    }
    checked = set()
    for command in ("train", "run", "import"):
        for typed, row in rows_of(edgecnn(command, "--help").out).items():
            name = typed.split()[0].removeprefix("--").replace("-", "_")
            if name in options:
                checked.add(name)
                default = "off" if defaults[options[name]] is False else defaults[options[name]]
                if name in CHOSEN:  # the key's default means a choice, which the help describes
                    assert re.search(r"\[default: (?!None)", row), row
                else:
                    assert f"[default: {'none' if default in ('', None) else default}" in row, row
    assert checked == set(options)


def test_the_list_has_complete_sentences(edgecnn):
    listed = edgecnn("--help").out.partition("Commands:\n")[2].splitlines()
    assert len(listed) == len(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed), listed


def test_every_provider_is_documented_wherever_one_is_chosen(edgecnn):
    documented = 0
    for command in COMMANDS:
        text = edgecnn(command, "--help").out
        if option := re.search(r"--provider .*?(?=\n  -)", text, re.DOTALL):
            documented += 1
            assert [name for name in PROVIDERS if not re.search(rf"\b{name}\b", option[0])] == [], command
    assert documented == 2
    assert {name for kind in ENGINES.values() for name in kind.providers} == set(PROVIDERS)


def test_each_command_has_a_module_of_its_name_and_imports_no_other_command():
    folder = Path(edgecnn_cli.__file__).parent
    for command, module in COMMANDS.items():
        assert module.removesuffix("_") == command
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == module for node in tree.body), command
    for path in folder.glob("*.py"):
        imported = {
            node.module.removeprefix("edgecnn.cli.")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edgecnn.cli.")
        }
        assert not imported & set(COMMANDS.values()), path.name


def test_version(edgecnn):
    import edgecnn as package

    assert edgecnn("--version").out == f"edgecnn {package.__version__}\n"
