"""Releases in a folder: `releases/SHA256/model.edgecnn`, and `current`, the record that names the one in use.

The record is authoritative, and each change takes effect with its atomic rename. A release that it does not name does not exist, even if
files of it remain. The folder may belong to the service's user, so files are opened through `Disk` and their content is checked.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from edgecnn.bundle.canonical import MAX_BYTES
from edgecnn.bundle.read import Bundle, parse_bundle, read_bundle
from edgecnn.bundle.verdict import bad_reason, objection
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


class Use(NamedTuple):
    """How a release is put in use: `older` allows a smaller serial number, `others` other classes, and `accept`, a reason, one without a
    verdict that it may replace the release in use. A `signed` release of a channel needs no verdict here: its signer saw it."""

    older: bool = False
    others: bool = False
    accept: str = ""
    signed: bool = False


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

    def change(self, transition: Callable[[Slots], Slots]) -> Slots:
        """Change the record with a function of `record`, and return it."""
        with self._locked():
            return self._commit(transition)

    def add(self, source: Path, use: Use | None = None) -> tuple[str, Slots]:
        """Copy a bundle to the releases, and put it in use if `use` says how; return its release and the record.

        Nothing is added if it may not be put in use. BundleError if it is damaged, EngineError if it cannot run here.
        """
        bundle = read_bundle(source)
        manifest, release = bundle.manifest, bundle.sha256
        choose_model(manifest)
        with self._locked():

            def transition(slots: Slots) -> Slots:
                slots = added(slots, release, manifest.name, manifest.serial)
                return self._used(slots, release, bundle, use) if use else slots

            transition(self.read())
            if not self.whole(release):
                path = self.path(release)
                with output_errors(path):
                    self._make_folder(self.root / RELEASES)
                    self._make_folder(path.parent)
                    replace(self._disk, path, bundle.data)
            return release, self._commit(transition)

    def activate(self, name: str, use: Use = Use()) -> tuple[str, Slots]:
        """Put a release in use, named by the first digits of its SHA-256; return it and the record."""
        with self._locked():
            release = find(self.read(), name)
            bundle = self._bundle(release)
            if bundle is None:
                raise SlotError(f"the bundle of release {release[:12]} is missing or damaged. Add it again.")
            return release, self._commit(lambda slots: self._used(slots, release, bundle, use))

    def _used(self, slots: Slots, release: str, bundle: Bundle, use: Use) -> Slots:
        """Return the record with a release in use; SlotError if it may not be put in use this way."""
        new, old, accepted = about(bundle), self.about(slots.current), use.accept
        if old and not (use.others or use.signed) and (what := difference(new, old)):
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
        return activated(slots, release, older=use.older, accepted=accepted, signed=use.signed)

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
                for folder in (*reversed(self.root.parents), self.root):
                    if not folder.is_dir():
                        self._make_folder(folder)
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
