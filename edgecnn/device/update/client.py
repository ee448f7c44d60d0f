"""python-tuf's Updater (5.1 in Debian 13, or 7) for one check, using the board's estimate of the time and its verified metadata."""

import inspect
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.metadata import Metadata, Root, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from edgecnn.device.update.channel import DATE, MAX_METADATA, Entry, entries_of
from edgecnn.device.update.fetchers import Fetcher
from edgecnn.device.update.trust import Held
from edgecnn.errors import UpdateError, first_line
from edgecnn.files import output_errors


class Client:
    """A board's metadata, updated from a repository, and its targets. `held` is the metadata verified so far, even after a failure."""

    def __init__(self, held: Held, fetcher: Fetcher, base: str, folder: Path) -> None:
        self.held = held
        self._fetcher, self._base, self._folder = fetcher, base, folder
        self._updater: Updater

    def refresh(self, clock: datetime, age_s: int) -> datetime:
        """Verify new metadata, and return the time that was assumed. Raises UpdateError.

        `clock` may be wrong; `age_s` is the minimum number of seconds since the held timestamp was verified.
        """
        try:
            before = self.held.root
            with output_errors(self._folder):
                try:
                    return self._refresh(clock, age_s)
                except exceptions.ExpiredMetadataError:
                    if self.held.root == before:
                        raise
                    # the new root may have other keys, so that the held timestamp and its date, however late, no longer count
                    return self._refresh(clock, age_s)
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise UpdateError(in_words(error, self._fetcher.last, clock)) from error

    def _refresh(self, clock: datetime, age_s: int) -> datetime:
        date = dated(self.held)
        now = max(clock, date + timedelta(seconds=age_s)) if date else clock
        folder = self._folder / "metadata"
        folder.mkdir(exist_ok=True)
        for path, data in zip(_paths(folder), self.held, strict=True):
            path.unlink(missing_ok=True)
            if data:
                path.write_bytes(data)
        # 7 requires the root as an argument, 5.1 reads it from its folder
        named = "bootstrap" in inspect.signature(Updater).parameters
        root: dict[str, Any] = {"bootstrap": self.held.root} if named else {}
        limits: dict[str, Any] = {f"{role}_max_length": most for role, most in MAX_METADATA.items()}
        self._updater = Updater(
            str(folder),
            f"{self._base}/metadata/",
            str(self._folder),
            f"{self._base}/targets/",
            self._fetcher,
            UpdaterConfig(**limits),
            **root,
        )
        # python-tuf's Updater has no clock argument yet; it keeps the time here
        self._updater._trusted_set.reference_time = now
        try:
            self._updater.refresh()
        finally:
            self.held = Held(*(path.read_bytes() if path.exists() else b"" for path in _paths(folder)))
        # the new timestamp may be later than the clock; then nothing may have expired by that time
        date = dated(self.held)
        if date and date > now:
            for role, data in zip(Held._fields, self.held, strict=True):
                if Metadata.from_bytes(data).signed.is_expired(date):
                    raise exceptions.ExpiredMetadataError(f"{role}.json is expired")
            now = date
        return now

    def entries(self, channel: str) -> tuple[Entry, ...]:
        """Return a channel's releases, after `refresh`; UpdateError if one of them is not valid."""
        return entries_of(Metadata[Targets].from_bytes(self.held.targets).signed.targets, channel)

    def download(self, entry: Entry, path: Path) -> None:
        """Download a release's bundle to a path, and make its folder, unless it is already there intact. Raises UpdateError."""
        try:
            target = self._updater.get_targetinfo(entry.path)
            if target is None:
                raise UpdateError(f"the repository has no {entry.path}")
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if self._updater.find_cached_target(target, str(path)) is None:
                    self._updater.download_target(target, str(path))
        except (exceptions.RepositoryError, exceptions.DownloadError) as error:
            raise UpdateError(in_words(error, entry.path)) from error


def _paths(folder: Path) -> list[Path]:
    return [folder / f"{role}.json" for role in Held._fields]


def dated(held: Held) -> datetime | None:
    """Return the signing time in the held timestamp, or None if it has none or is not signed with the held root's keys."""
    try:
        root, timestamp = (Metadata.from_bytes(data) for data in (held.root, held.timestamp))
        if not isinstance(root.signed, Root) or not isinstance(timestamp.signed, Timestamp):
            return None
        root.signed.verify_delegate(Timestamp.type, timestamp.signed_bytes, timestamp.signatures)
        date = datetime.fromisoformat(timestamp.signed.unrecognized_fields[DATE])
        return date.astimezone(UTC).replace(microsecond=0)
    except (exceptions.RepositoryError, KeyError, TypeError, ValueError, OverflowError):
        return None


AGAIN = "Copy the whole repository to the server again"


def in_words(error: Exception, file: str, clock: datetime | None = None) -> str:
    """Return why TUF refused something, perhaps the file that came last, and what to do, without the last full stop."""
    file = file or "the metadata held here"
    text = re.sub(
        r"^Observed (length|hash) (\w+) does not match expected \1", r"its \1 is \2, expected", first_line(error)
    )
    clocked = f"; this board's clock shows {clock:%F %R} UTC" if clock else ""
    for kind, words, advice in (
        (
            exceptions.ExpiredMetadataError,
            f"the metadata has expired{clocked}: ",
            "If the clock is right, run edgecnn release refresh on the workstation, and copy the repository to the server again",
        ),
        (exceptions.BadVersionNumberError, "the metadata is older than what this board has already verified: ", AGAIN),
        (
            exceptions.UnsignedMetadataError,
            f"{file} lacks signatures from the right keys: ",
            "If the repository is a new one, copy its metadata/1.root.json to /etc/edgecnn/root.json; if not, "
            "somebody else may have written it",
        ),
        (exceptions.LengthOrHashMismatchError, f"{file} is not the one that was signed: ", AGAIN),
        (exceptions.RepositoryError, f"{file} is not valid: ", AGAIN),
        (
            exceptions.DownloadError,
            "",
            "Check the address or folder (from in update.toml), and that it can be reached from here",
        ),
    ):
        if isinstance(error, kind):
            return f"{words}{text}. {advice}"
    return text
