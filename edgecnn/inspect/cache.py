"""An inspection's results for each file and pair, stored by content: a second or resumed inspection computes nothing twice."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgecnn.files import cache_home
from edgecnn.region import WHOLE, Region, region_text

FILE = "inspect-1.sqlite"  # in the user's cache folder; may be deleted to free space

ASKED = 500  # keys of one query: below SQLite's own limit in every version


class Cache:
    """Bytes by kind and content hash, in one file. The key of a pair is the hashes of both, one after the other.

    Values of one region of the images are kept apart from those of whole images. A file that cannot be used is replaced by memory, and
    `note` is called with a line that says so.
    """

    def __init__(
        self, note: Callable[[str], None] = lambda text: None, region: Region = WHOLE, path: Path | None = None
    ) -> None:
        self._path = path or cache_home() / FILE
        self._part = "" if region == WHOLE else f" {region_text(region)}"
        try:
            self._database = self._opened(self._path)
        except (OSError, sqlite3.Error) as error:
            note(f"{self._path} cannot be used ({error}), so results are not kept for next time.")
            self._database = self._opened(":memory:")

    @staticmethod
    def _opened(path: Path | str) -> sqlite3.Connection:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, timeout=30)
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(
            "CREATE TABLE IF NOT EXISTS entries (kind TEXT, hash TEXT, value BLOB, PRIMARY KEY (kind, hash)) WITHOUT ROWID"
        )
        database.commit()
        return database

    def get(self, kind: str, hashes: Sequence[str], size: int | None = None) -> dict[str, bytes]:
        """Return the stored values of some hashes, by hash, except those that do not have `size` bytes."""
        known: dict[str, bytes] = {}
        for start in range(0, len(hashes), ASKED):
            part = hashes[start : start + ASKED]
            query = f"SELECT hash, value FROM entries WHERE kind = ? AND hash IN ({','.join('?' * len(part))})"
            with contextlib.suppress(sqlite3.Error):  # the entries of a damaged file are computed again
                rows = self._database.execute(query, (kind + self._part, *part)).fetchall()
                known.update((key, value) for key, value in rows if size is None or len(value) == size)
        return known

    def put(self, kind: str, values: Iterable[tuple[str, bytes]]) -> None:
        """Store values by hash, safely even if the process is killed next. A full disk stores nothing, silently."""
        with contextlib.suppress(sqlite3.Error), self._database:
            rows = [(kind + self._part, key, value) for key, value in values]
            self._database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        self._database.close()
