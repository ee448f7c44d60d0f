"""Change a file of a release repository 20,000 times at random, and observe a board: it must accept none of the changes and never crash.

Three boards run in separate processes. One gets changes made without a key. One gets changes signed by a thief with the targets and online
keys, which must not crash it. The third checks no signatures, to prove that the bench notices.

"As released" means that the board still got the bundle: the change affected something it did not need, such as a missing newer root.

    python tools/bench/mutated_updates.py
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from shutil import copytree

from harness import ROOT, about, finish, parser, ran
from mutated_board import PASSPHRASE

from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.release import operations
from edgecnn.release.keys import Keys
from edgecnn.release.repository import Repository

BUNDLES = ("fashion-resnet_25kb", "cifar10-resnet_25kb")


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "mutated_updates")
    made.add_argument("--n", type=int, default=20_000, help="changes without a key (default: 20,000)")
    made.add_argument("--seed", type=int, default=1, help="of the changes (default: 1)")
    arguments = made.parse_args()
    boards = {
        "without a key": (arguments.n, []),
        "signed by a thief": (arguments.n // 4, ["--signed"]),
        "no signature checked": (max(50, arguments.n // 40), ["--trusting"]),
    }
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        for board, (n, options) in boards.items():
            script: list[str | Path] = [sys.executable, ROOT / "tools/bench/mutated_board.py", folder]
            peak = ran([*script, "--n", str(n), "--seed", str(arguments.seed), *options], folder / "out").peak_mib
            results[board] = {"n": n, "peak_mib": round(peak, 1), **json.loads((folder / "out").read_text())}
    report = {**about("mutated_updates", seed=arguments.seed), "boards": results}
    columns = ("n", "refused", "as released", "accepted", "crashed", "peak_mib")
    rows = [(board, *(f"{result.get(column, 0):,}" for column in columns)) for board, result in results.items()]
    finish(arguments.out, report, ("changes", *columns), rows)


def make(folder: Path) -> None:
    """Write a repository's state before and after a release and a new root, and its keys."""
    repository, keys = Repository(folder / "after"), Keys([folder / "keys"], lambda name, new: PASSPHRASE.decode())
    operations.init(repository.folder, keys)
    for number, name in enumerate(BUNDLES, 1):
        shipped = read_bundle(ROOT / "models" / name / f"{name}.edgecnn")
        numbered = folder / f"{name}.edgecnn"
        write_bundle(numbered, dataclasses.replace(shipped.manifest, serial=number, files={}), dict(shipped.files))
        operations.add(repository, keys, read_bundle(numbered), operations.Offer(channel="door", share=100))
        if number == 1:
            copytree(repository.folder, folder / "before")
            operations.refresh(repository, keys, "root")


if __name__ == "__main__":
    main()
