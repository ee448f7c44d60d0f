"""A board that checks a repository again and again, each time with one changed file. test_mutations.py starts it.

It imports only what a board needs for the check. Signing code is imported only to play a thief who has the keys.
"""

import argparse
import contextlib
import copy
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError

from edgecnn.device.update.board import Held
from edgecnn.device.update.client import Client, FolderFetcher
from edgecnn.errors import EdgeCNNError
from edgecnn.files import sha256

SHOWN = 5  # problems to show
MAX_BYTES = 1 << 21
MAX_ITEMS = 2000  # of a repeated list: the test's own data count as memory too
PASSPHRASE = "five words of a test"

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 99, 2**31, 2**63, 10**1000, 0.5, float("inf"), float("nan"), "", "a" * 1000, "\ud800", "../../etc/passwd",
    "2026-13-45T99:99:99Z", "9999-12-31T23:59:59Z", "1970-01-01T00:00:00Z", "0" * 64, "targets", "root", [], {}, [[]], {"": {}},
)  # fmt: skip


def mutated_bytes(rng: random.Random, data: bytes, others: list[bytes]) -> bytes | None:
    """Return a file as an attacker or a bad disk might leave it; None if it is deleted."""
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 8, 64, 4096)))
    way = rng.randrange(9)
    if way == 0:
        return None
    if way == 1:
        return data[:start]
    if way == 2:
        return data[:start] + rng.randbytes(rng.choice((1, 3, 100))) + data[start:]
    if way == 3:
        return data[:start] + data[end:]
    if way == 4:
        times = rng.choice((2, 100, MAX_BYTES // max(1, end - start)))
        return (data[:start] + data[start:end] * times + data[end:])[:MAX_BYTES]
    if way == 5:
        return rng.choice(others)
    if way == 6:
        return rng.randbytes(rng.choice((0, 1, 1000, MAX_BYTES)))
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container within a JSON value with each of its keys or indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


def mutated_table(rng: random.Random, table: Any) -> Any:
    """Return metadata with one to three values replaced, removed or repeated, or with unknown keys."""
    table = copy.deepcopy(table)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(table))
        if not found:
            break
        container, key = rng.choice(found)
        way = rng.randrange(6)
        if way == 0:
            del container[key]
        elif way == 1 and isinstance(container[key], list):
            container[key] = (container[key] * rng.choice((0, 2, 1000)))[:MAX_ITEMS]
        elif way == 2 and isinstance(container, dict):
            container[rng.choice(("x", "_type", "keyids", "version", "\x00", "../x"))] = container[key]
        elif way == 3:
            container[key] = (
                container[rng.choice(list(container))] if isinstance(container, dict) else {"0": container[key]}
            )
        elif way == 4 and isinstance(container[key], int):
            container[key] += rng.choice((-1, 1, 100))
        else:
            container[key] = copy.deepcopy(rng.choice(HOSTILE))
    return table


def as_json(rng: random.Random, table: Any) -> bytes:
    """Return metadata as JSON, sometimes with content that costs a parser as much memory or depth as a file of its size can."""
    text = json.dumps(table)
    if rng.random() < 0.02:
        bomb = rng.choice(
            (
                "[" * 50_000 + "]" * 50_000,
                f"[{'[],' * 300_000}0]",
                f"[{'{},' * 300_000}0]",
                "[" + "1e9," * 200_000 + "0]",
            )
        )
        text = text.replace("{", f'{{"x":{bomb},', 1)
    return text.encode(errors="surrogatepass")


class Subject:
    """The repositories before and after a release, and the state of a board that knows the earlier one."""

    def __init__(self, before: Path, after: Path, clock: datetime) -> None:
        self.folder, self.clock = after, clock
        files = [path for path in after.rglob("*") if path.is_file()]
        self.files = {str(path.relative_to(after)): path.read_bytes() for path in files}
        self.metadata = [name for name in self.files if name.endswith(".json")]
        self.read = [self.newest(role) for role in Held._fields]
        self.read += [name for name in self.files if name.endswith("-2.edgecnn")]
        self.targets = {sha256(data) for name, data in self.files.items() if name.startswith("targets/")}
        genuine = [
            *(path.read_bytes() for path in before.rglob("*.json")),
            *(self.files[name] for name in self.metadata),
        ]
        self.genuine = [Metadata.from_bytes(data).signed for data in genuine]
        self.first = Held((before / "metadata/1.root.json").read_bytes())
        self.known = self.check(self.first, before)[0]
        assert all(self.known), "a board must accept the earlier repository"
        assert self.check(self.first, after)[1] and self.check(self.known, after)[1], "and the later one"

    def check(self, held: Held, folder: Path) -> tuple[Held, str]:
        """Verify a repository and download its newest release. Returns the board's new state, and the download's SHA-256."""
        with tempfile.TemporaryDirectory() as name:
            scratch = Path(name)
            client = Client(held, FolderFetcher(folder, scratch), str(folder), scratch)
            got = ""
            try:
                client.refresh(self.clock, 0)
                entries = client.entries("door")
                if entries:
                    client.download(entries[-1], scratch / "bundle")
                    got = sha256((scratch / "bundle").read_bytes())
            except EdgeCNNError:
                pass
            return client.held, got

    def newest(self, role: str) -> str:
        """Return the name of a role's newest file."""
        names = [name for name in self.metadata if name.endswith(f"{role}.json")]
        return max(names, key=lambda name: json.loads(self.files[name])["signed"]["version"])

    def hostile(self, held: Held, got: str, signed: bool) -> str:
        """Name anything a board accepted that was not signed (unless a thief signed) or not released; "" for nothing.

        Parts that python-tuf does not read do not count: before it checks a timestamp, it drops entries other than the snapshot.
        """
        for role, data in zip(Held._fields, held, strict=True):
            if signed:
                continue
            try:
                if data and Metadata.from_bytes(data).signed not in self.genuine:
                    return f"{role} was never signed"
            except DeserializationError:
                return f"{role} is not metadata"
        return "a bundle that was not released" if got and got not in self.targets else ""

    def with_files(self, changed: dict[str, bytes | None], held: Held) -> tuple[Held, str]:
        """Check the repository with some of its files changed."""
        try:
            for name, data in changed.items():
                (self.folder / name).unlink(missing_ok=True)
                if data is not None:
                    (self.folder / name).write_bytes(data)
            return self.check(held, self.folder)
        finally:
            for name in changed:
                (self.folder / name).unlink(missing_ok=True)
                if name in self.files:
                    (self.folder / name).write_bytes(self.files[name])


Change = Callable[[random.Random], dict[str, bytes | None]]


def unsigned(subject: Subject) -> Change:
    """Return a function that changes one file without any key: its bytes, or values of its JSON.

    One change in five is one that only a signature can refuse: a timestamp that expires later.
    """
    others = list(subject.files.values())
    timestamp = subject.newest("timestamp")
    later = json.loads(subject.files[timestamp])
    later["signed"]["expires"] = "9999-12-31T23:59:59Z"

    def change(rng: random.Random) -> dict[str, bytes | None]:
        if rng.random() < 0.2:
            return {timestamp: json.dumps(later).encode()}
        name = rng.choice(subject.read)
        data = subject.files[name]
        if name in subject.metadata and rng.random() < 0.5:
            return {name: as_json(rng, mutated_table(rng, json.loads(data)))}
        return {name: mutated_bytes(rng, data, others)}

    return change


def signed(subject: Subject, keys: Path) -> Change:
    """Return a function that changes values of targets, snapshot or timestamp like a thief with their keys, and re-signs all three."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.formats import encode_canonical
    from securesystemslib.signer import CryptoSigner

    names = {role: subject.newest(role) for role in ("targets", "snapshot", "timestamp")}
    signers = {}
    for role in names:
        file = keys / f"{'targets' if role == 'targets' else 'online'}.pem"
        private: Any = load_pem_private_key(file.read_bytes(), PASSPHRASE.encode() if role == "targets" else None)
        signers[role] = CryptoSigner(private)

    def sign(role: str, content: Any) -> bytes:
        signature = {"keyid": signers[role].public_key.keyid, "sig": "00" * 64}
        # content that canonical JSON cannot represent stays unsigned
        with contextlib.suppress(Exception, RecursionError):
            signature = signers[role].sign(str(encode_canonical(content)).encode()).to_dict()
        return json.dumps({"signed": content, "signatures": [signature]}).encode(errors="surrogatepass")

    def change(rng: random.Random) -> dict[str, bytes | None]:
        tables = {role: json.loads(subject.files[name])["signed"] for role, name in names.items()}
        chosen = rng.choice(("targets", "targets", "targets", "snapshot", "timestamp"))
        if chosen == "targets":
            tables["targets"] = mutated_table(rng, tables["targets"])
        data = sign("targets", tables["targets"])
        tables["snapshot"]["meta"]["targets.json"] |= {"length": len(data), "hashes": {"sha256": sha256(data)}}
        if chosen != "targets":
            tables[chosen] = mutated_table(rng, tables[chosen])
        return {
            names["targets"]: data,
            **{names[role]: sign(role, tables[role]) for role in ("snapshot", "timestamp")},
        }

    return change


def without_signatures() -> None:
    """Disable signature checks, to confirm that a board without them is deceived."""
    from tuf.api.metadata import Root

    Root.verify_delegate = lambda *arguments: None  # type: ignore[method-assign]


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, help="has before/ and after/, two states of a repository, and keys/")
    made.add_argument("--n", type=int, default=1000, help="how many changes (default: 1000)")
    made.add_argument("--seed", type=int, default=1, help="of the changes (default: 1)")
    made.add_argument(
        "--signed", action="store_true", help="changes come from a thief with the targets and online keys"
    )
    made.add_argument("--trusting", action="store_true", help="the board checks no signatures")
    arguments = made.parse_args()
    rng = random.Random(arguments.seed)
    subject = Subject(arguments.folder / "before", arguments.folder / "after", datetime.now(UTC))
    if arguments.trusting:
        without_signatures()
    change = signed(subject, arguments.folder / "keys") if arguments.signed else unsigned(subject)
    outcomes: Counter[str] = Counter(accepted=0, crashed=0)
    shown: list[str] = []
    for number in range(arguments.n):
        changed = change(rng)
        try:
            held, got = subject.with_files(changed, rng.choice((subject.first, subject.known)))
            problem = subject.hostile(held, got, arguments.signed)
            outcomes["accepted" if problem else "as released" if got else "refused"] += 1
        except Exception as error:  # noqa: BLE001 (each is a finding)
            problem = f"{type(error).__name__}: {error}"
            outcomes["crashed"] += 1
        if problem and len(shown) < SHOWN:
            shown.append(f"{number} ({', '.join(changed)}): {problem[:300]}")
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
    print(json.dumps({**outcomes, "shown": shown, "peak_mib": peak_kib / 1024}))


if __name__ == "__main__":
    main()
