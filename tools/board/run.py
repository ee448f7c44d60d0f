"""Run a command on an emulated arm64 board with a camera and edgecnn: boot it, run the command, print its output, switch it off.

The board is a QEMU machine with Debian's kernel and packages and the checkout's edgecnn. Its camera, /dev/video0, is the kernel's
test driver vivid. Examples:

  python tools/board/run.py -- edgecnn doctor
  python tools/board/run.py --put photo.jpg -- edgecnn classify photo.jpg
  python tools/board/run.py -- sh -c 'uname -a; v4l2-ctl --list-devices'
"""

import argparse
import signal
import sys
from pathlib import Path

from image import build
from machine import boot, lacking

from edgecnn.errors import EdgeCNNError

PROJECT = Path(__file__).parent.parent.parent


def main() -> int:
    """Boot, run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="+", help="a program on the board and its arguments, after --")
    parser.add_argument(
        "--put", type=Path, action="append", default=[], help="a file for /root on the board; repeat it"
    )
    parser.add_argument("--cpu", default="cortex-a72", help="QEMU's name for the processor (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=384, help="MiB of the board's memory (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=300, help="seconds the command may take (default: %(default)s)"
    )
    arguments = parser.parse_args()
    missing = lacking()
    if missing:
        print(f"board: {missing}", file=sys.stderr)
        return 25
    # so that the board is switched off on the way out
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        image = build(Notes())
        limit = int(arguments.timeout) + 120
        with boot(image, PROJECT, cpu=arguments.cpu, memory_mib=arguments.memory, limit_s=limit) as machine:
            print(f"board: ready after {machine.boot_s:.1f} s", file=sys.stderr)
            machine.put({path.name: path.read_bytes() for path in arguments.put}, "/root")
            done = machine.run(arguments.command, timeout=arguments.timeout)
    except EdgeCNNError as error:
        print(f"board: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(done.out)
    sys.stderr.write(done.err)
    return done.code


class Notes:
    """Reports each download on standard error, once."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self.said:
            self.said.add(what)
            print(f"board: {what}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
