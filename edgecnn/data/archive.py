"""A zip of images, read in place: nothing is unpacked to the disk."""

import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from edgecnn.data.tree import Folder, hidden, insert
from edgecnn.errors import DatasetError, ImageError, UnsafeArchiveError
from edgecnn.images import MAX_FILE_BYTES

MAX_ARCHIVE_BYTES = 16 * 1024**3
"""Maximum bytes that a zip's members may claim in total."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods that unpack piece by piece, so that a false size cannot fill the memory."""


DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, OverflowError)
"""Errors that zipfile raises on damaged and hostile archives."""


def open_zip(path: Path) -> tuple[Folder, Callable[[zipfile.ZipInfo], bytes]]:
    """List a zip's files except hidden ones; return their tree and a function that reads one, which raises ImageError.

    UnsafeArchiveError for a path that leads outside or sizes above the limits, DatasetError for unreadable data.
    """
    try:
        archive = zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DatasetError(f"{path} is not a zip file, or it is damaged: {error}. Make the zip again.") from None
    root = Folder()
    total = 0
    for member in archive.infolist():
        name = member.filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
            raise UnsafeArchiveError(
                f"{path}: the member {member.filename!r} points outside the archive. Nothing was read; "
                "make the zip again from a folder that you trust."
            )
        total += member.file_size
        if member.file_size > MAX_FILE_BYTES or total > MAX_ARCHIVE_BYTES:
            raise UnsafeArchiveError(
                f"{path}: the member {member.filename!r} claims {member.file_size:,} bytes, which brings the total to {total:,}. "
                f"The limits are {MAX_FILE_BYTES:,} for one and {MAX_ARCHIVE_BYTES:,} for all. Nothing was read."
            )
        if not parts or any(map(hidden, parts)):
            continue
        if member.flag_bits & 1 or member.compress_type not in METHODS:
            raise DatasetError(
                f"{path}: the member {member.filename!r} is encrypted or uses an unsupported compression method. "
                "Make the zip again, stored or deflated, without a password."
            )
        try:
            insert(root, parts, None if name.endswith("/") else member)
        except ValueError as error:
            raise DatasetError(f"{path} is not a valid zip: {error}. Make the zip again.") from None

    def read(member: zipfile.ZipInfo) -> bytes:
        try:
            with archive.open(member) as file:
                data = file.read(member.file_size)  # not read(), which would unpack more than the claimed size
        except DAMAGE as error:
            raise ImageError(f"it is damaged in the zip: {error}") from None
        if len(data) != member.file_size:
            raise ImageError(f"the zip contains only {len(data):,} of its {member.file_size:,} bytes")
        return data

    return root, read
