"""Checks of cameras, based on the list that `edgecnn cameras` prints."""

import sys
from collections.abc import Iterator

from edgecnn.device.doctor.finding import Finding
from edgecnn.device.system import System

PATIENCE_S = 60.0


def cameras(system: System) -> Iterator[Finding]:
    """Can edgecnn read the cameras, and are the programs for CSI cameras, video files and streams installed?"""
    # in a separate process, so that a driver that hangs or crashes does not stop the doctor
    done = system.run([sys.executable, "-m", "edgecnn", "cameras", "--json"], PATIENCE_S)
    listing = done.table
    if not listing:
        means = "edgecnn cannot tell whether a camera works"
        yield Finding("warning", f"edgecnn cannot list the cameras: {done.failure}", means, "run: edgecnn cameras")
        return
    yield from _programs(system, listing["programs"])
    listed = sorted(listing["cameras"], key=lambda camera: not camera["usable"])
    for camera in listed:
        name = f"{camera['device']} ({camera['name']})" if camera["name"] else camera["device"]
        problem = camera["problem"]
        if camera["usable"]:
            yield Finding("ok", name)
        elif camera["is_camera"] and problem.startswith("in use by edgecnn "):
            yield Finding("ok", f"{name}: {problem.partition('.')[0]}")
        elif camera["is_camera"]:
            fix = "follow that advice, then run: edgecnn cameras"
            yield Finding("warning", name, f"it cannot be used: {problem}", fix)
    if not any(camera["usable"] or camera["is_camera"] for camera in listed):
        reasons = [f"{camera['device']}: {camera['problem']}" for camera in listed]
        means = " ".join(reasons) or "no camera is connected, or the system does not recognize it"
        yield Finding("note", "no usable camera", means, "connect one, then run: edgecnn cameras")


def _programs(system: System, programs: dict[str, str | None]) -> Iterator[Finding]:
    for_csi = [name for name in programs if name != "ffmpeg"]
    if csi := next(filter(programs.get, for_csi), None):
        yield Finding("ok", f"{csi} for CSI cameras")
    elif system.is_pi:
        means = "edgecnn needs it to read a camera on the CSI connector"
        yield Finding("note", f"no {for_csi[0]}", means, "sudo apt install rpicam-apps-lite")
    if programs["ffmpeg"]:
        yield Finding("ok", "ffmpeg for video files and network streams")
    else:
        means = "edgecnn needs it to read video files, rtsp:// and http:// streams"
        yield Finding("note", "no ffmpeg", means, "sudo apt install ffmpeg")
