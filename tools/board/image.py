"""The emulated board's files: Debian's kernel with its camera driver, a root file system, and the wheels of edgecnn's base install.

Downloads are resolved by name at build time and cached in `boards/` of edgecnn's cache, next to the files of the boards that `verify --on`
emulates. Delete a folder there to rebuild it with Debian's current versions.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from initramfs import compressed, cpio, file, read_modules

from edgecnn import packages
from edgecnn.emulate import machine
from edgecnn.errors import EmulatorError
from edgecnn.runtime.default import SHIPPED

RELEASE = "trixie"
"""The board's Debian release: that of Raspberry Pi OS since 2025."""

ENGINE = "litert"
"""The engine of the base install."""

KERNEL = "linux-image-arm64"
"""The package that depends on the current kernel."""

PACKAGES = ("busybox-static", "dropbear-bin", "v4l-utils")
"""In addition to Python."""

EARLY = ("virtio_net", "9pnet_virtio", "9p", "overlay")
"""Modules without which the board has no network and no root file system."""

CAMERA = ("vivid",)
GUEST = Path(__file__).parent / "guest"
ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "group": "root:x:0:\nvideo:x:44:\n",
    "shells": "/bin/sh\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost board\n",
    "os-release": f'PRETTY_NAME="Debian {RELEASE}, an emulated board"\nID=debian\nVERSION_CODENAME={RELEASE}\n',
}


@dataclass(frozen=True, kw_only=True)
class Image:
    """What a board boots from.

    `kernel` and `modules` (an archive for the initramfs) belong to one Debian kernel, `root` and `site` to `release`, with its `python`.
    `versions` lists all packages and wheels.
    """

    kernel: Path
    modules: Path
    root: Path
    site: Path
    python: str
    versions: Mapping[str, str]


def build(progress: packages.Progress = lambda what, done, total: None, home: Path | None = None) -> Image:
    """Return the board's image, made if it does not exist.

    Args:
        progress: receives the current step, how much of it is done, and its total.
        home: where images are stored; `edgecnn.emulate.machine.boards_home()` by default.

    Raises:
        EmulatorError: if packages or wheels are unavailable; nothing half-made is left.
    """
    home = home or machine.boards_home()
    system = machine.make_system(RELEASE, ENGINE, progress, packages=PACKAGES, home=home)
    asked = {"release": RELEASE, "package": KERNEL, "early": EARLY, "camera": CAMERA}
    folder = machine.keep(
        home / f"kernel-{RELEASE}", asked, lambda fresh: make_kernel(fresh, home, progress, EARLY, CAMERA)
    )
    made = json.loads((folder / machine.MADE).read_text(encoding="utf-8"))
    return Image(
        kernel=folder / "vmlinuz",
        modules=folder / "modules.cpio.gz",
        root=system.root,
        site=system.site,
        python=system.python,
        versions={**system.versions, made["kernel"]: made["version"]},
    )


def make_kernel(
    folder: Path, home: Path, progress: packages.Progress, first: Sequence[str], then: Sequence[str]
) -> dict[str, Any]:
    """Fetch Debian's current kernel: the kernel itself, and an archive of the modules in loading order.

    Args:
        folder: where they go.
        home: where downloads are cached.
        progress: receives the downloads' progress.
        first, then: modules to load before there is a root file system, and after.

    Raises:
        EmulatorError: if there is no kernel.
    """
    with packages.private_apt(RELEASE, home, progress) as apt:
        listed = apt.run("apt-cache", ["depends", "--important", KERNEL])
        names = re.findall(r"^ *Depends: (linux-image-[^<\s]+)$", listed, re.MULTILINE)
        if not names:
            raise EmulatorError(
                f"Debian's package {KERNEL} names no kernel in {RELEASE}. Is the host's apt archive complete?"
            )
        (deb,) = apt.download([package for package in apt.resolve(names[:1]) if package.name == names[0]], progress)
    unpacked = folder / "unpacked"
    packages.unpack_debs([deb], unpacked)
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    (tree,) = (unpacked / "usr/lib/modules").iterdir()
    early = read_modules(tree, first)
    camera = {name: content for name, content in read_modules(tree, then).items() if name not in early}
    files = {f"modules/{name}.ko": file(content) for name, content in {**early, **camera}.items()}
    for listing, group in (("early", early), ("camera", camera)):
        files[f"modules/{listing}"] = file("".join(f"{name}\n" for name in group).encode())
    (folder / "modules.cpio.gz").write_bytes(compressed(cpio(files)))
    os.rename(image, folder / "vmlinuz")
    shutil.rmtree(unpacked)
    return {"kernel": names[0], "version": deb.name.split("_")[1].replace("%3a", ":")}


def make_initramfs(image: Image, authorized_key: bytes) -> bytes:
    """Return the initramfs: modules, busybox, the first process, and below `overlay/` the files that it adds to the root.

    Args:
        image: from `build`.
        authorized_key: the public key whose holder may log in.
    """
    python = f"python{image.python}"
    added = {f"etc/{name}": file(text.encode()) for name, text in ETC.items()}
    added["root/.ssh/authorized_keys"] = file(authorized_key, 0o600)
    added["usr/bin/edgecnn"] = file((GUEST / "edgecnn").read_bytes(), 0o755)
    added[f"usr/local/lib/{python}/dist-packages/board.pth"] = file(b"/opt/site\n/opt/edgecnn\n")
    added |= {f"opt/board/{path.name}": file(path.read_bytes()) for path in GUEST.glob("*.py")}
    files = {f"overlay/{name}": entry for name, entry in added.items()}
    files["init"] = file((GUEST / "init").read_bytes(), 0o755)
    files["bin/busybox"] = file((image.root / "usr/bin/busybox").read_bytes(), 0o755)
    return image.modules.read_bytes() + compressed(cpio(files))


def install_project(project: Path, image: Image, folder: Path) -> None:
    """Lay out a checkout's edgecnn in a new folder like its wheel does, compiled for the board's Python."""
    package = folder / "edgecnn"
    shutil.copytree(project / "edgecnn", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(project / "targets", package / "_data/targets")
    shutil.copytree(project / "models" / SHIPPED, package / "_data/models" / SHIPPED)
    machine.compile_all(folder, image.root, image.python, lambda what, done, total: None)
