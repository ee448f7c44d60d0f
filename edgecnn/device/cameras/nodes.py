"""List V4L2 nodes without opening them."""

import os
import re
from pathlib import Path


def video_nodes(dev: Path = Path("/dev")) -> list[str]:
    """Return each V4L2 node as its /dev/videoN: first those with a stable name in `by-id`, then the others by number."""
    numbered = [path for path in dev.iterdir() if re.fullmatch(r"video\d+", path.name)] if dev.is_dir() else []
    numbered.sort(key=lambda path: int(path.name[5:]))
    return list(dict.fromkeys([*names_by_id(dev), *(os.path.realpath(path) for path in numbered)]))


def names_by_id(dev: Path = Path("/dev")) -> dict[str, list[str]]:
    by_id = dev / "v4l" / "by-id"
    names: dict[str, list[str]] = {}
    for path in sorted(by_id.iterdir()) if by_id.is_dir() else ():
        names.setdefault(os.path.realpath(path), []).append(str(path))
    return names
