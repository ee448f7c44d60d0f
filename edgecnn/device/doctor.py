"""Find what is wrong with this machine, as far as edgecnn is concerned: each check takes the machine and yields findings.

The doctor itself loads neither numpy nor an engine. What a damaged installation could crash runs in separate processes: edgecnn's other
commands.
"""

import datetime
import itertools
import posixpath
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from edgecnn.device.system import System, throttle_words
from edgecnn.device.system import temperature as read_temperature
from edgecnn.device.system import throttled as read_throttled
from edgecnn.errors import BundleError, DoctorError, SelftestError
from edgecnn.labels import plural
from edgecnn.runtime.child import Finished
from edgecnn.runtime.engines import ENGINES
from edgecnn.versions import install_command

SEVERITIES = ("ok", "note", "warning", "error")
"""In order: all is well; worth knowing; works, but not as well as it could; does not work."""


class Finding(NamedTuple):
    """A severity from SEVERITIES, the result, what it means and how to fix it. The last two are empty if there is nothing to do."""

    severity: str
    result: str
    means: str = ""
    fix: str = ""


def version_tuple(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version, for comparison: "1.21.0rc1" gives (1, 21, 0)."""
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, leading[0].split("."))) if leading else ()


PYTHONS = ((3, 11), (3, 14))  # at least the first and below the second, as in pyproject.toml

RELEASE_YEAR = 2026
SIXTY_FOUR = ("aarch64", "arm64", "x86_64", "amd64")
NEEDS_GLIBC = {
    "aarch64": {"LiteRT": (2, 27), "tflite-runtime": (2, 34), "ONNX Runtime": (2, 28)},
    "x86_64": {"LiteRT": (2, 27), "tflite-runtime": (2, 17), "ONNX Runtime": (2, 28)},
}
"""The glibc that the engines' wheels are tagged for: ai-edge-litert 2.3.0, tflite-runtime 2.14.0, onnxruntime 1.32.0."""

LITTLE_MEMORY_MIB = 96
LITTLE_SPACE_MIB = 50
NO_SPACE_MIB = 1
HOT_CELSIUS = 80.0
MIB = 2**20
NEW_SYSTEM = "install the 64-bit Raspberry Pi OS (Bookworm or later) with rpi-imager"


def python(system: System) -> Iterator[Finding]:
    """Does edgecnn support this Python?"""
    version = ".".join(map(str, system.python))
    first, below = (".".join(map(str, item)) for item in PYTHONS)
    if PYTHONS[0] <= system.python[:2] < PYTHONS[1]:
        yield Finding("ok", f"Python {version}")
    else:
        means = f"edgecnn supports Python {first} or later, but below {below}: the engines have no wheels for other versions"
        fix = "python3.11 -m venv venv (or 3.12, 3.13), and install edgecnn there"
        yield Finding("error", f"Python {version}", means, fix)


def architecture(system: System) -> Iterator[Finding]:
    """Is there an engine for this architecture? A 64-bit kernel may run 32-bit programs."""
    board = f"{system.board}, " if system.board else ""
    machine = system.machine.lower()
    if machine not in SIXTY_FOUR:
        result = f"{board}{system.bits}-bit Python, {system.machine} kernel"
        fix = "on a Raspberry Pi 3 or later, " + NEW_SYSTEM if machine.startswith("arm") else ""
        yield Finding("error", result, "no inference engine has a wheel for this architecture", fix)
    elif system.bits == 32:
        result = f"{board}32-bit Python under a 64-bit kernel ({system.machine})"
        means = "the programs here are 32-bit, and no inference engine has a 32-bit wheel"
        yield Finding("error", result, means, NEW_SYSTEM)
    else:
        yield Finding("ok", f"{board}{system.machine}, 64-bit")


def glibc(system: System) -> Iterator[Finding]:
    """Is the C library new enough for the engines' wheels?"""
    name, version = system.libc
    needs = NEEDS_GLIBC.get(system.machine)
    if not needs or system.bits == 32:
        return  # the architecture check has reported it
    if name != "glibc":
        means = "the engines' wheels are built for glibc; a musl system such as Alpine cannot load them"
        yield Finding("error", "no glibc", means, "use a system with glibc, such as Raspberry Pi OS, Debian or Ubuntu")
        return
    lacking = [engine for engine, needed in needs.items() if version_tuple(version) < needed]
    needed_by = ", ".join(f"{engine} needs {'.'.join(map(str, needs[engine]))}" for engine in lacking)
    if not lacking:
        yield Finding("ok", f"glibc {version}")
    elif "LiteRT" in lacking:
        means = f"the engines' wheels need a newer one: {needed_by}"
        yield Finding("error", f"glibc {version}", means, "upgrade the system to Debian 11, Ubuntu 20.04 or later")
    else:
        means = f"LiteRT works here; the others do not: {needed_by}"
        yield Finding("note", f"glibc {version}", means, "pip install ai-edge-litert")


def processor(system: System) -> Iterator[Finding]:
    """Does the processor support fast and correct int8 inference?"""
    flags, machine = system.cpu_flags, system.machine.lower()
    if not flags or machine not in SIXTY_FOUR:
        return
    if machine in ("x86_64", "amd64"):
        if flags & {"avx512_vnni", "avx_vnni"}:
            yield Finding("ok", "VNNI: int8 sums are exact and fast")
        else:
            means = "ONNX Runtime's sums of uint8 times int8 saturate on this processor; edgecnn sets session.x64quantprecision, "
            means += "which makes them exact but slower"
            yield Finding("note", "no VNNI", means, "use LiteRT for int8: --engine litert")
        return
    if "atomics" not in flags:
        means = "programs built for ARMv8.1, such as ONNX Runtime 1.21, crash here with an illegal instruction, "
        means += "as on Cortex-A53 and A72 (Raspberry Pi 3, Zero 2 W, 4)"
        yield Finding("note", "no LSE atomics", means)
    if "asimddp" not in flags:
        means = "int8 is not much faster than float32 here: measure it with edgecnn benchmark"
        yield Finding("note", "no dot-product instructions (asimddp)", means)
    if {"atomics", "asimddp"} <= flags:
        yield Finding("ok", "LSE atomics and dot-product instructions")


def memory(system: System) -> Iterator[Finding]:
    """Is there enough memory to classify?"""
    lines = re.findall(r"^(\w+): *([0-9]+)\b", system.read("/proc/meminfo"), re.MULTILINE)
    mib = {name: int(kib) // 1024 for name, kib in lines}
    if "MemAvailable" not in mib:
        return
    result = f"{mib['MemAvailable']:,} MiB available of {mib.get('MemTotal', 0):,} MiB"
    if mib["MemAvailable"] >= LITTLE_MEMORY_MIB:
        yield Finding("ok", result)
    else:
        means = f"below {LITTLE_MEMORY_MIB} MiB the kernel may kill edgecnn, which needs about 50 MiB with LiteRT, more with ONNX Runtime"
        fix = "stop programs that you do not need (ps aux --sort=-rss | head), or boot without a desktop"
        yield Finding("warning", result, means, fix)


def clock(system: System) -> Iterator[Finding]:
    """Is the clock set? A Raspberry Pi has no clock that runs without power."""
    now = datetime.datetime.fromtimestamp(system.now(), datetime.UTC)
    result = f"{now:%Y-%m-%d %H:%M} UTC"
    if now.year < RELEASE_YEAR:
        means = f"the clock is not set (its date is before {RELEASE_YEAR}): TLS connections fail and results have wrong times"
        yield Finding("error", result, means, "sudo timedatectl set-ntp true; or: sudo date -s '2026-11-25 12:00'")
        return
    if system.which("timedatectl"):
        answer = system.run(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
        if answer.code == 0 and answer.out.strip() == "no":
            means = "the clock is not synchronized: times may be off by as long as the board was without power"
            yield Finding("note", result, means, "sudo timedatectl set-ntp true")
            return
    yield Finding("ok", result)


def disk(system: System) -> Iterator[Finding]:
    """Is there writable space for results, state and temporary files?"""
    home = system.environ.get("HOME", "/")
    state = system.environ.get("XDG_STATE_HOME") or posixpath.join(home, ".local/state")
    places = {"results": system.cwd, "state": state, "temporary files": system.environ.get("TMPDIR") or "/tmp"}
    for purpose, path in places.items():
        space = system.space(path)
        free = space.free_bytes / MIB
        result = f"{path} ({purpose}): {free:,.0f} MiB free"
        if space.read_only:
            means = f"the file system is read-only: {purpose} cannot be written there"
            fix = "sudo mount -o remount,rw / (if it comes back read-only, the card is failing: dmesg | grep mmc)"
            yield Finding("warning", f"{path} ({purpose}): read-only", means, fix)
        elif free < LITTLE_SPACE_MIB:
            severity = "error" if free < NO_SPACE_MIB else "warning"
            means = f"there is {'no' if severity == 'error' else 'little'} space for {purpose}"
            fix = "sudo apt clean; list the largest folders: du -xh / | sort -h | tail"
            yield Finding(severity, result, means, fix)
        else:
            yield Finding("ok", result)


def power(system: System) -> Iterator[Finding]:
    """Does a Raspberry Pi report under-voltage or throttling?"""
    bits = read_throttled(system)
    if bits is None:
        if system.is_pi:
            means = "vcgencmd is not installed, or you are not allowed to use it"
            yield Finding("note", "power: unknown", means, "sudo usermod -aG video $USER")
        return
    now, since = throttle_words(bits)
    if not now and not since:
        yield Finding("ok", f"no under-voltage, no throttling (0x{bits:x})")
        return
    parts = [f"{when}: {', '.join(words)}" for when, words in (("now", now), ("since boot", since)) if words]
    weak = "under-voltage" in (*now, *since)
    means = "the board lowers its clock: it is slower than it could be, and measurements drift"
    fix = "cool it: a heat sink, a fan, an open case"
    if weak:
        means += "; under-voltage can also crash the board and damage files"
        fix = "use the board's own power supply and a short, thick cable"
    yield Finding("warning" if now or weak else "note", f"{'; '.join(parts)} (0x{bits:x})", means, fix)


def temperature(system: System) -> Iterator[Finding]:
    """Is the processor hot enough for the board to lower its clock?"""
    celsius = read_temperature(system)
    if celsius is None:
        return
    if celsius < HOT_CELSIUS:
        yield Finding("ok", f"{celsius:.1f} °C")
    else:
        means = f"above about {HOT_CELSIUS:.0f} °C the board lowers its clock"
        fix = "cool it: a heat sink, a fan, an open case; then: edgecnn benchmark --sustained 10"
        yield Finding("warning", f"{celsius:.1f} °C", means, fix)


PACKAGES = {
    "litert": ("ai-edge-litert", "ai-edge-litert-nightly"),
    "tflite_runtime": ("tflite-runtime", "tflite-runtime-nightly"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}

SHOWN = ("numpy", "pillow", "typer", *itertools.chain(*PACKAGES.values()))


def versions(system: System) -> Iterator[Finding]:
    """Which versions are installed, and do they work together? Each that does not is one that we have seen fail."""
    has = system.packages
    numpy, onnxruntime, typer = (version_tuple(has.get(name, "")) for name in ("numpy", "onnxruntime", "typer"))
    bad = []
    if "tflite-runtime" in has and numpy >= (2,):
        both = f"numpy {has['numpy']} with tflite-runtime {has['tflite-runtime']}"
        means = "tflite-runtime is built for numpy 1: its interpreter fails with numpy 2"
        bad.append(Finding("error", both, means, "pip install 'numpy<2'"))
    old_arm = system.machine == "aarch64" and bool(system.cpu_flags) and "atomics" not in system.cpu_flags
    if old_arm and (1, 21) <= onnxruntime < (1, 22):  # a Raspberry Pi 3 or 4
        means = "ONNX Runtime 1.21 crashes on this processor with an illegal instruction"
        bad.append(Finding("error", f"onnxruntime {has['onnxruntime']}", means, "pip install 'onnxruntime>=1.22'"))
    if typer >= (0, 29):
        means = "it imports pydantic at each start, so every command starts more slowly"
        bad.append(Finding("warning", f"typer {has['typer']}", means, "pip install 'typer<0.29'"))
    installed = ", ".join(f"{name} {has[name]}" for name in SHOWN if name in has)
    yield from bad or [Finding("ok", installed or "none of edgecnn's packages is installed")]


def bundle(system: System) -> Iterator[Finding]:
    """Is there a bundle, is it intact, and does this machine decode and resize its golden photos to the right bytes?"""
    done = system.selftest
    if done.code == BundleError.exit_code:
        fix = "copy it again, or name another: edgecnn doctor --model FILE"
        why = done.said.removeprefix("edgecnn: error: ")
        yield Finding("error", why, "edgecnn cannot classify with this bundle", fix)
        return
    answer = done.table
    if not answer:
        fix = "pip install --force-reinstall numpy Pillow"
        yield Finding("error", f"the bundle cannot be read: {done.failure}", "Python or a package is broken", fix)
        return
    yield Finding("ok", f"{answer['bundle']} ({answer['reason']}), intact: SHA-256 {answer['sha256'][:12]}")
    for name in [layer["layer"] for layer in answer["layers"] if not layer["passed"]]:
        means = f"this Pillow does not {name} photos to the bundle's bytes, so answers may differ"
        fix = "pip install --force-reinstall --only-binary :all: Pillow"
        yield Finding("error", f"golden photos differ after {name}", means, fix)


def engines(system: System) -> Iterator[Finding]:
    """Does each installed engine start, run and reproduce the bundle's answers?"""
    installed = [name for name, packages in PACKAGES.items() if any(item in system.packages for item in packages)]
    if not installed:
        yield Finding("error", "no inference engine", "edgecnn cannot classify without one", ENGINES["litert"].install)
    for name in installed:
        yield _tried(system.selftest, name)


def _tried(done: Finished, name: str) -> Finding:
    again = f"reinstall it, or try another version: {ENGINES[name].install}"
    if done.code == BundleError.exit_code:
        return Finding("note", f"{name}: not tried", "there is no valid bundle to try it with")
    answer = done.table
    if done.code not in (0, SelftestError.exit_code) or not answer:
        return Finding(
            "error", f"{name}: {done.failure}", "it cannot be tried: it, Python or a package is broken", again
        )
    rows = [row for row in answer.get("rows", ()) if row["engine"] == name]
    if not rows:
        return Finding("note", f"{name}: not tried", "the bundle has no model for it")
    row = min(rows, key=lambda row: bool(row["passed"]))
    if not row["passed"]:
        what = f"it differs by {row['largest_difference']:g} {row['unit']}; {row['allowed']:g} is allowed"
        means = "it does not reproduce the bundle's answers"
        if row["note"]:
            what, means = row["note"], "it cannot run the bundle's model: the model is damaged, "
            means += "or the engine is not built for this machine"
        return Finding("error", f"{name}: {row['model']}: {what}", means, again)
    models = plural(len(rows), "model")
    return Finding("ok", f"{name} {row['version']} ({row['provider']}) reproduces the bundle's answers with {models}")


LISTING_PATIENCE_S = 60.0


def cameras(system: System) -> Iterator[Finding]:
    """Can edgecnn read the cameras, and are the programs for CSI cameras, video files and streams installed?"""
    # in a separate process, so that a driver that hangs or crashes does not stop the doctor
    done = system.run([sys.executable, "-m", "edgecnn", "cameras", "--json"], LISTING_PATIENCE_S)
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


PAGE_PACKAGES = ("starlette", "uvicorn", "prometheus-client")
OPTIONS = "/etc/edgecnn/service.toml"


def page(system: System) -> Iterator[Finding]:
    """Are the packages for --http, or for `http` in the service's options, installed?"""
    missing = [name for name in PAGE_PACKAGES if name not in system.packages]
    if not missing:
        yield Finding("ok", f"{', '.join(f'{name} {system.packages[name]}' for name in PAGE_PACKAGES)} for the page")
        return
    try:
        asked = bool(tomllib.loads(system.read(OPTIONS)).get("http"))
    except tomllib.TOMLDecodeError:
        asked = False
    debian = " ".join(f"python3-{name}" for name in missing)
    yield Finding(
        "warning" if asked else "note",
        f"no {', '.join(missing)}",
        f"{OPTIONS} requests a page, but edgecnn cannot serve it"
        if asked
        else "edgecnn cannot serve a page, an API or metrics",
        f"sudo apt install {debian}, or {install_command('http')}",
    )


CHECKS: Mapping[str, Callable[[System], Iterable[Finding]]] = {
    "python": python,
    "architecture": architecture,
    "glibc": glibc,
    "processor": processor,
    "memory": memory,
    "clock": clock,
    "disk": disk,
    "power": power,
    "temperature": temperature,
    "versions": versions,
    "bundle": bundle,
    "engines": engines,
    "cameras": cameras,
    "page": page,
}


class Diagnosis(NamedTuple):
    """All findings, each with the name of its check, in order."""

    findings: tuple[tuple[str, Finding], ...]

    def count(self, severity: str) -> int:
        return sum(finding.severity == severity for _, finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "edgecnn.doctor/1",
            "findings": [{"check": name, **finding._asdict()} for name, finding in self.findings],
            "counts": {severity: self.count(severity) for severity in SEVERITIES},
        }


def examine(system: System) -> Diagnosis:
    return Diagnosis(tuple((name, finding) for name, check in CHECKS.items() for finding in check(system)))


def require_healthy(diagnosis: Diagnosis) -> None:
    """Raise DoctorError if a finding is an error; the message names the checks."""
    failed = [name for name, finding in diagnosis.findings if finding.severity == "error"]
    if failed:
        raise DoctorError(
            f"{plural(len(failed), 'error')} in: {', '.join(dict.fromkeys(failed))}. "
            "Fix the errors listed above, then run again: edgecnn doctor"
        )
