"""Releases in a folder: `releases/SHA256/model.edgecnn`, and `current`, the record that names the one in use; and the choice at the start.

The record is authoritative, and each change takes effect with its atomic rename. A release that it does not name does not exist, even if
files of it remain. The folder may belong to the service's user, so files are opened through `Disk` and their content is checked.
"""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from edgecnn.bundle.evidence import Verdict, bad_reason, objection, verdict_of
from edgecnn.bundle.file import MAX_BYTES, Bundle, parse_bundle, read_bundle
from edgecnn.device.slots import RECORD, ROOT, record
from edgecnn.errors import BundleError, EngineError, OutputError, SlotError
from edgecnn.files import canonical_json, folder_lock, output_errors
from edgecnn.region import WHOLE, Region, region_text
from edgecnn.runtime.default import choose_model
from edgecnn.tables import build, shown, to_json

SHOWN = 5


class About(NamedTuple):
    """A bundle's own description. The accuracy and its 95 % interval are for the model that this device runs, on `images` test images."""

    labels: tuple[str, ...]
    accuracy: float | None
    images: int
    fit: str
    region: Region
    interval: tuple[float, float] | None = None
    verdict: Verdict = Verdict()


def about(bundle: Bundle) -> About:
    """Describe a bundle. Its parity report is treated as untrusted text."""
    manifest = bundle.manifest
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    images = 0
    with contextlib.suppress(EngineError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        digest = manifest.files[choose_model(manifest).model.file]
        report = json.loads(bundle.files["parity.json"])
        found = [model for model in report["models"] if model["sha256"] == digest]
        if found and 0 <= float(found[0]["accuracy"]) <= 1:
            accuracy, images = float(found[0]["accuracy"]), int(report["data"]["test_images"])
            low, high = map(float, found[0]["accuracy_interval"])
            interval = (low, high) if 0 <= low <= high <= 1 else None
    return About(
        manifest.labels, accuracy, images, manifest.input.fit, manifest.input.region, interval, verdict_of(bundle)
    )


def class_difference(new: About, old: About) -> str:
    """Return which classes were added and removed, such as "adds cat, and lacks dog"; "" if they are the same."""
    added = [name for name in new.labels if name not in old.labels]
    gone = [name for name in old.labels if name not in new.labels]
    return ", and ".join(f"{verb} {_some(names)}" for verb, names in (("adds", added), ("lacks", gone)) if names)


def about_text(about: About) -> dict[str, str]:
    accuracy = "unknown" if about.accuracy is None else f"{about.accuracy:.2%} of {about.images:,} test images"
    return {
        "classes": f"{len(about.labels)}: {_some(about.labels)}",
        "accuracy": accuracy,
        "fit": about.fit,
        "region": "the whole image" if about.region == WHOLE else region_text(about.region),
        **({"verdict": f"{about.verdict.word}: {about.verdict.why}"} if about.verdict.word else {}),
    }


def _some(names: Sequence[str]) -> str:
    shown, more = ", ".join(names[:SHOWN]), len(names) - SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


RELEASES, BUNDLE = "releases", "model.edgecnn"
MAX_RECORD_BYTES = 1 << 20

WAIT_S = 5.0

SHORTEST = 4  # minimum number of SHA-256 digits that name a release


class Use(NamedTuple):
    """How a release is put in use: `older` allows a smaller serial number, `others` other classes, and `accept`, a reason, one without a
    verdict that it may replace the release in use. A `signed` release of a channel needs no verdict here: its signer saw it."""

    older: bool = False
    others: bool = False
    accept: str = ""
    signed: bool = False


class Store:
    """The releases in one folder. A lock allows one change at a time. Raises OutputError, or SlotError if another change does not end."""

    def __init__(self, root: Path = ROOT, disk: record.Disk | None = None, *, wait_s: float = WAIT_S) -> None:
        self.root = root
        self._disk = disk or record.Disk(root)
        self._wait_s = wait_s

    def read(self) -> record.Slots:
        """Return the record; an empty one if the file does not exist. SlotError if it cannot be read."""
        path = self.root / RECORD

        def damaged(what: object) -> SlotError:
            return SlotError(f"{path} is damaged: {what}. Remove it, and add the bundles again.")

        try:
            table = record.read_json(self._disk, path, MAX_RECORD_BYTES, damaged)
        except (FileNotFoundError, NotADirectoryError):
            return record.Slots()
        except OSError as error:
            raise SlotError(
                f"cannot read {path}: {error.strerror}. If a service uses it, only root may read it."
            ) from None
        slots = build(record.Slots, table, SlotError, str(path))
        for name in (*slots.releases, *slots.chain):
            if not record.SHA256.fullmatch(name):
                raise damaged(f"{shown(name)} is not a SHA-256")
            if name not in slots.releases:
                raise damaged(f"chain names {name}, which is not a release")
        return slots

    def path(self, release: str) -> Path:
        return self.root / RELEASES / release / BUNDLE

    def whole(self, release: str) -> bool:
        """Return whether a release's bundle exists, with every bit unchanged."""
        import hashlib  # here, since it loads OpenSSL

        try:
            with self._disk.open(self.path(release)) as file:
                size = os.fstat(file.fileno()).st_size
                return size <= MAX_BYTES and hashlib.file_digest(file, "sha256").hexdigest() == release
        except (OSError, SlotError):
            return False

    def about(self, release: str | None) -> About | None:
        """Return a release's own description; None if its bundle is missing or damaged."""
        bundle = self._bundle(release)
        return about(bundle) if bundle else None

    def _bundle(self, release: str | None) -> Bundle | None:
        if release is None or not self.whole(release):
            return None
        try:
            with self._disk.open(self.path(release)) as file:
                return parse_bundle(file.read(MAX_BYTES), self.path(release))
        except (OSError, SlotError, BundleError):
            return None

    def change(self, transition: Callable[[record.Slots], record.Slots]) -> record.Slots:
        """Change the record with a function of `record`, and return it."""
        with self._locked():
            return self._commit(transition)

    def add(self, source: Path, use: Use | None = None) -> tuple[str, record.Slots]:
        """Copy a bundle to the releases, and put it in use if `use` says how; return its release and the record.

        Nothing is added if it may not be put in use. BundleError if it is damaged, EngineError if it cannot run here.
        """
        bundle = read_bundle(source)
        manifest, release = bundle.manifest, bundle.sha256
        choose_model(manifest)
        with self._locked():

            def transition(slots: record.Slots) -> record.Slots:
                slots = record.added(slots, release, manifest.name, manifest.serial)
                return self._used(slots, release, bundle, use) if use else slots

            transition(self.read())
            if not self.whole(release):
                path = self.path(release)
                with output_errors(path):
                    self._make_folder(self.root / RELEASES)
                    self._make_folder(path.parent)
                    record.replace(self._disk, path, bundle.data)
            return release, self._commit(transition)

    def activate(self, name: str, use: Use = Use()) -> tuple[str, record.Slots]:
        """Put a release in use, named by the first digits of its SHA-256; return it and the record."""
        with self._locked():
            release = find_release(self.read(), name)
            bundle = self._bundle(release)
            if bundle is None:
                raise SlotError(f"the bundle of release {release[:12]} is missing or damaged. Add it again.")
            return release, self._commit(lambda slots: self._used(slots, release, bundle, use))

    def _used(self, slots: record.Slots, release: str, bundle: Bundle, use: Use) -> record.Slots:
        """Return the record with a release in use; SlotError if it may not be put in use this way."""
        new, old, accepted = about(bundle), self.about(slots.current), use.accept
        if old and not (use.others or use.signed) and (what := class_difference(new, old)):
            raise SlotError(
                f"{bundle.manifest.name} has other classes than the release in use: it {what}. "
                "To put it in use anyway, add --other-classes"
            )
        if not use.signed:
            before = slots.current or slots.last
            serial = slots.releases[before].serial if before in slots.releases else 0
            why = (
                ""
                if release in (*slots.chain, before)
                else objection(bundle, {before: self.path(before)} if before else {}, serial + 1)
            )
            if why and not accepted:
                raise SlotError(f"{bundle.manifest.name}: {why}. To put it in use anyway, on record: --accept REASON")
            if wrong := bad_reason(accepted):
                raise SlotError(wrong)
            accepted = accepted if why else ""
        return record.activated(slots, release, older=use.older, accepted=accepted, signed=use.signed)

    def prune(self, keep: int) -> tuple[list[str], record.Slots]:
        """Remove the releases that `record.pruned` drops; return them and the record."""
        with self._locked():
            slots = self._commit(lambda slots: record.pruned(slots, keep))
            folder, gone = self.root / RELEASES, []
            with output_errors(folder), contextlib.suppress(FileNotFoundError):
                for name in self._disk.names(folder):
                    if record.SHA256.fullmatch(name) and name not in slots.releases:
                        for file in self._disk.names(folder / name):
                            self._disk.remove(folder / name / file)
                        self._disk.remove_folder(folder / name)
                        gone.append(name)
                if gone:
                    self._disk.sync(folder)
            return gone, slots

    def _make_folder(self, path: Path) -> None:
        """Make a folder that survives a power cut. An existing one is synced too: an earlier power cut may have left it unsynced."""
        self._disk.make_folder(path)
        self._disk.sync(path.parent)

    def _commit(self, transition: Callable[[record.Slots], record.Slots]) -> record.Slots:
        before = self.read()
        after = transition(before)
        if after != before:
            path = self.root / RECORD
            with output_errors(path):
                record.replace(self._disk, path, canonical_json(to_json(after)).encode())
        return after

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder if necessary, and hold its lock. The lock ends with the process."""
        busy = f"another command is changing the releases in {self.root}. Try again when it has finished."
        with contextlib.ExitStack() as held:
            with output_errors(self.root):
                for folder in (*reversed(self.root.parents), self.root):
                    if not folder.is_dir():
                        self._make_folder(folder)
                held.enter_context(folder_lock(self.root, SlotError(busy), self._wait_s))
            yield


def find_release(slots: record.Slots, name: str) -> str:
    """Return the release whose SHA-256 begins with the digits in `name`; SlotError unless there is exactly one."""
    matches = [release for release in slots.releases if len(name) >= SHORTEST and release.startswith(name.lower())]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(release[:12] for release in slots.releases) or "none"
    problem = f"{len(matches)} releases begin" if matches else "no release begins"
    raise SlotError(f"{problem} with {name!r}; expected at least {SHORTEST} digits of one SHA-256. Known: {known}.")


LOST = "its bundle is missing or damaged"
UNCOUNTED = "its start cannot be counted"


class Choice(NamedTuple):
    """The release to run, the releases refused before it, and problems with the disk or the record."""

    release: str | None
    name: str
    pending: bool
    refused: Mapping[str, record.Release]
    problems: tuple[str, ...]


def choose_for_start(store: Store, avoid: Collection[str] = ()) -> Choice:
    """Count a start and choose its release: the one in use, or the previous one if that is spent, missing, damaged or in `avoid`.

    A pending release does not run if its start cannot be counted, since a release that crashes would then restart forever.
    """
    before = record.Slots()
    problems: list[str] = []
    refused: dict[str, record.Release] = {}

    def count(slots: record.Slots) -> record.Slots:
        nonlocal before
        before = slots
        return record.after_start(slots)

    try:
        slots = store.change(count)
        if before.current is not None and slots.current != before.current:
            refused[before.current] = slots.releases[before.current]
    except (OutputError, SlotError) as error:
        problems.append(str(error))
        try:
            slots = store.read()
        except SlotError:
            slots = record.Slots()
        if slots.current is not None and slots.pending:
            release = slots.current
            slots = record.after_failure(slots, release, UNCOUNTED)
            refused[release] = slots.releases[release]
    while slots.current is not None and (slots.current in avoid or not store.whole(slots.current)):
        release = slots.current
        slots = record.after_failure(slots, release, LOST)
        if release not in avoid:
            refused[release] = slots.releases[release]
            problems += condemn(store, release, LOST)
    name = slots.releases[slots.current].name if slots.current else ""
    return Choice(slots.current, name, slots.pending, refused, tuple(problems))


def approve(store: Store, release: str) -> list[str]:
    """Record that a release has proved itself; return the reason if that fails."""
    return _recorded(store, lambda slots: record.after_proof(slots, release))


def condemn(store: Store, release: str, reason: str) -> list[str]:
    """Record that a release is bad, so that the previous one comes back; return the reason if that fails."""
    return _recorded(store, lambda slots: record.after_failure(slots, release, reason))


def _recorded(store: Store, transition: Callable[[record.Slots], record.Slots]) -> list[str]:
    try:
        store.change(transition)
    except (OutputError, SlotError) as error:
        return [str(error)]
    return []
