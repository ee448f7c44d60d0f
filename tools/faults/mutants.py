"""How much do the tests next to the code notice? Tries mutants made by cosmic-ray, each in a git worktree of HEAD.

A sample draws places in each room's code, in proportion to its lines but at least ten, and one mutant per place. Rooms or modules named
without a count are tried in full. Rooms that need TensorFlow are left out. The tests named after a mutant's module run first, then the
others of its room; with `--all` also the rest. Results are written after each mutant, so an interrupted run resumes as long as HEAD
stays the same. survivors.toml explains why nobody can notice a survivor, or why it is tolerated.

    python tools/faults/mutants.py --out dist/mutants.json
    python tools/faults/mutants.py --out dist/mutants.json --rooms verify/gate runtime/decision
"""

import argparse
import ast
import contextlib
import json
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby, zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import harness
from plant import CAUGHT, HUNG, SURVIVED, Worktree, git, test_options, tried, worktree

from edgecnn.evaluate.statistics import clopper_pearson
from edgecnn.fleet.ssh import on_each
from edgecnn.labels import text_table
from edgecnn.tables import build

COUNT, LEAST = 400, 10

NOT_MADE = "not made"

WITH_TENSORFLOW = ("cli", "export", "interop", "networks", "stages", "train")
"""Rooms whose code or tests need it throughout."""

UNHEARD = ("_Is", "_IsNot", "_Is_Eq", "_IsNot_NotEq")
"""Operators that change nothing that `==` and `!=` do not: what this package compares is None, a small number or interned text."""

CHANGE = Path(__file__).with_name("change.py")

Change = Callable[[str, str, int], str | None]

WORDS = Path(__file__).with_name("survivors.toml")

CONFIGURATION = """\
[cosmic-ray]
module-path = {files}
timeout = 1.0
excluded-modules = []
test-command = "false"
distributor.name = "local"
"""


@dataclass(frozen=True, order=True)
class Mutant:
    """A mutant (cosmic-ray calls it a mutation), at `line` and `column`."""

    file: str
    line: int
    column: int
    operator: str
    occurrence: int

    @property
    def id(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.operator} {self.occurrence}"

    @property
    def room(self) -> str:
        """The folder of its module in the package; `.` is the ground floor."""
        return str(Path(self.file).relative_to("edgecnn").parent)


@dataclass(frozen=True, kw_only=True)
class Survivor:
    """A changed line that no test notices, and why. If it is `equivalent`, nobody can notice it."""

    file: str
    before: str
    after: str
    why: str
    equivalent: bool = False


def nearby(file: str, root: Path) -> list[list[str]]:
    """Return the tests next to a module, in the order in which they run: those of its name, then the others in its room's folder."""
    module, tests = Path(file).relative_to("edgecnn").with_suffix(""), root / "tests"
    place = next((path for folder in module.parents if (path := tests / folder).exists()), tests)
    named = place / f"test_{module.name}.py"
    others = [path for path in sorted(place.glob("test_*.py")) if path != named]
    return [[str(path) for path in part] for part in ([named] if named.exists() else [], others) if part]


def all_tests(file: str, root: Path) -> list[list[str]]:
    """Return the tests next to a module, then the rest."""
    near = nearby(file, root)
    return [*near, [f"--ignore={path}" for path in chain(*near)]]


def modules(root: Path) -> dict[str, list[str]]:
    """Return the modules of each room that does not need TensorFlow."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((root / "edgecnn").rglob("*.py")):
        inside, text = path.relative_to(root / "edgecnn"), path.read_text(encoding="utf-8")
        if inside.parts[0] not in WITH_TENSORFLOW and "import tensorflow" not in text and "networks.keras" not in text:
            rooms.setdefault(str(inside.parent), []).append(str(path.relative_to(root)))
    return rooms


def cosmic_ray(root: Path, *arguments: str | Path) -> str:
    command = [harness.ROOT / ".venv-faults" / "bin" / "cosmic-ray", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


@cache
def declared(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where each annotation and `dataclass(...)` of a module begins and ends: they speak to mypy."""
    found: list[ast.AST | None] = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        found += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        found += [one for one in getattr(node, "decorator_list", ()) if ast.unparse(one).startswith("dataclass(")]
    exprs = [node for node in found if isinstance(node, ast.expr)]
    return [((one.lineno, one.col_offset), (one.end_lineno or 0, one.end_col_offset or 0)) for one in exprs]


def mutants(root: Path, files: Sequence[str]) -> list[list[Mutant]]:
    """Return all mutants that cosmic-ray makes of some modules, grouped by place, except those in declarations and UNHEARD ones."""
    with tempfile.TemporaryDirectory() as folder:
        configuration, session = Path(folder, "cosmic-ray.toml"), Path(folder, "session.sqlite")
        configuration.write_text(CONFIGURATION.format(files=json.dumps(list(files))))
        cosmic_ray(root, "init", configuration, session)
        made = [json.loads(line)[0]["mutations"][0] for line in cosmic_ray(root, "dump", session).splitlines()]
    found = []
    for one in made:
        file, (line, column), operator = one["module_path"], one["start_pos"], one["operator_name"]
        if operator.endswith(UNHEARD) or any(start <= (line, column) < end for start, end in declared(root / file)):
            continue
        found.append(Mutant(file, line, column, operator.removeprefix("core/"), one["occurrence"]))
    return [list(group) for _, group in groupby(sorted(found), lambda one: (one.file, one.line, one.column))]


def drawn(root: Path, names: Sequence[str], count: int | None, seed: int) -> list[Mutant]:
    """Return about `count` mutants (or all, if None) of the named rooms or modules, or of all rooms, interleaved."""
    rooms = modules(root)
    single = {file.removeprefix("edgecnn/").removesuffix(".py"): [file] for file in chain(*rooms.values())}
    if unknown := [name for name in names if name not in single | rooms]:
        sys.exit(f"{unknown[0]} is neither a room nor a module without TensorFlow: the rooms are {', '.join(rooms)}")
    rooms = {name: (single | rooms)[name] for name in names or rooms}
    lines = {name: sum((root / file).read_bytes().count(b"\n") for file in files) for name, files in rooms.items()}
    with ThreadPoolExecutor(2) as pool:
        listed = list(pool.map(lambda files: mutants(root, files), rooms.values()))
    samples = []
    for name, places in zip(rooms, listed, strict=True):
        chance = random.Random(f"{seed} {name}")
        if count is None:
            samples.append(list(chain(*places)))
            continue
        least = min(LEAST, count // len(rooms))
        share = least + round((count - least * len(rooms)) * lines[name] / sum(lines.values()))
        samples.append([chance.choice(place) for place in chance.sample(places, min(share, len(places)))])
    return [one for turn in zip_longest(*samples) for one in turn if one]


@contextlib.contextmanager
def changing() -> Iterator[Change]:
    """Yield `change(text, operator, occurrence)`, which returns a mutant's text, or None if cosmic-ray cannot make it."""
    with subprocess.Popen(
        [harness.ROOT / ".venv-faults" / "bin" / "python", CHANGE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin and child.stdout
        asked, answered, lock = child.stdin, child.stdout, threading.Lock()

        def change(*mutant: str | int) -> str | None:
            with lock:
                print(json.dumps(mutant), file=asked, flush=True)
                found: str | None = json.loads(answered.readline())
                return found

        yield change


def tried_in(tree: Worktree, mutant: Mutant, change: Change, everything: bool, anyway: set[str]) -> harness.Row:
    """Try a mutant that cosmic-ray applies to a copy of its file, and return its row of results."""
    start, whole = time.monotonic(), (tree.root / mutant.file).read_text(encoding="utf-8")
    row = {"id": mutant.id, "room": mutant.room, "file": mutant.file, "line": mutant.line}
    changed = change(whole, f"core/{mutant.operator}", mutant.occurrence)
    if changed is None:
        return {**row, "outcome": NOT_MADE, "anyway": []}
    phases = (all_tests if everything else nearby)(mutant.file, tree.root)
    outcome, test = tried(tree, mutant.file, changed, phases, anyway)
    before, after = (text.splitlines()[mutant.line - 1].strip() for text in (whole, changed))
    judged = {"before": before, "after": after, "outcome": outcome, "test": test, "anyway": sorted(anyway)}
    return row | judged | {"seconds": round(time.monotonic() - start, 1)}


def run(given: argparse.Namespace) -> None:
    git("worktree", "prune")  # left by a killed run
    options = [*test_options(), "-n", "0"]
    context = {"commit": git("rev-parse", "HEAD"), "options": options, "all": given.all}
    results = harness.Results(given.out, harness.about("mutants", **context))
    anyway = {test for row in results.rows for test in row["anyway"]}
    lock, free = threading.Lock(), queue.Queue[Worktree]()
    with contextlib.ExitStack() as stack:
        change = stack.enter_context(changing())
        trees = [stack.enter_context(worktree(options, given.limit, lock)) for _ in range(given.jobs)]
        sample = {one.id: one for one in drawn(trees[0].root, given.rooms, given.count, given.seed)}

        def one(name: str) -> None:
            tree = free.get()
            try:
                row = tried_in(tree, sample[name], change, given.all, anyway)
            finally:
                free.put(tree)
            with lock:
                results.add(**row)

        def stop() -> None:
            for tree in trees:
                tree.stop()

        for tree in trees:
            free.put(tree)
        for _ in on_each([case["id"] for case in results.missing(id=sample)], given.jobs, one, stop):
            pass
    show([row for row in results.rows if row["id"] in sample and row["outcome"] != NOT_MADE])


def show(rows: Sequence[harness.Row]) -> None:
    """Print the survivors, each with its reason in survivors.toml, and the score of each room. A test that hangs counts as noticing."""
    known = [
        build(Survivor, one, ValueError, WORDS.name) for one in tomllib.loads(WORDS.read_text()).get("survivor", ())
    ]
    words = {(one.file, one.before, one.after): one for one in known}
    equivalent, noticed = set(), {row["id"] for row in rows if row["outcome"] in (CAUGHT, HUNG)}
    for row in (row for row in rows if row["outcome"] == SURVIVED):
        word = words.get((row["file"], row["before"], row["after"]))
        if word and word.equivalent:
            equivalent.add(row["id"])
        said = f"{'equivalent' if word.equivalent else 'left'}: {word.why}" if word else "not judged"
        print(f"{row['file']}:{row['line']}: {said}\n  - {row['before']}\n  + {row['after']}")
    table = []
    for room in [*sorted({row["room"] for row in rows}), "all"]:
        of = {row["id"] for row in rows if room in ("all", row["room"])}
        hung = {row["id"] for row in rows if row["outcome"] == HUNG} & of
        caught, total = len(of & noticed), len(of - equivalent)
        low, high = clopper_pearson(caught, total) if total else (0, 1)
        counts = (len(of), len(of & equivalent), caught, len(hung))
        table.append((room, *map(str, counts), f"{caught / max(total, 1):.0%}", f"{low:.0%} to {high:.0%}"))
    print(text_table(("room", "mutants", "equivalent", "caught", "by hanging", "score", "95 % interval"), table))
    for test in sorted({test for row in rows for test in row["anyway"]}):
        print(f"fails without a mutant too, and does not count: {test}")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that child processes end and no worktree is left
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the results, as JSON")
    parser.add_argument("--rooms", nargs="+", default=(), metavar="NAME", help="rooms or modules, such as verify/gate")
    parser.add_argument("--count", type=int, metavar="N", help=f"mutants (default: {COUNT}, or all of named rooms)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the sample (default: 1)")
    parser.add_argument("--all", action="store_true", help="then run the other tests too")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at a time (default: 2)")
    parser.add_argument("--limit", type=float, default=300, metavar="S", help="seconds for one run (default: 300)")
    given = parser.parse_args()
    if given.count is None and not given.rooms:
        given.count = COUNT
    run(given)


if __name__ == "__main__":
    main()
