"""The half of an update that talks to the server: sources of files, one check by python-tuf's Updater, and the fetch.

The Updater is that of 5.1 in Debian 13, or of 7; it uses the board's estimate of the time and its verified metadata.

`run` starts it in a separate process, with the request on standard input and the answer on standard output, both as a line of JSON.
"""

import contextlib
import inspect
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from tuf.api import exceptions
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
    SlowRetrievalError,
)
from tuf.api.metadata import Metadata, Root, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from edgecnn import __version__
from edgecnn.bundle.channel import DATE, MAX_METADATA, Entry, entries_of, target_file
from edgecnn.device.slots.record import Disk
from edgecnn.device.update.board import BoardState, Held, HeldText, decide
from edgecnn.errors import EdgeCNNError, SlotError, UpdateError, first_line
from edgecnn.files import folder_lock, output_errors, write_atomic
from edgecnn.tables import build

MAX_METADATA_BYTES = max(MAX_METADATA.values())
"""Longest metadata that is read into memory, whatever length other metadata gives, since anyone with the online key can sign that."""

CHUNK_BYTES = 1 << 16
TIMEOUT_S = 30.0  # to connect, between two chunks, and to wait because the server says so
BACKOFF_S = 0.5  # the second attempt follows at once, the third after twice this
SLOWEST_BYTES_PER_S = 1000  # slower downloads are given up


@contextlib.contextmanager
def deadline(seconds: float, late: Exception) -> Iterator[None]:
    """Raise `late` in the block after some seconds, whatever it waits for. Only for the main thread, since it is by a signal.

    A timeout of a socket is no limit: it starts again with each byte.
    """

    def stop(*_: object) -> None:
        raise late

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Retries(urllib3.Retry):
    """Retries after as long as the server's Retry-After says, but at most TIMEOUT_S."""

    def parse_retry_after(self, retry_after: str) -> float:
        try:
            return min(super().parse_retry_after(retry_after), TIMEOUT_S)
        except (ValueError, OverflowError):  # too many digits, or a date that no clock has
            return TIMEOUT_S


class Fetcher(FetcherInterface):
    """A FetcherInterface that keeps unfinished files in our own folder, since /tmp is often in memory."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.last = ""
        """The name of the file that was requested last."""

    def download_bytes(self, url: str, max_length: int) -> bytes:
        return super().download_bytes(url, min(max_length, MAX_METADATA_BYTES))

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile(dir=self._scratch) as file:
            self._fill(file, url, max_length)
            yield file

    def _fill(self, file: IO[bytes], url: str, max_length: int) -> int:
        """Complete a file from whatever it already contains, and return its length. Never writes more than `max_length` bytes."""
        self.last = _last(url)
        for chunk in self._chunks(file, url, max_length):
            if file.tell() + len(chunk) > max_length:
                raise DownloadLengthMismatchError(f"{_last(url)} has more than the allowed {max_length:,} bytes")
            file.write(chunk)
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        return length

    @abstractmethod
    def _chunks(self, file: IO[bytes], url: str, max_length: int) -> Iterator[bytes]:
        """Yield the chunks that follow the file's content; if the download cannot resume, empty the file first. Raises DownloadError."""

    def _fetch(self, url: str) -> Iterator[bytes]:  # part of the interface, but all downloads go through download_file
        raise NotImplementedError


class FolderFetcher(Fetcher):
    """Files in a folder, addressed by full paths. It refuses links and special files, and reads no file beyond its limit."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        super().__init__(scratch)
        self._disk = Disk(folder)

    def _chunks(self, file: IO[bytes], url: str, max_length: int) -> Iterator[bytes]:
        try:
            with self._disk.open(Path(url)) as source:
                while chunk := source.read(min(CHUNK_BYTES, max_length + 1)):
                    yield chunk
        except FileNotFoundError:
            raise DownloadHTTPError(f"{url} does not exist", 404) from None
        except (OSError, SlotError) as error:
            raise DownloadError(f"cannot read {url}: {getattr(error, 'strerror', None) or error}") from None


class HttpFetcher(Fetcher):
    """Files on a server. New roots stay in `roots`. A partly downloaded target stays in `parts`, and the next attempt resumes there."""

    def __init__(self, address: str, scratch: Path, roots: Path, parts: Path) -> None:
        super().__init__(scratch)
        self._roots, self._parts = roots, parts
        url = urlsplit(address)
        self._headers = urllib3.make_headers(user_agent=f"edgecnn/{__version__}")
        if url.username is not None:
            self._headers |= urllib3.make_headers(basic_auth=f"{unquote(url.username)}:{unquote(url.password or '')}")
        proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
        retries = Retries(2, redirect=3, backoff_factor=BACKOFF_S, raise_on_redirect=True)
        settings: dict[str, Any] = {"retries": retries, "timeout": urllib3.Timeout(TIMEOUT_S), "maxsize": 1}
        self._pool = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)

    def download_bytes(self, url: str, max_length: int) -> bytes:
        data = super().download_bytes(url, max_length)
        if url.endswith(".root.json"):
            write_atomic(self._roots / _last(url), data)
        return data

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        if url.endswith(".json"):
            with super().download_file(url, max_length) as file:
                yield file
            return
        part = self._parts / _last(url)
        with part.open("a+b") as file:
            length = self._fill(file, url, max_length)
            if length < max_length:
                raise DownloadError(_ended(url, length))
            try:
                yield file
            except LengthOrHashMismatchError:
                part.unlink()  # the wrong byte may be from an earlier attempt, so the next one starts over
                raise
        part.unlink()

    def _fill(self, file: IO[bytes], url: str, max_length: int) -> int:
        """Complete a file as for any source; its redirects, headers, attempts and waits have one deadline."""
        limit_s = TIMEOUT_S + max_length / SLOWEST_BYTES_PER_S
        slow = f"the server did not send {_last(url)} within {limit_s:.0f} s"
        with deadline(limit_s, SlowRetrievalError(slow)):
            return super()._fill(file, url, max_length)

    def _chunks(self, file: IO[bytes], url: str, max_length: int) -> Iterator[bytes]:
        held = file.seek(0, os.SEEK_END)
        if held >= max_length:
            return
        headers = {**self._headers, "Range": f"bytes={held}-"} if held else self._headers
        response = None
        try:
            response = self._pool.request("GET", url, headers=headers, preload_content=False, decode_content=False)
            begins = response.headers.get("Content-Range", "").startswith(f"bytes {held}-")
            goes_on = held and response.status == 206 and begins
            if held and not goes_on:
                file.truncate(file.seek(0))
            if not goes_on and response.status != 200:
                # reads a short answer completely, so that the connection can be reused
                response.read1(CHUNK_BYTES, decode_content=False)
                raise DownloadHTTPError(f"the server answered {response.status} for {_last(url)}", response.status)
            while chunk := response.read1(CHUNK_BYTES, decode_content=False):
                yield chunk
        except urllib3.exceptions.HTTPError as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(error, urllib3.exceptions.ProtocolError):
                raise DownloadError(_ended(url, file.tell())) from None
            refused = isinstance(reason, urllib3.exceptions.NewConnectionError)  # also a TimeoutError
            if isinstance(reason, urllib3.exceptions.TimeoutError) and not refused:
                raise SlowRetrievalError(f"the server did not answer for {TIMEOUT_S:.0f} s") from None
            raise DownloadError(f"{_last(url)}: {first_line(reason)}") from None
        finally:
            if response is not None:
                response.close()  # has no effect if all was read and the connection is back in the pool


def _last(url: str) -> str:
    return url.rpartition("/")[2]


def _ended(url: str, length: int) -> str:
    return f"the connection ended after {length:,} bytes of {_last(url)}"


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
            raise UpdateError(refusal_text(error, self._fetcher.last, clock)) from error

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
            raise UpdateError(refusal_text(error, entry.path)) from error


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


def refusal_text(error: Exception, file: str, clock: datetime | None = None) -> str:
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


REPOSITORY = "repository"


class Request(HeldText):
    """What to fetch and where to put it, and what root trusts. The fetching half itself keeps only parts of files."""

    spool: str
    source: str
    channel: str
    state: BoardState
    age_s: int


def fetch_release(request: Request) -> None:
    """Write a repository of new metadata, and the board's next bundle, to the spool folder. Raises UpdateError or OutputError."""
    spool = Path(request.spool)
    repository, parts, scratch = spool / REPOSITORY, spool / "parts", spool / "scratch"
    metadata, targets = repository / "metadata", repository / "targets"
    with output_errors(spool), folder_lock(spool, UpdateError("an earlier fetch is still running.")):
        for folder in (metadata, scratch):
            if folder.exists():
                shutil.rmtree(folder)
        for folder in (metadata, targets, parts, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        fetcher = HttpFetcher(request.source, scratch, metadata, parts)
        client = Client(request.held, fetcher, request.source.rstrip("/"), scratch)
        client.refresh(datetime.now(UTC), request.age_s)
        for role, data in zip(Held._fields[1:], client.held[1:], strict=True):
            version = "" if role == "timestamp" else f"{json.loads(data)['signed']['version']}."
            write_atomic(metadata / f"{version}{role}.json", data)
        decision = decide(client.entries(request.channel), request.state)
        entry = decision.entry if decision.install else None
        path = targets / target_file(entry.path, entry.sha256) if entry else None
        for old in (*targets.glob("*/*"), *parts.iterdir()):
            if path is None or old.name != path.name:
                old.unlink()
        if entry and path:
            client.download(entry, path)
        shutil.rmtree(scratch)


def end_with_input() -> None:
    """End this process, and so its lock, when standard input closes: then the process that waits for the answer has ended, however."""
    os.read(0, 1)  # not with sys.stdin, which this thread would lock
    os._exit(1)


def main() -> None:
    answer: dict[str, Any] = {"reason": ""}
    try:
        request = json.loads(sys.stdin.readline())
        threading.Thread(target=end_with_input, daemon=True).start()
        fetch_release(build(Request, request, UpdateError, "request"))
    except EdgeCNNError as error:
        answer["reason"] = str(error)
    print(f"\n{json.dumps(answer)}")  # on the last line, whatever a library has printed before


if __name__ == "__main__":
    main()
