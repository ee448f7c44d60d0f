"""The processor as Linux describes it: the only reader of /proc/cpuinfo."""

import os
from os import PathLike
from typing import NamedTuple


class CPU(NamedTuple):
    """The first processor: its model name, "" if Linux gives none (as on ARM), and its features."""

    name: str
    flags: frozenset[str]


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_cpu(root: str | PathLike[str] = "/") -> CPU:
    """Read /proc/cpuinfo below `root`; anything unreadable is empty."""
    name, flags = "", ""
    try:
        with open(os.path.join(root, "proc/cpuinfo"), encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name":
                    name = name or value.strip()
                elif key.strip() in ("flags", "Features"):
                    flags = flags or value
                if name and flags:
                    break
    except OSError:
        pass
    return CPU(name, frozenset(flags.split()))
