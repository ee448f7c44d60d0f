"""The state of the board: temperature, throttling, memory and uptime."""

import asyncio
import contextlib
import os
import resource
from typing import Any

from edgecnn.device.sensors import temperature, throttle_words, throttled
from edgecnn.device.system import System
from edgecnn.device.update import last_check

EVERY_S = 5.0


def look(system: System, processes: tuple[int, ...]) -> dict[str, Any]:
    """Return `board` of /v1/state, with the memory of these processes, the uptime of the last one, and the last check for a release."""
    bits, check = throttled(system), last_check()
    pages = 0
    for process in processes:
        with contextlib.suppress(ValueError, IndexError):
            pages += int(system.read(f"/proc/{process}/statm").split()[1])
    return {
        "temperature_c": temperature(system),
        "throttled": throttle_words(bits)[0] if bits else [],
        "memory_mib": round(pages * resource.getpagesize() / 2**20, 1) if pages else None,
        "uptime_s": age_s(system, processes[-1]),
        "update": check and {name: check[name] for name in ("reason", "last_good", "age_s")},
    }


def age_s(system: System, process: int) -> float | None:
    """Return how long a process has run (proc_pid_stat(5), field 22), in seconds."""
    try:
        ticks = int(system.read(f"/proc/{process}/stat").rpartition(")")[2].split()[19])
        return float(system.read("/proc/uptime").split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (ValueError, IndexError):
        return None


async def watch(machine: dict[str, Any], with_parent: bool) -> None:
    """Keep the machine's state up to date, in a thread, because reading it may mean running a program."""
    system = System(packages={})
    processes = (os.getpid(), os.getppid()) if with_parent else (os.getpid(),)
    while True:
        machine.update(await asyncio.to_thread(look, system, processes))
        await asyncio.sleep(EVERY_S)
