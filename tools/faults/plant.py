"""Does `make test` notice faults? Plants those of planted.toml and crossings.toml one at a time, each in a git worktree of HEAD.

A fault is caught if a test fails with it twice and passes without it. First all faults are planted at once and the tests of `make test`
run: those that fail are suspects, which then run for each fault, the nearest ones first. All tests run with those that they miss. Results
are written after each fault, so an interrupted run resumes as long as HEAD and the faults stay the same.

    python tools/faults/plant.py check
    python tools/faults/plant.py run --out dist/planted.json --only report-points runtime-box
"""

import argparse
import ast
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import harness

from edgecnn.evaluate.statistics import clopper_pearson
from edgecnn.files import sha256
from edgecnn.fleet.ssh import on_each
from edgecnn.labels import text_table
from edgecnn.tables import build

FAULTS = tuple(Path(__file__).with_name(name) for name in ("planted.toml", "crossings.toml"))

KINDS = (
    *("limits", "order", "axes", "units", "retained", "cleanup", "sentences", "default"),
    *("crossing", "second run", "restart", "exception", "value"),
)

CAUGHT, SURVIVED, HUNG = "caught", "survived", "hung"

FORKS = Path(__file__).with_name("forks.py")

LAST_FAILED = Path(".pytest_cache/v/cache/lastfailed")

OPTIONS = 'options:; @printf "%s\\n" $(SHARED) $(TESTS)'
"""A make target that prints the pytest options in the Makefile, one per line."""

NO_TESTS = 5  # pytest's exit code


class HungError(Exception):
    """The tests did not finish in time."""


class BrokenError(SystemExit):
    """The tests ended without reporting which one failed, for example because conftest.py cannot be imported."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault: `before`, which occurs once in its file, becomes `after`; `seen` is what a user would notice."""

    id: str
    kind: str
    file: str
    before: str
    after: str
    seen: str

    def planted(self, root: Path) -> str:
        """Return its file's text with the fault. Raises ValueError if the place does not exist or the result is not valid Python."""
        path = root / self.file
        if not path.is_file():
            raise ValueError("the file does not exist")
        return self.planted_in(path.read_text(encoding="utf-8"))

    def planted_in(self, text: str) -> str:
        """Return the text of its file, perhaps with other faults, with the fault. Errors as in `planted`."""
        if (count := text.count(self.before)) != 1:
            raise ValueError(f"its 'before' text occurs {count} times, expected once")
        changed = text.replace(self.before, self.after)
        ast.parse(changed)
        return changed


def read_faults() -> list[Fault]:
    return [
        build(Fault, table, ValueError, path.name)
        for path in FAULTS
        for table in tomllib.loads(path.read_text())["fault"]
    ]


def check(faults: Sequence[Fault]) -> None:
    """Exit with a line for each fault that cannot be planted in the working tree, by itself and together with all others."""
    problems = [f"{fault.id}: {fault.kind!r} is not a kind" for fault in faults if fault.kind not in KINDS]
    problems += [
        f"{one}: two faults have this id" for one in {fault.id for fault in faults if ids(faults).count(fault.id) > 1}
    ]
    texts: dict[str, str] = {}
    for fault in faults:
        try:
            alone = fault.planted(harness.ROOT)
            texts[fault.file] = fault.planted_in(texts[fault.file]) if fault.file in texts else alone
        except (ValueError, SyntaxError) as error:
            problems.append(f"{fault.id}: {fault.file}: {error}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(faults)} faults can be planted")


def ids(faults: Sequence[Fault]) -> list[str]:
    return [fault.id for fault in faults]


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=harness.ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr}")
    return done.stdout.strip()


class Worktree:
    """A copy of HEAD, with links to the virtual environments, in which tests run."""

    def __init__(self, root: Path, options: Sequence[str], limit_s: float) -> None:
        self.root, self._options, self._limit_s = root, options, limit_s
        self._tests = 0  # their process group; 0 if none run
        self._stopped = False
        self.sound = set[str]()  # tests that pass without a change
        # first on the path, so that an editable installation of another folder is not tested by mistake
        self.environment = harness.environment() | {"PYTHONPATH": str(root)}
        self._forks: subprocess.Popen[bytes] | None = None

    def write(self, file: str, text: str) -> None:
        path = self.root / file
        path.write_text(text, encoding="utf-8")
        # Python compares bytecode by the source's time in seconds and its size, which both texts may share
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)

    @contextlib.contextmanager
    def restored(self, files: Iterable[str]) -> Iterator[None]:
        """Write the files back as they are now when the block ends."""
        whole = {file: (self.root / file).read_text(encoding="utf-8") for file in files}
        try:
            yield
        finally:
            for file, text in whole.items():
                self.write(file, text)

    def require_own(self) -> None:
        """Exit unless Python imports this copy."""
        command = [sys.executable, "-c", "import edgecnn; print(edgecnn.__file__)"]
        done = subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)
        if Path(done.stdout.strip()).parent != self.root / "edgecnn":
            sys.exit(f"the tests would import {done.stdout.strip() or done.stderr}, not {self.root / 'edgecnn'}")

    def failing(self, *arguments: str) -> list[str]:
        """Run tests until one fails. Returns the ids of failed tests; raises HungError if they exceed the time limit."""
        failed = self.root / LAST_FAILED
        failed.unlink(missing_ok=True)
        command = [*self._options, "-x", "-q", *arguments]
        with tempfile.NamedTemporaryFile("r") as said:
            code = self._run([said.name, *command])
            if self._stopped:
                sys.exit("interrupted")
            if code in (0, NO_TESTS):
                return []
            if failed.exists() and (found := sorted(json.loads(failed.read_text()))):
                return found
            raise BrokenError(f"pytest {' '.join(command)}: code {code}\n{said.read()[-3000:]}")

    def _run(self, request: Sequence[str]) -> int:
        """Run tests in a fork of `forks.py`, and return pytest's exit code. Raises HungError."""
        if self._forks is None:
            self._forks = subprocess.Popen(
                [sys.executable, FORKS],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # a second line in a buffer would be unknown to select
                start_new_session=True,
            )
        assert self._forks.stdin and self._forks.stdout
        self._forks.stdin.write(f"{json.dumps(request)}\n".encode())
        self._tests = int(self._forks.stdout.readline())
        try:
            if not select.select([self._forks.stdout], [], [], self._limit_s)[0]:
                raise HungError
        finally:
            self._kill()
            self._tests = 0
            code = self._forks.stdout.readline()
        return int(code)

    def stop(self) -> None:
        """Kill the tests, and discard their outcome."""
        self._stopped = True
        self._kill()

    def close(self) -> None:
        if self._forks is not None:
            self._forks.communicate()

    def _kill(self) -> None:
        """Kill the tests and the processes in their group."""
        if self._tests:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._tests, signal.SIGKILL)


@contextlib.contextmanager
def worktree(options: Sequence[str], limit_s: float, lock: threading.Lock) -> Iterator[Worktree]:
    with tempfile.TemporaryDirectory(prefix="edgecnn-fault-") as folder:
        root = Path(folder).resolve() / "edgecnn"
        with lock:
            git("worktree", "add", "--quiet", "--detach", str(root), "HEAD")
        try:
            for path in harness.ROOT.glob(".venv*"):
                (root / path.name).symlink_to(path)
            made = Worktree(root, options, limit_s)
            made.require_own()
            with contextlib.closing(made):
                yield made
        finally:
            with lock:
                git("worktree", "remove", "--force", str(root))


def tried(
    tree: Worktree, file: str, changed: str, phases: Sequence[Sequence[str]], anyway: set[str]
) -> tuple[str, str]:
    """Change a file, run one set of tests after another, and restore the file. Returns the outcome, and the test that caught it.

    Tests that also fail without the change, or not every time with it, go to `anyway`.
    """
    whole = (tree.root / file).read_text(encoding="utf-8")
    try:
        for where in phases:
            while True:
                tree.write(file, changed)
                failed = tree.failing(*where, *(f"--deselect={test}" for test in sorted(anyway)))
                if not failed:
                    break
                tree.write(file, whole)
                still = {test for test in failed if test not in tree.sound and tree.failing(test, "-n", "0")}
                tree.sound |= {*failed} - still
                tree.write(file, changed)
                if caught := [test for test in failed if test not in still and tree.failing(test, "-n", "0")]:
                    return CAUGHT, caught[0]
                anyway |= set(failed)
    except HungError:
        return HUNG, ""
    except BrokenError:
        tree.write(file, whole)
        tree.failing(*where, "--collect-only")  # which breaks as well if the change is not the cause
        return CAUGHT, "before the first test"
    finally:
        tree.write(file, whole)
    return SURVIVED, ""


def suspects(tree: Worktree, faults: Sequence[Fault]) -> list[str]:
    """Return the tests that fail if all faults are planted at once."""
    with tree.restored({fault.file for fault in faults}):
        for fault in faults:
            tree.write(fault.file, fault.planted(tree.root))
        return tree.failing("--maxfail=0")


def nearest_first(tests: Sequence[str], file: str) -> list[str]:
    """Order tests by how much of a module's path theirs has."""
    parts = set(Path(file).with_suffix("").parts)
    return sorted(
        tests, key=lambda test: -len(parts & set(test.split("::")[0].replace("test_", "").replace(".", "/").split("/")))
    )


def test_options() -> list[str]:
    """Return the options that `make test` gives pytest."""
    made = subprocess.run(
        ["make", "-s", "--eval", OPTIONS, "options"], cwd=harness.ROOT, capture_output=True, text=True
    )
    options = made.stdout.splitlines()
    if made.returncode or "-m" not in options:
        sys.exit(f"the Makefile does not print the options of make test: {made.stderr}")
    return options


def run(faults: Sequence[Fault], out: Path, jobs: int, limit_s: float) -> None:
    options = test_options()
    git("worktree", "prune")  # left by a killed run
    context = {
        "commit": git("rev-parse", "HEAD"),
        "faults": sha256(b"".join(path.read_bytes() for path in FAULTS)),
        "options": options,
    }
    results = harness.Results(out, harness.about("planted", **context))
    anyway = {test for row in results.rows for test in row["anyway"]}
    lock, trees, named = threading.Lock(), list[Worktree](), {fault.id: fault for fault in faults}

    def one(name: str, tests: Sequence[str] | None) -> None:
        start, fault = time.monotonic(), named[name]
        with worktree(options, limit_s, lock) as tree:
            trees.append(tree)
            phase = [] if tests is None else [*nearest_first(tests, fault.file), "-n", "0"]
            outcome, test = tried(tree, fault.file, fault.planted(tree.root), [phase], anyway)
            trees.remove(tree)
        if outcome == SURVIVED and tests is not None:
            return  # all tests run later
        seconds = round(time.monotonic() - start, 1)
        with lock:
            results.add(
                id=fault.id, kind=fault.kind, outcome=outcome, test=test, seconds=seconds, anyway=sorted(anyway)
            )

    def stop() -> None:
        for tree in trees:
            tree.stop()

    def left() -> list[str]:
        return [case["id"] for case in results.missing(id=named)]

    if left():
        with worktree(options, limit_s, lock) as tree:
            trees.append(tree)
            suspected = suspects(tree, [named[name] for name in left()])
            anyway |= set(tree.failing("--maxfail=0", *suspected)) if suspected else set()
            trees.remove(tree)
        print(f"{len(suspected)} tests fail with all faults, {len(anyway)} without", file=sys.stderr, flush=True)
        for tests in ([test for test in suspected if test not in anyway], None):
            if tests != []:
                for _ in on_each(left(), jobs, partial(one, tests=tests), stop):
                    pass
    show([row for row in results.rows if row["id"] in named])


def show(rows: Sequence[harness.Row]) -> None:
    """Print the table, tests that fail anyway, and the share caught. A fault that hangs the tests does not count as caught."""
    headings = ("fault", "kind", "outcome", "s", "test")
    print(
        text_table(
            headings, [(row["id"], row["kind"], row["outcome"], f"{row['seconds']:.0f}", row["test"]) for row in rows]
        )
    )
    for test in sorted({test for row in rows for test in row["anyway"]}):
        print(f"fails without a fault too, and does not count: {test}")
    caught = sum(row["outcome"] == CAUGHT for row in rows)
    low, high = clopper_pearson(caught, len(rows))
    print(
        f"{caught} of {len(rows)} caught ({caught / len(rows):.0%}; 95 % interval {low:.0%} to {high:.0%}, Clopper-Pearson)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("check", help="check that each fault can be planted in the working tree")
    running = actions.add_parser("run", help="plant each fault and run the tests")
    running.add_argument("--only", nargs="+", metavar="ID", help="these faults (default: all)")
    running.add_argument("--jobs", type=int, default=2, metavar="N", help="faults at a time (default: 2)")
    running.add_argument(
        "--limit", type=float, default=3600, metavar="S", help="seconds for one test run (default: 3600)"
    )
    running.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    given = parser.parse_args()
    faults = read_faults()
    if given.action == "check":
        check(faults)
        return
    if unknown := set(given.only or ()) - set(ids(faults)):
        sys.exit(f"no list has the fault {min(unknown)}")
    run([fault for fault in faults if given.only is None or fault.id in given.only], given.out, given.jobs, given.limit)


if __name__ == "__main__":
    main()
