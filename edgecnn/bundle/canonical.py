"""The canonical zip: the same bytes for the same content on every Python, which `zipfile` does not guarantee."""

import struct
import zlib
from collections.abc import Iterator, Mapping

from edgecnn.bundle.manifest import MANIFEST, Manifest, safe_name
from edgecnn.errors import BundleError

LOCAL_HEADER = struct.Struct("<4s5H3L2H")
CENTRAL_HEADER = struct.Struct("<4s6H3L5H2L")
END = struct.Struct("<4s4H2LH")
LOCAL_MAGIC, CENTRAL_MAGIC, END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"

VERSION = 20
UNIX_VERSION = 3 << 8 | VERSION
DATE, TIME = 1 << 5 | 1, 0
"""1 January 1980, midnight: the earliest time in a zip."""

MODE = 0o100644 << 16

MAX_BYTES = 128 * 1024 * 1024
"""Largest bundle to write or read: a small board must hold it in memory."""

MAX_FILES = 1000


def pack(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Return the canonical zip: stored entries, the manifest first, the others sorted by name, with a fixed date and mode."""
    return b"".join(pieces(manifest, files))


def pieces(manifest: Manifest, files: Mapping[str, bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """Yield the canonical zip piece by piece; BundleError if a name is not a plain relative path, or there is too much content."""
    entries = {MANIFEST: manifest.to_json(), **{name: files[name] for name in sorted(files)}}
    unsafe = next((name for name in files if not safe_name(name) or name == MANIFEST), None)
    if unsafe is not None:
        raise BundleError(f"{unsafe!r} is not a valid name for a bundle entry")
    size = sum(map(len, entries.values()))
    if size > MAX_BYTES or len(entries) > MAX_FILES:
        raise BundleError(
            f"the bundle would hold {size:,} bytes in {len(entries):,} files; the limit is {MAX_BYTES:,} bytes in {MAX_FILES:,} files"
        )
    central, offset = b"", 0
    for name, content in entries.items():
        encoded = name.encode("ascii")
        common = (VERSION, 0, 0, TIME, DATE, zlib.crc32(content), len(content), len(content), len(encoded), 0)
        central += CENTRAL_HEADER.pack(CENTRAL_MAGIC, UNIX_VERSION, *common, 0, 0, 0, MODE, offset) + encoded
        yield LOCAL_HEADER.pack(LOCAL_MAGIC, *common) + encoded
        yield content
        offset += LOCAL_HEADER.size + len(encoded) + len(content)
    yield central
    yield END.pack(END_MAGIC, 0, 0, len(entries), len(entries), len(central), offset, 0)
