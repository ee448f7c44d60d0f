"""The bundle that a command uses by default on a board."""

import os
from pathlib import Path

from edgecnn.device.slots import RECORD, ROOT
from edgecnn.runtime.default import INSTALLED, SHIPS, BundleChoice, find_bundle


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
