"""How many tests break if a message is reworded? At most one should, so that words can be changed.

First a git worktree of HEAD gets other words in all messages at once, and the default tests run: a failed test's output shows which
messages it saw. Then each message that several failed tests saw is reworded by itself, for those tests only. A message is the text of
an exception that is raised, or of a warning or note. Its words are replaced; the values in it stay. A test counts once, whatever its
parameters.

    python tools/faults/messages.py --out dist/messages.json
"""

import argparse
import ast
import re
import subprocess
import sys
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import harness
from plant import Worktree, git, test_options, worktree

from edgecnn.report.table import text_table

CALLS = ("note", "warn", "warning")
"""Names of functions whose first argument is a message, besides exceptions that are raised."""

WORDS = re.compile(r"[^\W\d_]{2,}.*\s.*[^\W\d_]{2,}", re.DOTALL)  # two words at least: a key or a name is no message

MARK = re.compile(r"~(\d+)~")


@dataclass(frozen=True)
class Message:
    """A message: its module, line and text, with `{}` for values."""

    file: str
    line: int
    text: str


def parts(node: ast.AST) -> Iterator[ast.Constant]:
    """Yield the literal text in an expression, but not that in the values of an f-string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node
    elif isinstance(node, ast.JoinedStr):
        yield from (one for one in node.values if isinstance(one, ast.Constant))
    elif isinstance(node, ast.BinOp):
        yield from parts(node.left)
        yield from parts(node.right)
    elif isinstance(node, ast.IfExp):
        yield from parts(node.body)
        yield from parts(node.orelse)


def messages_in(tree: ast.AST) -> Iterator[tuple[int, list[ast.Constant]]]:
    """Yield the line and the literal parts of each message of a module."""
    for node in ast.walk(tree):
        raised = node.exc if isinstance(node, ast.Raise) else None
        called = getattr(node, "func", None)  # `note(...)` or `reporter.note(...)`
        name = getattr(called, "id", getattr(called, "attr", ""))
        call = raised or (node if name in CALLS else None)
        if isinstance(call, ast.Call):
            for argument in call.args:
                found = list(parts(argument))
                if WORDS.search(" ".join(str(one.value) for one in found)):
                    yield argument.lineno, found


def reworded(root: Path, only: Collection[Message] | None = None) -> tuple[list[Message], dict[str, str]]:
    """Return all messages, and each changed module's text with other words in them, or in `only` those."""
    messages, texts = [], {}
    for path in sorted((root / "edgecnn").rglob("*.py")):
        file, tree, changed = str(path.relative_to(root)), ast.parse(path.read_bytes()), False
        for line, literals in messages_in(tree):
            message = Message(file, line, "{}".join(str(one.value) for one in literals))
            messages.append(message)
            if only is None or message in only:
                for one in literals:
                    one.value, changed = f" ~{len(messages) - 1}~ ", True
        if changed:
            texts[file] = ast.unparse(tree)
    return messages, texts


def failed(tree: Worktree, texts: dict[str, str], *arguments: str) -> dict[str, str]:
    """Run tests with changed modules. Returns the output of each failed test by its id, without parameters."""
    with tree.restored(texts):
        for file, text in texts.items():
            tree.write(file, text)
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder, "results.xml")
            command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={results}", "-o", "junit_family=xunit1"]
            done = subprocess.run(
                [*command, *arguments], cwd=tree.root, env=tree.environment, capture_output=True, text=True
            )
            if not results.exists():
                sys.exit(f"pytest wrote no results:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            found: dict[str, str] = {}
            for case in ElementTree.parse(results).iter("testcase"):
                if case.find("failure") is not None or case.find("error") is not None:
                    name = f"{case.get('file')}::{str(case.get('name')).split('[')[0]}"
                    found[name] = (
                        found.get(name, "") + "".join(case.itertext()) + str([one.get("message") for one in case])
                    )
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("tests", nargs="*", help="tests to run (default: those of make test)")
    given = parser.parse_args()
    options = test_options()
    git("worktree", "prune")  # left by a killed run
    results = harness.Results(given.out, harness.about("messages", commit=git("rev-parse", "HEAD"), tests=given.tests))
    with worktree(options, 3600, threading.Lock()) as tree:
        messages, texts = reworded(tree.root)
        seen: dict[int, set[str]] = {}
        broken = failed(tree, texts, *options, *given.tests)
        for test, output in broken.items():
            for number in MARK.findall(output):
                seen.setdefault(int(number), set()).add(test)
        several = {number: tests for number, tests in seen.items() if len(tests) > 1}
        print(
            f"{len(messages)} messages; {len(broken)} tests fail if all are reworded; {len(several)} messages are seen by several"
        )
        for number, tests in sorted(several.items()):
            message = messages[number]
            if not results.missing(file=[message.file], text=[message.text]):
                continue
            _, texts = reworded(tree.root, {message})
            breaks = sorted(failed(tree, texts, "-n", "0", *sorted(tests)))
            results.add(file=message.file, line=message.line, text=message.text, tests=breaks)
    rows = [row for row in results.rows if len(row["tests"]) > 1]
    print(text_table(("message", "tests"), [(f"{row['file']}:{row['line']}", "\n".join(row["tests"])) for row in rows]))
    print(
        f"{len(rows)} of {len(messages)} messages break more than one test; {sum(len(row['tests']) - 1 for row in rows)} checks too many"
    )


if __name__ == "__main__":
    main()
