"""The newest picture for all viewers: encoded once, and only while somebody is watching."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from edgecnn.device.http.link import Picture, Shared
from edgecnn.errors import ImageError

LINGER_S = 3.0  # how long a client that requested a single picture counts as watching

JPEG = b"\xff\xd8\xff"


class Viewers:
    """Counts the viewers, notifies the camera loop through `look`, and gives each viewer the newest JPEG."""

    def __init__(self, shared: Shared | None, look: Callable[[bool], object], rotation: int = 0) -> None:
        self._shared, self._look, self._rotation = shared, look, rotation
        self._thread = ThreadPoolExecutor(1, "pictures")  # one, because each thread holds some megabytes
        self._count = 0
        self._until = 0.0
        self._looking = False
        self._waiting: Picture | None = None
        self._busy: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()
        self.jpeg: bytes | None = None
        self.ts, self.seq = 0.0, 0

    def picture(self, picture: Picture) -> None:
        """Take a picture from the camera loop; the newest one wins."""
        self._waiting = picture
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._encode())

    async def newest(self, wait_s: float) -> bytes | None:
        """Return the newest picture if somebody was already watching, else the next one within `wait_s`; None if none arrives."""
        self._count += 1
        self._attend()
        try:
            if self.jpeg is None:
                await asyncio.wait_for(self._fresh.wait(), wait_s)
        except TimeoutError:
            return None
        finally:
            self._count -= 1
            self._until = time.monotonic() + LINGER_S
            asyncio.get_running_loop().call_later(LINGER_S + 0.1, self._attend)
        return self.jpeg

    async def stream(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield each new picture and its frame's number, starting with the current one if there is one."""
        self._count += 1
        self._attend()
        try:
            last = None
            while True:
                if self.jpeg is None or self.jpeg is last:
                    await self._fresh.wait()
                last = self.jpeg
                if last is not None:
                    yield self.seq, last
        finally:
            self._count -= 1
            self._attend()

    def _attend(self) -> None:
        looking = self._count > 0 or time.monotonic() < self._until
        if looking != self._looking:
            self._looking = looking
            self.jpeg = None
            self._look(looking)

    async def _encode(self) -> None:
        while (picture := self._waiting) is not None:
            self._waiting = None
            jpeg = await asyncio.get_running_loop().run_in_executor(self._thread, self._jpeg, picture)
            if jpeg is not None and self._looking:
                self.jpeg, self.ts, self.seq = jpeg, picture.ts, picture.seq
                self._fresh.set()
                self._fresh = asyncio.Event()

    def _jpeg(self, picture: Picture) -> bytes | None:
        from edgecnn.device.stream.pictures import as_jpeg

        image = self._shared.read(picture) if self._shared else None
        if image is None:
            return None
        if isinstance(image, bytes) and image.startswith(JPEG) and not self._rotation:
            return image
        try:
            return as_jpeg(image, self._rotation)
        except ImageError:
            return None
