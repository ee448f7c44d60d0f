"""How the board is: temperature, throttling, memory, time since its start."""

import asyncio
import contextlib
import os
import resource
from typing import Any

from edgecnn.device.sensors import temperature, throttle_words, throttled
from edgecnn.device.system import System

EVERY_S = 5.0


def look(system: System, processes: tuple[int, ...]) -> dict[str, Any]:
    """Return `board` of /v1/state; `memory_mib` is what these processes hold in memory."""
    bits = throttled(system)
    uptime = system.read("/proc/uptime").partition(" ")[0]
    pages = 0
    for process in processes:
        with contextlib.suppress(ValueError, IndexError):
            pages += int(system.read(f"/proc/{process}/statm").split()[1])
    return {
        "temperature_c": temperature(system),
        "throttled": throttle_words(bits)[0] if bits else [],
        "memory_mib": round(pages * resource.getpagesize() / 2**20, 1) if pages else None,
        "uptime_s": float(uptime) if uptime else None,
    }


async def watch(machine: dict[str, Any], with_parent: bool) -> None:
    """Keep what is known of the machine up to date; a program may have to run for it, so this is done in a thread."""
    system = System(packages={})
    processes = (os.getpid(), os.getppid()) if with_parent else (os.getpid(),)
    while True:
        machine.update(await asyncio.to_thread(look, system, processes))
        await asyncio.sleep(EVERY_S)
