"""No two modules of edgecnn import each other, not even inside functions or for types alone."""

import ast
from pathlib import Path


def modules(root: Path) -> dict[str, Path]:
    """Return the package's modules by name; a package's own is its `__init__.py`."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / "edgecnn").rglob("*.py")
    }


def imported(tree: ast.AST, names: set[str]) -> set[str]:
    """Return which of some modules are imported anywhere in a module: `from a import b` is a.b where that is a module, else a."""
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
