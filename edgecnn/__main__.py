"""`python -m edgecnn`."""

from edgecnn.cli import run

run()
