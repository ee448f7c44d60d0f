"""Releases of a model on a device. A new one is tried and kept if it proves itself; otherwise the previous one comes back."""

import os
from pathlib import Path

from edgecnn.runtime.default import INSTALLED, SHIPS, BundleChoice, find_bundle

ROOT = Path("/var/lib/edgecnn")

RECORD = "current"  # the file there that names the release in use


def default_bundle(path: Path | None = None) -> BundleChoice:
    """Find a bundle as `find_bundle` does, but prefer the release in use on this board to an installed or shipped one."""
    choice = find_bundle(path)
    if not choice.reason.startswith((INSTALLED, SHIPS)):
        return choice
    try:
        os.stat(ROOT / RECORD)
    except PermissionError:
        hint = "if a release is in use on this board, only root can read it: use sudo"
        return choice._replace(reason=f"{choice.reason}; {hint}")
    except OSError:
        return choice
    from edgecnn.device.slots.store import Store  # here, since few machines have releases

    store = Store(ROOT)
    release = store.read().current
    return BundleChoice(store.path(release), "in use on this board") if release else choice
