"""Downloads that show progress, resume, retry, and are checked before anything reads them."""

import contextlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from edgecnn.data.items import Meter, Progress
from edgecnn.errors import DatasetError, DownloadError, EdgeCNNError, OutputError

ATTEMPTS = 4

PAUSE_S = 1.0
"""Pause before the second attempt; it doubles with each attempt."""

TIMEOUT_S = 30.0
"""Longest wait for a silent server."""

BLOCK_BYTES = 256 * 1024

PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status codes that a later attempt may not get again."""


def fetch(
    url: str, target: Path, progress: Progress | None = None, *, check: Callable[[Path], object], offline: str
) -> None:
    """Download a file so that `target` holds the whole, checked file or nothing. An interrupted transfer continues from `target` + ".part".

    `check` raises DatasetError for any file but the expected one; `offline` says what to do without a network.
    DownloadError after ATTEMPTS failures or for another file, OutputError if the file cannot be written.
    """
    part = target.with_name(f"{target.name}.part")
    with _writing(part):
        target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _transfer(url, part, progress)
            break
        except EdgeCNNError:
            raise
        except (OSError, http.client.HTTPException) as error:
            passing = not isinstance(error, urllib.error.HTTPError) or error.code in PASSING
            if attempt == ATTEMPTS or not passing:
                raise DownloadError(f"cannot download {url}: {_reason(error)}.\n{offline}") from None
        time.sleep(PAUSE_S * 2 ** (attempt - 1))
    try:
        check(part)
    except DatasetError as error:
        with _writing(part):
            part.unlink()
        raise DownloadError(
            f"{url} did not send the expected file; what it sent was deleted: {error}\n"
            f"Run the same command to try again. {offline}"
        ) from None
    with _writing(target):
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)


def _transfer(url: str, part: Path, progress: Progress | None) -> None:
    """Append the rest of the file at `url` to `part`."""
    with _writing(part):
        offset = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "edgecnn", **({"Range": f"bytes={offset}-"} if offset else {})}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing left to send: the check decides whether the part is right
            return
        raise
    with response:
        resumed = response.status == 206
        start = offset if resumed else 0
        total = 0 if response.length is None else start + response.length
        meter = Meter(progress, f"downloading {url.rpartition('/')[2]}", total)
        meter.advance(start)
        with _writing(part):
            file = part.open("ab" if resumed else "wb", buffering=0)
        with file:
            while block := response.read(BLOCK_BYTES):
                with _writing(part):
                    view = memoryview(block)
                    while view:
                        view = view[file.write(view) :]
                meter.advance(len(block))
    if meter.done < total:
        raise ConnectionError(f"the connection closed after {meter.done:,} of {total:,} bytes")


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return getattr(error.reason, "strerror", None) or str(error.reason)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}.\n"
            "Free some space or set XDG_CACHE_HOME to another folder. An interrupted download continues where it stopped."
        ) from error
