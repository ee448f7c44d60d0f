"""Report to systemd, with a datagram to the socket that the environment names. See sd_notify(3)."""

import contextlib
import os
import socket


def notify(text: str) -> None:
    """Send assignments, such as "READY=1", to the service manager, if any. Drop them if they cannot be sent immediately."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.setblocking(False)
        sender.sendto(text.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
