"""The sources of files for python-tuf's Updater: a folder that others may write to, or a server."""

import contextlib
import os
import signal
import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
    SlowRetrievalError,
)
from tuf.ngclient import FetcherInterface

from edgecnn import __version__
from edgecnn.device.slots.disk import Disk
from edgecnn.device.update.channel import MAX_METADATA
from edgecnn.errors import SlotError, first_line
from edgecnn.files import write_atomic

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
                response.read1(
                    CHUNK_BYTES, decode_content=False
                )  # reads a short answer completely, so that the connection can be reused
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
