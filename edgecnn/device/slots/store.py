"""Releases in a folder: `releases/SHA256/model.edgecnn`, and `current`, the record that names the one in use.

The record is authoritative, and each change takes effect with its atomic rename. A release that it does not name does not exist, even if
files of it remain. The folder may belong to the service's user, so files are opened through `Disk` and their content is checked.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from edgecnn.bundle.canonical import MAX_BYTES
from edgecnn.bundle.read import parse_bundle, read_bundle
from edgecnn.bundle.verdict import PASSED
from edgecnn.device.slots import RECORD, ROOT
from edgecnn.device.slots.about import About, about, difference
from edgecnn.device.slots.disk import Disk, read_json, replace
from edgecnn.device.slots.record import SHA256, Slots, activated, added, pruned
from edgecnn.errors import BundleError, SlotError
from edgecnn.files import canonical_json, folder_lock, output_errors
from edgecnn.runtime.default import choose_model
from edgecnn.tables import build, shown, to_json

RELEASES, BUNDLE = "releases", "model.edgecnn"
MAX_RECORD_BYTES = 1 << 20

WAIT_S = 5.0

SHORTEST = 4  # minimum number of SHA-256 digits that name a release


class Store:
    """The releases in one folder. A lock allows one change at a time. Raises OutputError, or SlotError if another change does not end."""

    def __init__(self, root: Path = ROOT, disk: Disk | None = None, *, wait_s: float = WAIT_S) -> None:
        self.root = root
        self._disk = disk or Disk(root)
        self._wait_s = wait_s

    def read(self) -> Slots:
        """Return the record; an empty one if the file does not exist. SlotError if it cannot be read."""
        path = self.root / RECORD

        def damaged(what: object) -> SlotError:
            return SlotError(f"{path} is damaged: {what}. Remove it, and add the bundles again.")

        try:
            table = read_json(self._disk, path, MAX_RECORD_BYTES, damaged)
        except (FileNotFoundError, NotADirectoryError):
            return Slots()
        except OSError as error:
            raise SlotError(
                f"cannot read {path}: {error.strerror}. If a service uses it, only root may read it."
            ) from None
        slots = build(Slots, table, SlotError, str(path))
        for name in (*slots.releases, *slots.chain):
            if not SHA256.fullmatch(name):
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
        if release is None or not self.whole(release):
            return None
        try:
            with self._disk.open(self.path(release)) as file:
                return about(parse_bundle(file.read(MAX_BYTES), self.path(release)))
        except (OSError, SlotError, BundleError):
            return None

    def change(self, transition: Callable[[Slots], Slots]) -> Slots:
        """Change the record with a function of `record`, and return it."""
        with self._locked():
            return self._commit(transition)

    def add(self, source: Path) -> tuple[str, Slots]:
        """Copy a bundle to the releases; return its release and the record. BundleError if it is damaged, EngineError if it cannot run."""
        bundle = read_bundle(source)
        manifest, release = bundle.manifest, bundle.sha256
        choose_model(manifest)
        with self._locked():
            if not self.whole(release):
                path = self.path(release)
                with output_errors(path):
                    self._make_folder(self.root / RELEASES)
                    self._make_folder(path.parent)
                    replace(self._disk, path, bundle.data)
            return release, self._commit(lambda slots: added(slots, release, manifest.name, manifest.serial))

    def activate(
        self, name: str, *, older: bool = False, others: bool = False, accept: bool = False
    ) -> tuple[str, Slots]:
        """Put a release in use, named by the first digits of its SHA-256; return it and the record.

        `older` allows a smaller serial number, `others` other classes, `accept` a release that did not pass against the previous model.
        """
        with self._locked():
            slots = self.read()
            release = find(slots, name)
            new, old = self.about(release), self.about(slots.current)
            if new is None:
                raise SlotError(f"the bundle of release {release[:12]} is missing or damaged. Add it again.")
            if old and not others and (what := difference(new, old)):
                raise SlotError(
                    f"{slots.releases[release].name} has other classes than the release in use: it {what}. "
                    "To put it in use anyway, add --other-classes"
                )
            if not accept and new.verdict not in ("", PASSED):
                raise SlotError(
                    f"{slots.releases[release].name} is {new.verdict}: {new.why}. To put it in use anyway, add --accept"
                )
            return release, self._commit(lambda slots: activated(slots, release, older=older))

    def prune(self, keep: int) -> tuple[list[str], Slots]:
        """Remove the releases that `record.pruned` drops; return them and the record."""
        with self._locked():
            slots = self._commit(lambda slots: pruned(slots, keep))
            folder, gone = self.root / RELEASES, []
            with output_errors(folder), contextlib.suppress(FileNotFoundError):
                for name in self._disk.names(folder):
                    if SHA256.fullmatch(name) and name not in slots.releases:
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

    def _commit(self, transition: Callable[[Slots], Slots]) -> Slots:
        before = self.read()
        after = transition(before)
        if after != before:
            path = self.root / RECORD
            with output_errors(path):
                replace(self._disk, path, canonical_json(to_json(after)).encode())
        return after

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder if necessary, and hold its lock. The lock ends with the process."""
        busy = f"another command is changing the releases in {self.root}. Try again when it has finished."
        with contextlib.ExitStack() as held:
            with output_errors(self.root):
                if not self.root.is_dir():
                    self._make_folder(self.root)
                held.enter_context(folder_lock(self.root, SlotError(busy), self._wait_s))
            yield


def find(slots: Slots, name: str) -> str:
    """Return the release whose SHA-256 begins with the digits in `name`; SlotError unless there is exactly one."""
    matches = [release for release in slots.releases if len(name) >= SHORTEST and release.startswith(name.lower())]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(release[:12] for release in slots.releases) or "none"
    problem = f"{len(matches)} releases begin" if matches else "no release begins"
    raise SlotError(f"{problem} with {name!r}; expected at least {SHORTEST} digits of one SHA-256. Known: {known}.")
