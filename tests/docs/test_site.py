"""The site and its words."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgecnn import errors
from edgecnn.cli import COMMANDS
from edgecnn.recipe import Recipe
from edgecnn.tables import leaves

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def hook():
    """tools/docs.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built with --strict: a broken link, anchor or generated part fails."""
    pytest.importorskip("mkdocs", reason="the site needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_a_page_for_each_command_and_model(site):
    assert {path.stem for path in (site / "commands").glob("*.html")} == set(COMMANDS)
    assert {path.stem for path in (site / "models").glob("*.html")} == {
        path.parent.name for path in (ROOT / "models").glob("*/card.md")
    }
    assert {path.name for path in (site / "schemas").iterdir()} == {
        "result.schema.json", "explanation.schema.json", "parity.schema.json", "report.schema.json", "stress.schema.json",
        "inspection.schema.json", "kept.schema.json",
        "against.schema.json",
    }  # fmt: skip


def test_no_page_fetches_anything_from_a_network(site):
    fetched = re.compile(
        r"""<(?:script|img|iframe|source)[^>]+src=["']?(?:https?:)?//|<link[^>]+href=["']?(?:https?:)?//"""
    )
    inside = re.compile(r"url\([\"']?(?:https?:)?//|@import")
    for path in site.rglob("*"):
        if path.suffix == ".html":
            assert not fetched.search(path.read_text(encoding="utf-8")), path
        if path.suffix in (".css", ".svg"):
            assert not inside.search(path.read_text(encoding="utf-8")), path


@pytest.mark.slow
@pytest.mark.needs("chromium", "chromedriver", package="chromium chromium-driver")
def test_no_page_is_wider_than_its_screen_and_every_picture_is_there(site, browser, looks):
    wrong = []
    for width, theme in looks():
        for path in sorted(site.rglob("*.html")):
            browser.get(path.as_uri())
            overflow, lost = browser.execute_script(
                "return [document.documentElement.scrollWidth - window.innerWidth,"
                " [...document.images].filter(item => !item.naturalWidth).map(item => item.src)]"
            )
            if overflow > 0 or lost:
                wrong.append((path.name, width, theme, overflow, lost))
    assert wrong == []


def test_no_page_shows_a_backslash_that_escapes_markup(site):
    for path in site.rglob("*.html"):
        assert not re.findall(r"\\(?:\||&lt;|&gt;)", path.read_text(encoding="utf-8")), path


def test_the_site_shows_what_comes_from_the_code(site):
    python, errors, service = ((site / f"{name}.html").read_text() for name in ("python", "troubleshooting", "service"))
    assert "Load a bundle and open one of its models" in python  # mkdocstrings
    assert "<strong>Exit code 3.</strong>" in errors and "&lt;!-- " not in errors
    assert "<td><code>max_fps</code></td>" in service


def test_what_pages_show_from_the_code_is_true(hook):
    pages = hook.pages()
    stale = [path.name for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python tools/docs.py"
    assert set((ROOT / "docs" / "commands").glob("*.md")) <= pages.keys(), "run: python tools/docs.py"
    for path in pages:  # a marker without its end would stay empty
        starts, ends = (
            path.read_text(encoding="utf-8").count(f"<!-- {marker}") for marker in ("generate: ", "end -->")
        )
        assert starts == ends, path.name


def test_every_error_has_a_section_with_advice(hook):
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    sections = dict(
        re.findall(r"^## (\w+)\n\n<!-- generate: error \1 -->\n.+\n<!-- end -->\n\n(.+)$", page, re.MULTILINE)
    )
    kinds = hook.error_kinds()
    assert kinds.pop("EdgeCNNError") is errors.EdgeCNNError
    assert list(sections) == list(kinds), "in the order of their exit codes"
    table = hook.error_table()
    for name, kind in kinds.items():
        assert f"| {kind.exit_code} | [`{name}`](#{name.lower()}) |" in table


def test_every_recipe_key_is_in_the_page_on_recipes(hook):
    page = hook.recipe_keys()

    keys = dict(leaves(Recipe))
    assert len(keys) > 30
    for key in keys:
        assert f"| `{key}` |" in page, key


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_page_has_every_option(hook, command):
    page = hook.command_page(command)
    for parameter in hook.built_command(command).params:
        for option in (*parameter.opts, *parameter.secondary_opts) if parameter.param_type_name == "option" else ():
            assert option in page
    assert f"](commands/{command}.md)" in hook.command_table()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


def test_the_readmes_figures_stand_in_the_documents_with_their_source():
    table = re.search(r"## What to expect\n\n(.*?)\n\n", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert table
    sources = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("figures.md", "networks.md"))
    figures = re.findall(r"\d+\.\d+(?: %)?|\d,\d{3},\d{3}", table[1])
    assert len(figures) > 8
    assert [figure for figure in figures if figure not in sources] == []


def test_links_between_files_of_the_repository_lead_somewhere():
    """As a reader of the raw files follows them; the site's build checks its own."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", text):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"


PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def glossary() -> dict[str, str]:
    """Return the words to avoid, as regular expressions, with their replacements, from the table in docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
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
    if page.name == "design.md":
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
