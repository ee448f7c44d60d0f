"""Checks of cameras, by what `edgecnn cameras` says of them."""

import sys
from collections.abc import Iterator

from edgecnn.device.doctor.finding import Finding
from edgecnn.device.system import System

PATIENCE_S = 60.0


def cameras(system: System) -> Iterator[Finding]:
    """Can cameras be read, and are the programs there that read CSI cameras, video files and streams?

    `edgecnn cameras` says so, in a process of its own: a driver that hangs or crashes takes only that one with it.
    """
    done = system.run([sys.executable, "-m", "edgecnn", "cameras", "--json"], PATIENCE_S)
    listing = done.table
    if not listing:
        means = "whether a camera can be used is not known"
        yield Finding("warning", f"cameras cannot be listed: {done.failure}", means, "run: edgecnn cameras")
        return
    yield from _programs(system, listing["programs"])
    found = listing["cameras"]
    usable = [camera for camera in found if camera["usable"]]
    refused = [camera for camera in found if not camera["usable"] and camera["is_camera"]]
    for camera in usable:
        yield Finding("ok", _named(camera))
    for camera in refused:
        yield Finding(
            "warning",
            _named(camera),
            f"it cannot be used: {camera['problem']}",
            "do what that says, then: edgecnn cameras",
        )
    if not usable and not refused:
        reasons = [f"{camera['device']} is {camera['problem']}" for camera in found]
        means = " ".join(reasons) or "no camera is connected, or none is recognized"
        yield Finding("note", "no camera that can be used", means, "connect one, then: edgecnn cameras")


def _programs(system: System, programs: dict[str, str | None]) -> Iterator[Finding]:
    for_csi = [name for name in programs if name != "ffmpeg"]
    csi = next((name for name in for_csi if programs[name]), None)
    if csi:
        yield Finding("ok", f"{csi} for CSI cameras")
    elif system.is_pi:
        means = "a camera on the CSI connector cannot be read without it"
        yield Finding("note", f"no {for_csi[0]}", means, "sudo apt install rpicam-apps-lite")
    if programs["ffmpeg"]:
        yield Finding("ok", "ffmpeg for video files and network streams")
    else:
        means = "video files, rtsp:// and http:// streams cannot be read without it"
        yield Finding("note", "no ffmpeg", means, "sudo apt install ffmpeg")


def _named(camera: dict[str, str]) -> str:
    return f"{camera['device']} ({camera['name']})" if camera["name"] else camera["device"]
