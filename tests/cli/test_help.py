"""Help texts, and the error for a missing extra."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import edgecnn.cli as edgecnn_cli
from edgecnn import __version__, versions
from edgecnn.cli import COMMANDS, MODULES
from edgecnn.cli.help import EXTRAS, PURPOSES, missing_extra
from edgecnn.cli.workstation_options import Data, Training
from edgecnn.errors import MissingExtraError
from edgecnn.recipe import keys
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


def test_each_command_is_in_its_module_which_imports_no_other_command_at_its_start():
    folder = Path(edgecnn_cli.__file__).parent
    modules = {command: MODULES.get(name, name) for command, name in COMMANDS.items()}
    for command, module in modules.items():
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == COMMANDS[command] for node in tree.body), command
        imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not imported & {f"edgecnn.cli.{name}" for name in modules.values()}, module


def test_version(edgecnn):
    import edgecnn as package

    assert edgecnn("--version").out == f"edgecnn {package.__version__}\n"


CODE = """
import sys
from edgecnn.cli import main
sys.modules[{module!r}] = None
sys.argv = ["edgecnn", *{command!r}]
main()
"""
MQTT_STREAM = ("classify", "synthetic:8x8?frames=1", "--mqtt", "mqtt://broker/door")


def without(root, module, *command):
    code = CODE.format(module=module, command=command or ("networks",))
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["tensorflow", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_a_missing_package_of_an_extra_names_the_extra(root, module):
    result = without(root, module)
    assert result.returncode == MissingExtraError.exit_code == 28
    assert "Traceback" not in result.stderr
    assert f"needs {module}, which the base installation leaves out" in result.stderr
    assert result.stderr.rstrip().endswith("[train]'")


def test_a_broker_without_the_extra_is_one_line(root):
    result = without(root, "paho", *MQTT_STREAM)
    assert result.returncode == MissingExtraError.exit_code and "Traceback" not in result.stderr
    assert "needs paho, which the base installation leaves out. For MQTT and Home Assistant:" in result.stderr
    assert result.stderr.rstrip().endswith("[mqtt]'")


@pytest.mark.parametrize(
    "module", ["uvicorn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("starlette", "prometheus_client"))]
)
def test_a_page_without_the_extra_is_one_line(root, module):
    result = without(root, module, "classify", "synthetic:8x8?frames=1", "--http", "0")
    assert result.returncode == MissingExtraError.exit_code and "Traceback" not in result.stderr
    assert f"needs {module}, which the base installation leaves out. For the page" in result.stderr
    assert result.stderr.rstrip().endswith("[http]'")


@pytest.mark.parametrize(
    "module", ["edgecnn.networks", pytest.param("edgecnn.networks.blocks", marks=pytest.mark.slow)]
)
def test_any_other_missing_module_keeps_its_traceback(root, module):
    result = without(root, module)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "ModuleNotFoundError" in result.stderr


@pytest.mark.parametrize("name", EXTRAS)
def test_every_package_of_an_extra_is_known(root, name):
    extra = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"][name]
    names = [re.match(r"[\w.-]+", requirement)[0] for requirement in extra]
    modules = {"scikit-learn": "sklearn", "opencv-python-headless": "cv2", "paho-mqtt": "paho"}
    assert PURPOSES[name]
    assert list(EXTRAS[name]) == [modules.get(name, name.replace("-", "_")) for name in names]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, "edgecnn-{version}-py3-none-any.whl[train]"),
        ('{{"url": "https://example.org/edgecnn.whl", "archive_info": {{}}}}', "edgecnn-{version}-py3-none-any.whl[train]"),
        ('{{"url": "file:///dist/edgecnn-1-py3-none-any.whl", "archive_info": {{}}}}', "/dist/edgecnn-1-py3-none-any.whl[train]"),
        ('{{"url": "file://{folder}/my%20copy", "dir_info": {{}}}}', "{folder}/my copy[train]"),
    ],
)  # fmt: skip
def test_the_advice_installs_from_the_same_source(monkeypatch, tmp_path, origin, expected):
    names = {"folder": tmp_path, "version": __version__}

    class Installed:
        def read_text(self, name):
            return origin and origin.format(**names) if name == "direct_url.json" else None

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    monkeypatch.setattr(versions, "HERE", tmp_path / "site-packages")
    (tmp_path / "my copy").mkdir()
    assert shlex.split(versions.install_command("train")) == ["pip", "install", expected.format(**names)]


def test_the_advice_in_a_checkout_installs_it_with_its_constraints(root):
    expected = ["pip", "install", "-c", f"{root}/constraints.txt", "-e", f"{root}[train]"]
    assert shlex.split(versions.install_command("train")) == expected


def test_nothing_installs_edgecnn_by_its_name_alone(root):
    """An index may have another program of that name. Only the page on releases names one, for the day of publishing."""
    bare = re.compile(r"pip install [^`;&\n]*(?<![\w./-])edgecnn(?![-\w./])|\bedgecnn\[")
    found = []
    for folder in ("edgecnn", "docs", "tools", "deploy", "targets", ".github", "."):
        for path in root.joinpath(folder).glob("*" if folder == "." else "**/*"):
            if path.suffix in (".py", ".md", ".toml", ".yml", ".txt", ".sh", ".service", ".in") and path.is_file():
                found += [f"{path.name}: {one}" for one in bare.findall(path.read_text(encoding="utf-8"))]
    assert found == []
    for text in ("pip install edgecnn", "pip install -U 'edgecnn[train]'", "needs `edgecnn[mqtt]`"):
        assert bare.search(text), text
    assert not bare.search("pip install edgecnn-0.2.0-py3-none-any.whl && edgecnn doctor")


def test_only_modules_of_an_extra_count():
    assert missing_extra(ModuleNotFoundError(name="tensorflow.python")) is not None
    assert "[frigate]" in str(missing_extra(ModuleNotFoundError(name="cv2")))
    assert missing_extra(ModuleNotFoundError(name="edgecnn.train")) is None
    assert missing_extra(ModuleNotFoundError()) is None
