"""The files of an emulated board that boots Debian's own systemd, instead of the few processes of image.py.

Its root consists of Debian's packages with a dpkg database, so that `apt install ./a.deb` works on it. Changes go to a separate disk, which
survives a reboot.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image import KERNEL, RELEASE, make_kernel
from initramfs import compressed, cpio, file

from edgecnn import packages
from edgecnn.boards import RELEASES
from edgecnn.emulate import machine

PACKAGES = (
    "apt", "base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "debianutils", "diffutils", "dpkg",
    "dropbear-bin", "findutils", "grep", "init-system-helpers", "kmod", "libc-bin", "mount", "perl-base", "procps", "python3",
    "python3-numpy", "python3-pil", "python3-prometheus-client", "python3-starlette", "python3-tuf", "python3-typer", "python3-uvicorn",
    "sed", "systemd", "systemd-sysv", "tar", "udev", "util-linux", "v4l-utils",
)  # fmt: skip
"""With their dependencies: a Debian that boots, and the packages that edgecnn's package depends on and recommends."""

EARLY = ("virtio_net", "9pnet_virtio", "9p", "overlay", "virtio_blk", "crc32c_generic", "ext4")
"""Modules without which the board has no network and no root file system."""

CAMERA = ("vivid",)
PYTHON = RELEASES[RELEASE]
GUEST = Path(__file__).parent / "guest"
ALTERNATIVES = ("blas", "lapack")
"""Libraries that Debian's alternatives link. Their packages' scripts, which do not run here, would create the links."""

CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
"""Normally created by the script of ca-certificates. python3-requests, which Debian's python3-tuf imports, reads it."""

DROPBEAR = """[Unit]
Description=The board's ssh
DefaultDependencies=no
After=local-fs.target

[Service]
ExecStart=/usr/sbin/dropbear -R -s -F -E

[Install]
WantedBy=sysinit.target
"""
TRIGGER = """[Service]
ExecStart=
ExecStart=udevadm trigger --type=devices --action=add --subsystem-match=video4linux --subsystem-match=media
"""
"""At boot, udev sets up only the camera; setting up all devices took 30 seconds."""

MASKED = (
    "apt-daily-upgrade.timer", "apt-daily.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "getty-static.service",
    "getty@.service", "ldconfig.service", "serial-getty@.service", "systemd-boot-update.service", "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service", "systemd-networkd.service", "systemd-pcrextend.socket",
)  # fmt: skip
"""Units that take an emulated board minutes and are of no use to it."""

ETC = {
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "hosts": "127.0.0.1 localhost board\n",
    "hostname": "board\n",
    "shells": "/bin/sh\n/bin/bash\n",
    "fstab": "",
    "machine-id": "6f1c8c4a0c7b4d0d9a3c9b1f5e2d7a10\n",
    "systemd/system/dropbear.service": DROPBEAR,
    "systemd/system/systemd-udev-trigger.service.d/board.conf": TRIGGER,
    "systemd/journald.conf.d/board.conf": "[Journal]\nStorage=persistent\nSyncIntervalSec=1s\n",
}


@dataclass(frozen=True, kw_only=True)
class DebianImage:
    """What the board boots from: `kernel` and `modules` (an archive for the initramfs) from one Debian kernel, and the `root`."""

    kernel: Path
    modules: Path
    root: Path


def build(progress: packages.Progress = lambda what, done, total: None, home: Path | None = None) -> DebianImage:
    """Return the image, made if it does not exist. Args and errors as in `image.build`."""
    home = home or machine.boards_home()
    asked = {"release": RELEASE, "package": KERNEL, "early": EARLY, "camera": CAMERA}
    kernel = machine.keep(
        home / f"kernel-{RELEASE}", asked, lambda fresh: make_kernel(fresh, home, progress, EARLY, CAMERA)
    )
    root = machine.keep(
        home / f"debian-{RELEASE}",
        {"release": RELEASE, "packages": PACKAGES, "alternatives": ALTERNATIVES, "certificates": CERTIFICATES},
        lambda fresh: make_root(fresh, home, progress),
    )
    return DebianImage(kernel=kernel / "vmlinuz", modules=kernel / "modules.cpio.gz", root=root)


def make_root(folder: Path, home: Path, progress: packages.Progress) -> dict[str, Any]:
    """Unpack Debian's packages into a folder, compile their Python files, and write dpkg's database."""
    python = PYTHON
    debs = packages.fetch_debs(PACKAGES, RELEASE, home, progress)
    for number, deb in enumerate(debs):
        progress(f"unpack Debian {RELEASE} with systemd", number, len(debs))
        packages.unpack_debs([deb], folder)
    for modules in (f"usr/lib/python{python}", "usr/lib/python3/dist-packages"):
        machine.compile_all(folder / modules, folder, python, progress)
    for name in ALTERNATIVES:
        for library in sorted((folder / "usr/lib/aarch64-linux-gnu" / name).glob("*.so.3")):
            (folder / "usr/lib/aarch64-linux-gnu" / library.name).symlink_to(f"{name}/{library.name}")
    texts = [path.read_text(encoding="ascii") for path in sorted((folder / "usr/share/ca-certificates").rglob("*.crt"))]
    (folder / CERTIFICATES).write_text("".join(texts), encoding="ascii")
    for name in ("passwd", "group"):
        master = (folder / f"usr/share/base-passwd/{name}.master").read_text(encoding="utf-8")
        (folder / "etc" / name).write_text(master.replace("root:*:", "root:x:"), encoding="utf-8")
    write_database(debs, folder / "var/lib/dpkg")
    return {"versions": {deb.name.split("_")[0]: deb.name.split("_")[1].replace("%3a", ":") for deb in debs}}


def write_database(debs: Sequence[Path], folder: Path) -> None:
    """Write what dpkg would have recorded if it had installed some packages: their descriptions and file lists."""
    for name in ("info", "updates", "triggers", "parts", "alternatives"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    stanzas = []
    for deb in debs:
        control = run("dpkg-deb", "--field", str(deb))
        fields = dict(line.split(": ", 1) for line in control.splitlines() if ": " in line and not line.startswith(" "))
        first, _, rest = control.strip().partition("\n")
        stanzas.append(f"{first}\nStatus: install ok installed\n{rest}\n")
        listed = run("dpkg-deb", "--contents", str(deb)).splitlines()
        paths = [line.split(" ./", 1)[1].partition(" -> ")[0].rstrip("/") for line in listed if " ./" in line]
        owner = fields["Package"] + (f":{fields['Architecture']}" if fields.get("Multi-Arch") == "same" else "")
        (folder / "info" / f"{owner}.list").write_text("/.\n" + "".join(f"/{path}\n" for path in paths if path))
    (folder / "status").write_text("\n".join(stanzas), encoding="utf-8")
    (folder / "available").touch()
    (folder / "info" / "format").write_text("1\n")


def run(*command: str) -> str:
    """Run one of Debian's tools and return its output."""
    return subprocess.run([packages.tool(command[0]), *command[1:]], check=True, capture_output=True, text=True).stdout


def make_initramfs(image: DebianImage, authorized_key: bytes) -> bytes:
    """Return the initramfs: modules, busybox, the first process, and below `overlay/` the files that the first boot adds to the root.

    Args:
        image: from `build`.
        authorized_key: the public key whose holder may log in.
    """
    added = {f"etc/{name}": file(text.encode()) for name, text in ETC.items()}
    added["root/.ssh/authorized_keys"] = file(authorized_key, 0o600)
    files = {f"overlay/{name}": entry for name, entry in added.items()}
    files["masked"] = file("".join(f"{name}\n" for name in MASKED).encode())
    files["init"] = file((GUEST / "init-debian").read_bytes(), 0o755)
    files["bin/busybox"] = file((image.root / "usr/bin/busybox").read_bytes(), 0o755)
    return image.modules.read_bytes() + compressed(cpio(files))


def make_disk(path: Path, mib: int = 512) -> None:
    """Make an empty disk with an ext4 file system."""
    with path.open("wb") as disk:
        disk.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True, capture_output=True)
