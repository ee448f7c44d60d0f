"""The glossary of docs/style.md is enforced in documents, help texts and messages."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgecnn.cli import COMMANDS

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def glossary() -> dict[str, str]:
    """Return the words to avoid, as regular expressions, with their replacements, from the table in docs/style.md."""
    text = (ROOT / "docs" / "style.md").read_text(encoding="utf-8")
    table = text.partition("### Glossary")[2].partition("###")[0]
    return {
        word.replace("\\|", "|"): instead
        for word, instead in re.findall(r"^\| `(.+)` \| (.+) \|$", table, re.MULTILINE)
    }


GLOSSARY = glossary()


def words_in(text: str) -> list[str]:
    """Return the glossary's words in a text, each with its replacement."""
    flat = " ".join(text.split())
    return [
        f"{found[0]!r} (write: {instead})"
        for word, instead in GLOSSARY.items()
        for found in re.finditer(rf"\b(?:{word})\b", flat, re.IGNORECASE)
    ]


def literals(path: Path) -> list[str]:
    """Return the texts that a module can show: its string literals and the constant parts of f-strings.

    The only docstring that is shown is a command's, as its help.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    hidden = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        and not (path.parent.name == "cli" and getattr(node, "name", "") in COMMANDS.values())
        for statement in node.body
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in hidden
    ]


def modules() -> list[Path]:
    return sorted((ROOT / "edgecnn").rglob("*.py"))


def test_the_glossary_is_read():
    assert len(GLOSSARY) >= 10
    assert words_in("what mends it, besides") == [
        "'mends' (write: fix, what to do)",
        "'besides' (write: next to, as well, compared with)",
    ]
    assert words_in("recommended to amend") == []
    assert words_in("not asked\n    for") == ["'asked for' (write: requested)"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_glossarys_words(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "style.md":
        text = text.replace(text.partition("### Glossary")[2].partition("###")[0], "")
    assert words_in(text) == []


def test_modules_use_the_glossarys_words():
    wrong = {
        str(path.relative_to(ROOT)): words for path in modules() if (words := words_in(" | ".join(literals(path))))
    }
    assert wrong == {}


def test_spelling_is_checked_against_both_lists_except_in_code(tmp_path):
    """`make lint` checks documents and package; a word from tools/words.txt and one from codespell's own list fail."""
    pytest.importorskip("codespell_lib", reason="spelling needs the dev extra")
    page = tmp_path / "page.md"
    page.write_text("What mends it\nin teh end\nis `mends`.\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "codespell_lib", page], cwd=ROOT, capture_output=True, text=True)
    assert [line.split(": ")[1] for line in done.stdout.splitlines()] == ["mends ==> fixes", "teh ==> the"]
    assert done.returncode == 65
