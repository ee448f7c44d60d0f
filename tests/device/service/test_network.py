"""A process without a network: only sockets between processes of this machine are left, to it and to the programs that it starts."""

import subprocess
import sys

CODE = """
import os, socket, subprocess, sys
from edgecnn.device.service.network import close_network, is_closed
print(is_closed(), [close_network()], is_closed())
socket.socketpair()
more = "from edgecnn.device.service.network import is_closed; print(is_closed())"
subprocess.run([sys.executable, "-c", more], check=True)
socket.socket()
"""


def test_a_closed_network_stays_closed_and_leaves_local_sockets():
    done = subprocess.run([sys.executable, "-uc", CODE], capture_output=True, text=True)
    assert done.stdout == "False [''] True\nTrue\n", done.stderr
    assert "Address family not supported" in done.stderr
