"""The link between the camera loop and the server: datagrams that never block, and the newest frame in shared memory."""

import json
import os
import socket
import struct
import time
from dataclasses import field
from typing import Any, NamedTuple

import numpy as np

from edgecnn.tables import Struct

RESULT, EVENT, PICTURE, UNSURE = b"r", b"e", b"p", b"u"
"""The first byte of a message to the server: a result's header and line, an event's line, the place of a picture, or a kept frame."""

LOOK, AWAY = b"look", b"away"
"""Messages from the server: somebody is watching the pictures, or nobody is."""

UNSURES = 12
"""How many of the newest unsure frames the page shows."""

MOST_BYTES = 1 << 20  # per message; the kernel's own limit is lower

STAMP = struct.Struct("=Q")

MOST_FRAME_BYTES = 1 << 31  # more than one call writes


class Opening(Struct):
    """The server's starting data, sent as JSON on its standard input so that other users cannot see it.

    `model` is the object in /v1/state. `classifier` and `decision` hold the arguments of `Classifier.load` and `classify`. `unsure` is the
    folder of unsure frames, and `kept` lists them, oldest first. `decisions` and `replay`, the lines of events, are those that an earlier
    server received. `token` is None if none is required. `drift` holds a `Drift`'s key, file, validation scores and
    whether frames may be strangers. `metrics_file` is the file for node_exporter. `started` is when the camera loop started.
    """

    port: int
    token: str | None = None
    hosts: tuple[str, ...] = ()
    camera: bool = True
    rotation: int = 0
    region: tuple[float, ...] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    classifier: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    unsure: str | None = None
    kept: tuple[dict[str, Any], ...] = ()
    drift: dict[str, Any] | None = None
    metrics_file: str | None = None
    started: float = field(default_factory=time.time)
    decisions: dict[str, int] = field(default_factory=dict)
    replay: tuple[str, ...] = ()


class Picture(NamedTuple):
    """The place of a frame in shared memory: the bytes of an encoded image, or uint8 RGB of `shape` (height, width)."""

    stamp: int
    offset: int
    size: int
    shape: tuple[int, int] | None
    ts: float
    seq: int

    @classmethod
    def parse(cls, text: bytes) -> "Picture":
        stamp, offset, size, shape, ts, seq = json.loads(text)
        return cls(stamp, offset, size, None if shape is None else (shape[0], shape[1]), ts, seq)


def send(to: socket.socket, message: bytes) -> bool:
    """Send a message if there is room for it now; return False if there is not, or if the reader is gone."""
    try:
        to.send(message)
    except OSError:  # full, closed, or longer than the kernel takes
        return False
    return True


class Shared:
    """Shared memory for two frames, written alternately. The file is sparse: it takes as much memory as the largest two."""

    def __init__(self, file: int) -> None:
        self.file = file
        self._count = 0

    @classmethod
    def create(cls) -> "Shared":
        return cls(os.memfd_create("edgecnn-frame"))

    def write(self, image: bytes | np.ndarray, ts: float, seq: int) -> Picture:
        """Copy a frame over the older of the two."""
        data = image if isinstance(image, bytes) else np.ascontiguousarray(image).reshape(-1).data
        self._count += 1
        offset = self._count % 2 * MOST_FRAME_BYTES
        os.pwrite(self.file, STAMP.pack(0), offset)
        os.pwrite(self.file, data, offset + STAMP.size)
        os.pwrite(self.file, STAMP.pack(self._count), offset)
        shape = None if isinstance(image, bytes) else (image.shape[0], image.shape[1])
        return Picture(self._count, offset, len(data), shape, ts, seq)

    def read(self, picture: Picture) -> bytes | np.ndarray | None:
        """Return a copy of a frame; None if a newer one has replaced it."""
        data = os.pread(self.file, picture.size, picture.offset + STAMP.size)
        if os.pread(self.file, STAMP.size, picture.offset) != STAMP.pack(picture.stamp):
            return None
        return data if picture.shape is None else np.frombuffer(data, np.uint8).reshape(*picture.shape, 3)


def dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
