"""Checks of what cameras need: programs, device files, permissions."""

from collections.abc import Iterator

from edgecnn.device.finding import Finding
from edgecnn.device.system import System

CSI_TOOLS = ("rpicam-vid", "libcamera-vid")
NOT_CAMERAS = ("bcm2835-codec", "bcm2835-isp", "pispbe", "rpivid", "rpi-hevc", "rp1-cfe")
"""How the names of a Raspberry Pi's video nodes begin that give no pictures by themselves."""


def camera_tools(system: System) -> Iterator[Finding]:
    """Are the programs there that read a CSI camera, and video files and streams?"""
    csi = next((name for name in CSI_TOOLS if system.which(name)), None)
    if csi:
        yield Finding("ok", f"{csi} for CSI cameras")
    elif system.is_pi:
        means = "a camera on the CSI connector cannot be read without it"
        yield Finding("note", f"no {CSI_TOOLS[0]}", means, "sudo apt install rpicam-apps-lite")
    if system.which("ffmpeg"):
        yield Finding("ok", "ffmpeg for video files and network streams")
    else:
        means = "video files, rtsp:// and http:// streams cannot be read without it"
        yield Finding("note", "no ffmpeg", means, "sudo apt install ffmpeg")


def video_devices(system: System) -> Iterator[Finding]:
    """Is there a camera's device file, and may this user open it?"""
    nodes = [node for node in system.glob("/dev/video*") if not _name(system, node).startswith(NOT_CAMERAS)]
    if not nodes:
        yield Finding(
            "note",
            "no camera at /dev/video*",
            "no USB camera is connected, or none is recognized",
            "connect one, then: dmesg | tail",
        )
    for node in nodes:
        name = _name(system, node)
        found = f"{node} ({name})" if name else node
        if system.may_use(node):
            yield Finding("ok", found)
            continue
        group = system.group_of(node)
        means = f"this user has no permission to open it: it belongs to the group {group}"
        mend = f"sudo usermod -aG {group} $USER, then log in again"
        if group in ("root", "0"):
            mend = f"sudo chgrp video {node}, sudo chmod 660 {node}, and sudo usermod -aG video $USER"
        yield Finding("warning", found, means, mend)


def _name(system: System, node: str) -> str:
    return system.read(f"/sys/class/video4linux/{node.rpartition('/')[2]}/name")
