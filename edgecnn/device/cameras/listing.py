"""List cameras, what they can do and why one cannot be used: `edgecnn cameras`."""

import re
import shutil
import sys
from typing import Any, NamedTuple

from edgecnn.device.cameras import names_by_id, process, video_nodes
from edgecnn.device.system import System
from edgecnn.errors import CameraError

ASK_S = 10.0


class Format(NamedTuple):
    """A pixel format. `modes` are (width, height, rates in frames per second); `ranged` if all sizes between them are possible."""

    name: str
    description: str
    readable: bool
    modes: tuple[tuple[int, int, tuple[float, ...]], ...] = ()
    ranged: bool = False


class Camera(NamedTuple):
    """A camera, or a node that looks like one. `device` is its SOURCE; `is_camera` is False for a codec or a part of a pipeline."""

    device: str
    name: str = ""
    driver: str = ""
    names: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ()
    problem: str = ""
    is_camera: bool = True
    note: str = ""


class CameraList(NamedTuple):
    """All cameras in the order in which `--camera` tries them, and notes on why others may be missing."""

    cameras: tuple[Camera, ...]
    programs: dict[str, str | None]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**self._asdict(), "cameras": [camera_json(camera) for camera in self.cameras]}


def camera_json(camera: Camera) -> dict[str, Any]:
    formats = [
        {
            **item._asdict(),
            "modes": [
                {"width": width, "height": height, "fps": [round(rate, 3) for rate in rates]}
                for width, height, rates in item.modes
            ],
        }
        for item in camera.formats
    ]
    return {**camera._asdict(), "usable": not camera.problem, "formats": formats}


def list_cameras() -> CameraList:
    """Look for cameras without streaming from them or changing their settings."""
    programs = {name: shutil.which(name) for name in (*process.PROGRAMS, process.PROGRAM)}
    notes = []
    cameras: list[Camera] = []
    program = process.program()
    if program is None:
        notes.append(f"CSI cameras: {' and '.join(process.PROGRAMS)} are not installed. {process.MISSING}")
    else:
        listed, problem = csi_cameras(program)
        cameras += listed
        if problem:
            notes.append(f"CSI cameras: {problem}")
    if programs[process.PROGRAM] is None:
        notes.append(
            f"Video files, network streams and other formats: ffmpeg is not installed. {process.FFMPEG_MISSING}"
        )
    if sys.platform != "linux":
        notes.append(f"USB cameras work on Linux only; this is {sys.platform}.")
    else:
        nodes, names = video_nodes(), names_by_id()
        cameras += [node_camera(path, tuple(names.get(path, ()))) for path in nodes]
        if not nodes:
            notes.append("USB cameras: no /dev/video* exists. Plug in a camera, then check `dmesg`.")
    return CameraList(tuple(cameras), programs, tuple(notes))


def node_camera(path: str, names: tuple[str, ...] = (), kernel: Any = None) -> Camera:
    """Describe a V4L2 node, or why it cannot be used. `names` are its other paths; `kernel` is as in `v4l2_device.Device`."""
    from edgecnn.device.cameras.v4l2_device import READABLE, Device, fourcc, why_in_use, why_not_opened

    try:
        device = Device(path, kernel)
    except CameraError as error:
        return Camera(path, names=names, problem=error.problem)
    camera = Camera(path, device.card, device.driver, names)
    busy = False
    try:
        if problem := device.unusable():
            return camera._replace(problem=problem, is_camera=False)
        formats = tuple(
            Format(fourcc(item.pixelformat), item.description, item.pixelformat in READABLE, item.modes, item.ranged)
            for item in device.formats()
        )
        camera = camera._replace(formats=formats, note=device.signal())
        busy = device.busy()
        if not busy and not any(item.readable for item in formats):
            camera = camera._replace(
                problem=f"edgecnn cannot read any of its formats. Use ffmpeg:{path}, which reads more."
            )
    except OSError as error:
        camera = camera._replace(problem=why_not_opened(path, error))
    finally:
        device.close()
    return camera._replace(problem=why_in_use(path)) if busy else camera  # look up the holders once we have closed it


def csi_cameras(program: str) -> tuple[list[Camera], str]:
    """Return the cameras that rpicam-vid lists and, if it lists none, the reason."""
    done = System(packages={}).run([program, "--list-cameras"], ASK_S)
    if done.code is None:
        return [], f"{program} --list-cameras: {done.err}."
    said = f"{done.out}\n{done.err}"
    cameras = parse_csi(said, program)
    if cameras:
        return cameras, ""
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no output")
    return [], f"{program}: {last}. Check the ribbon cable, then run `{program} --list-cameras`."


def parse_csi(said: str, program: str) -> list[Camera]:
    """Read the list that rpicam-vid prints: a line "0 : imx708 [4608x2592 ...] (path)" for each camera, and its sensor's modes."""
    cameras: list[Camera] = []
    for line in said.splitlines():
        match = re.match(r"\s*(\d+) : (\S+) \[.*?\] \((.*)\)", line)
        if match:
            cameras.append(Camera(f"csi:{match[1]}", match[2], program, (match[3],)))
        elif cameras:
            formats = cameras[-1].formats
            if name := re.search(r"'(\w+)' :", line):
                formats += (Format(name[1], "sensor format; frames arrive as MJPEG of any size", readable=True),)
            if formats and (mode := re.search(r"(\d+)x(\d+) \[([\d.]+) fps", line)):
                modes = (*formats[-1].modes, (int(mode[1]), int(mode[2]), (float(mode[3]),)))
                formats = (*formats[:-1], formats[-1]._replace(modes=modes))
            cameras[-1] = cameras[-1]._replace(formats=formats)
    return cameras


def camera_lines(camera: Camera) -> list[str]:
    """Return a camera as text: a heading, then a line for each name and format, or why it cannot be used."""
    driver = f" (driver {camera.driver})" if camera.driver else ""
    lines = [f"{camera.device}  {camera.name}{driver}".rstrip()]
    lines += [f"    also {name}" for name in camera.names]
    if camera.problem:
        lines.append(f"    cannot be used: {camera.problem}")
    if camera.note:
        lines.append(f"    the driver reports: {camera.note}")
    for item in (item for item in camera.formats if item.readable):
        sizes = []
        for width, height, rates in item.modes:
            text = "/".join(f"{rate:.4g}" for rate in rates)
            sizes.append(f"{width}x{height} ({text} frames/s)" if rates else f"{width}x{height}")
        between = " to " if item.ranged else ", "
        lines.append(f"    {item.name:4} {between.join(sizes) or 'any size that the driver accepts'}")
    others = dict.fromkeys(item.name for item in camera.formats if not item.readable)
    if others:
        lines.append(f"    unsupported: {', '.join(others)}")
    return lines
