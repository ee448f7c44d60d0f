"""A ProxyCommand of ssh that writes how many bytes pass it, both ways, to a file: COUNTED HOST PORT."""

import os
import selectors
import socket
import sys

counted, host, port = sys.argv[1:]
try:
    link = socket.create_connection((host, int(port)))
except OSError as error:
    sys.exit(f"connect to host {host} port {port}: {error.strerror}")
ways = {0: link.fileno(), link.fileno(): 1}
ready = selectors.DefaultSelector()
for source in ways:
    ready.register(source, selectors.EVENT_READ)
with open(counted, "ab", buffering=0) as log:
    while True:
        for key, _ in ready.select():
            data = os.read(key.fd, 1 << 16)
            if not data:
                sys.exit()
            log.write(b"%d\n" % len(data))
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(ways[key.fd], rest) :]
