"""Why a device node cannot be used: who may open it, and which process holds it."""

import contextlib
import os
from pathlib import Path


def advice_on_permission(path: str) -> str:
    """Return the group that may open a node and the command that joins it."""
    try:
        group_id = os.stat(path).st_gid
    except OSError:
        return "no permission to inspect it."
    try:
        import grp

        group = grp.getgrgid(group_id).gr_name
    except (ImportError, KeyError):
        return f"no permission: it belongs to group number {group_id}. Ask the administrator for access."
    if group == "root":
        return "no permission: only root may open it. Assign it to the group video with a udev rule, or run as root."
    return f"no permission: it belongs to the group {group}. Run `sudo usermod -aG {group} $USER`, then log in again."


def holding(path: str, proc: Path = Path("/proc")) -> list[tuple[int, str]]:
    """Return (process ID, name) of the processes that have a node open, as far as /proc shows them."""
    target, holders = os.path.realpath(path), []
    for process in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended or belongs to another user
            if any(os.readlink(link) == target for link in (process / "fd").iterdir()):
                holders.append((int(process.name), (process / "comm").read_text(errors="replace").strip()))
    return sorted(holders)


def holders_of(path: str) -> str:
    """Return " by NAME (process ID)" for an error message, or "" if /proc does not show it."""
    names = [f"{name} (process {process})" for process, name in holding(path)]
    return f" by {', '.join(names)}" if names else ""
