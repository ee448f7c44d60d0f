"""Training: a float phase, then a quantization-aware phase, resumable after any epoch; and the machines that train together. This module
does not import TensorFlow.
"""

import json
import os

from edgecnn.errors import ClusterError
from edgecnn.tables import Struct

TF_CONFIG = "TF_CONFIG"
"""The environment variable that tells TensorFlow about its cluster when it starts."""


class Workers(Struct):
    """The addresses of all workers, HOST:PORT each, and the index of this process. Worker 0 keeps the run."""

    addresses: tuple[str, ...]
    index: int

    @property
    def first(self) -> bool:
        return self.index == 0

    def announce(self) -> None:
        """Set the cluster for TensorFlow, which must not have been imported yet."""
        cluster = {"worker": list(self.addresses)}
        os.environ[TF_CONFIG] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": self.index}})


def read_workers(text: str, index: int | None) -> Workers:
    """Read `HOST:PORT,HOST:PORT` and the index of this process in it, from 0; ClusterError if they are not valid."""
    addresses = tuple(part.strip() for part in text.split(","))
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ClusterError(f"--workers takes HOST:PORT,HOST:PORT,…; received {address!r} in {text!r}.")
    if len(addresses) < 2 or len(set(addresses)) < len(addresses):
        raise ClusterError(f"--workers takes two or more different addresses; received {text!r}.")
    if index is None or not 0 <= index < len(addresses):
        raise ClusterError(
            f"--worker takes this machine's position in --workers, 0 to {len(addresses) - 1}; received {index}."
        )
    return Workers(addresses=addresses, index=index)
