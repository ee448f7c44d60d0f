"""Checks of the machine itself: Python, architecture, C library, processor, memory, clock, disk, power, temperature."""

import datetime
import posixpath
import re
from collections.abc import Iterator

from edgecnn.device.doctor.finding import Finding, version_tuple
from edgecnn.device.sensors import temperature as read_temperature
from edgecnn.device.sensors import throttle_words
from edgecnn.device.sensors import throttled as read_throttled
from edgecnn.device.system import System

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
