"""The plan of the rooms: no two modules import each other, and the rules refuse what they forbid."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from itertools import zip_longest
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Return the package's modules by name; a package's name maps to its `__init__.py`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "edgecnn").rglob("*.py")
    }


def imported(tree: ast.AST, names: set[str]) -> set[str]:
    """Return which of these modules a module imports anywhere: `from a import b` counts as a.b if that is a module, else as a."""
    result = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute"
            full = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            result |= {name if name in names else node.module for name in full.values()}
    return result & names


def pairs(sources: dict[str, str]) -> list[tuple[str, str]]:
    """Return the pairs of modules that import each other, sorted, given each module's source."""
    names = set(sources)
    uses = {name: imported(ast.parse(text), names) for name, text in sources.items()}
    return sorted((one, other) for one in uses for other in uses[one] if one < other and one in uses[other])


def test_the_check_sees_imports_inside_functions_and_for_types():
    assert pairs(
        {
            "p": "",
            "p.a": "from p import b",
            "p.b": "def f():\n    from p.a import x",
            "p.c": "import p.a",
            "p.d": "if TYPE_CHECKING:\n    from p.e import E",
            "p.e": "from p.d import D",
        }
    ) == [("p.a", "p.b"), ("p.d", "p.e")]
    assert pairs({"p": "from p import a", "p.a": "from p import VALUE"}) == [("p", "p.a")]


def test_no_two_modules_import_each_other(root):
    sources = {name: path.read_text(encoding="utf-8") for name, path in modules(root).items()}
    assert len(sources) > 100
    assert pairs(sources) == []


def test_the_rules_refuse_a_chooser_that_reads_a_dataset(root, tmp_path):
    """This tries the rule out; `make lint` runs it on the real package."""
    shutil.copytree(root / "edgecnn", tmp_path / "edgecnn", ignore=shutil.ignore_patterns("__pycache__", "_data"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    chooser = tmp_path / "edgecnn/calibrate/confidence.py"
    chooser.write_text(chooser.read_text(encoding="utf-8") + "\nfrom edgecnn.data import Dataset\n", encoding="utf-8")
    linter = Path(sys.executable).parent / "lint-imports"
    result = subprocess.run(
        [linter, "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert result.returncode == 1
    assert "the choosers see arrays, and no images of a dataset BROKEN" in result.stdout
    assert "workstation KEPT" in result.stdout


def drawing(root: Path) -> str:
    """Return the floors of both wings as docs/design.md draws them, from the rules of import-linter."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    wings = {item["name"]: [layer.replace("edgecnn.", "") for layer in item["layers"]] for item in contracts[:2]}
    shared = 0
    while wings["workstation"][-1 - shared] == wings["device"][-1 - shared]:
        shared += 1
    above = {name: layers[: len(layers) - shared] for name, layers in wings.items()}
    rows = zip_longest(above["workstation"], above["device"], fillvalue="")
    lines = [("workstation", "device"), *rows]
    width = max(len(left) for left, _ in lines) + 3
    text = [f"{left:{width}}{right}".rstrip() for left, right in lines]
    ground = wings["device"][-shared:]
    return "\n".join([*text, "", "both stand on", *ground])


def test_the_drawing_of_the_rooms_matches_the_rules(root):
    assert f"```text\n{drawing(root)}\n```" in (root / "docs/design.md").read_text(encoding="utf-8")
