"""The server's process: `python -m edgecnn.device.http LINK LISTENER FRAMES`, three inherited descriptors, and an Opening on stdin."""

import asyncio
import json
import os
import signal
import socket
import sys

from edgecnn.device.http.link import Opening, Shared
from edgecnn.device.http.serve import serve_camera

NICE = 10  # the camera loop comes first


def main() -> None:
    link, listener, frames = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the camera loop, which then ends this process
    os.nice(NICE)
    opening = Opening(**json.load(sys.stdin.buffer))
    to_loop = socket.socket(fileno=link)
    to_loop.setblocking(False)
    asyncio.run(serve_camera(opening, socket.socket(fileno=listener), to_loop, Shared(frames)))


if __name__ == "__main__":
    main()
