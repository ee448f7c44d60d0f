"""An initramfs made without any tools of the host: a cpio archive, and kernel modules in loading order."""

import gzip
import lzma
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """Return a cpio archive ("newc") of files that Linux can unpack. Several such archives may be concatenated.

    Args:
        files: for each path, without a leading slash, its mode (type and permissions) and its content (for a symbolic link its
            target, for a folder nothing). Missing parent folders are created.

    Returns:
        The archive's bytes. The same files give the same bytes: all dates and owners are 0.
    """
    entries: dict[str, tuple[int, bytes]] = {}
    for name, entry in files.items():
        for parent in reversed(Path(name).parents[:-1]):
            entries.setdefault(parent.as_posix(), (stat.S_IFDIR | 0o755, b""))
        entries[name] = entry
    archive = bytearray()
    for number, (name, (mode, content)) in enumerate([*entries.items(), ("TRAILER!!!", (0, b""))], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name.encode()) + 1, 0)
        archive += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        archive += bytes(-len(archive) % 4)
        archive += content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def file(content: bytes, permissions: int = 0o644) -> tuple[int, bytes]:
    """Return a regular file's entry for `cpio`."""
    return stat.S_IFREG | permissions, content


def compressed(archive: bytes) -> bytes:
    """Compress an archive for the kernel, as gzip with date 0."""
    return gzip.compress(archive, 6, mtime=0)


def read_modules(folder: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Return kernel modules and all their dependencies, in loading order.

    A module lists its own dependencies (`depends=` in its .modinfo section), so no `depmod` is needed.

    Args:
        folder: the kernel's folder in lib/modules, with files such as kernel/fs/9p/9p.ko.xz.
        wanted: names of modules; `_` and `-` are equivalent.

    Returns:
        Each module's uncompressed content by name, with `_`, dependencies first.

    Raises:
        FileNotFoundError: if the kernel lacks one of the modules.
    """
    paths = {path.name.split(".ko")[0].replace("-", "_"): path for path in folder.rglob("*.ko*")}
    modules: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in modules:
            return
        if name not in paths:
            raise FileNotFoundError(f"the kernel in {folder} has no module {name}")
        content = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for other in depends[1].decode().split(",") if depends else ():
            if other:
                add(other.replace("-", "_"))
        modules[name] = content

    for name in wanted:
        add(name.replace("-", "_"))
    return modules
