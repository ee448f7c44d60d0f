"""This machine, as the doctor, the benchmark and the page see it: its files, programs, packages and sensors; and its secrets."""

import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from edgecnn.runtime.child import Finished
from edgecnn.versions import read_cpu

SELFTEST_S = 360.0  # longer than `edgecnn selftest` lets all models take together


class Space(NamedTuple):
    """A file system's free space, and whether it is mounted read-only."""

    free_bytes: int
    read_only: bool


def packages() -> dict[str, str]:
    """Return the versions of the installed packages by name, in lower case with `-`."""
    versions: dict[str, str] = {}
    for item in importlib.metadata.distributions():
        if name := item.metadata["Name"]:  # a half-removed package has no name
            versions.setdefault(name.lower().replace("_", "-"), item.version)
    return versions


@dataclass(frozen=True, kw_only=True)
class System:
    """This machine, or one simulated by a test. `machine` is the kernel's, `bits` are Python's, `model` is the requested bundle, if any."""

    root: Path = Path("/")
    python: tuple[int, ...] = tuple(sys.version_info[:3])
    machine: str = field(default_factory=platform.machine)
    bits: int = 64 if sys.maxsize > 2**32 else 32
    libc: tuple[str, str] = field(default_factory=platform.libc_ver)
    packages: Mapping[str, str] = field(default_factory=packages)
    cwd: str = field(default_factory=os.getcwd)
    model: str = ""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def read(self, absolute: str) -> str:
        """Return a small text file, stripped of zeros and white space; "" if it cannot be read."""
        try:
            return (self.root / absolute.lstrip("/")).read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
        except OSError:
            return ""

    def glob(self, pattern: str) -> list[str]:
        return sorted(f"/{path.relative_to(self.root)}" for path in self.root.glob(pattern.lstrip("/")))

    def which(self, name: str) -> str | None:
        return shutil.which(name, path=self.environ.get("PATH"))

    def run(self, command: Sequence[str], timeout: float | None = 10.0) -> Finished:
        """Run a command and wait for it; kill it after `timeout` seconds."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, env=dict(self.environ)
            )
        except subprocess.TimeoutExpired:
            return Finished(None, "", f"no answer in {timeout:g} s")
        except OSError as error:
            return Finished(None, "", f"cannot be run: {error.strerror or error}")
        return Finished(done.returncode, *(output.decode(errors="replace") for output in (done.stdout, done.stderr)))

    @functools.cached_property
    def selftest(self) -> Finished:
        command = [sys.executable, "-m", "edgecnn", "selftest", "--json"]
        return self.run([*command, *(["--model", self.model] if self.model else [])], SELFTEST_S)

    def space(self, absolute: str) -> Space:
        """Return the file system that a path is on, or would be on."""
        path = self.root / absolute.lstrip("/")
        while not path.exists() and path != path.parent:
            path = path.parent
        state = os.statvfs(path)
        return Space(state.f_bavail * state.f_frsize, bool(state.f_flag & os.ST_RDONLY))

    @property
    def board(self) -> str:
        """The kernel's name for the board, such as "Raspberry Pi 4 Model B Rev 1.4", or ""."""
        return self.read("/proc/device-tree/model")

    @property
    def is_pi(self) -> bool:
        return self.board.startswith("Raspberry Pi")

    @property
    def cpu_flags(self) -> frozenset[str]:
        return read_cpu(self.root).flags

    def now(self) -> float:
        return time.time()


THROTTLED = "/sys/devices/platform/soc/soc:firmware/get_throttled"
BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
"""A Raspberry Pi's flags. These bits give the current state; the bits 16 places higher give what has occurred since boot."""

SINCE_START = 16
TYPES = ("cpu-thermal", "cpu_thermal", "soc-thermal", "x86_pkg_temp")
"""Types of the processor's thermal zone, the likeliest first."""


@dataclass(frozen=True)
class Sensors:
    """The fastest CPU's clock, the processor's temperature, the flags of BITS, an x86 processor's throttle count; None if unavailable."""

    mhz: int | None
    celsius: float | None
    throttled: int | None
    throttle_count: int | None


def read_sensors(system: System) -> Sensors:
    clocks = _numbers(system, "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    counts = _numbers(system, "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    return Sensors(
        mhz=round(max(clocks) / 1000) if clocks else None,
        celsius=temperature(system),
        throttled=throttled(system),
        throttle_count=sum(counts) if counts else None,
    )


def temperature(system: System) -> float | None:
    """Return the processor's temperature in degrees Celsius, from its own zone or else the hottest one."""
    zones: dict[str, float] = {}
    for zone in system.glob("/sys/class/thermal/thermal_zone*"):
        if (value := _number(system.read(f"{zone}/temp"))) is not None:
            zones.setdefault(system.read(f"{zone}/type"), value / 1000)
    own = next((zones[name] for name in TYPES if name in zones), None)
    return own if own is not None else max(zones.values(), default=None)


def throttled(system: System) -> int | None:
    """Return a Raspberry Pi's throttling bits, from the kernel or else from vcgencmd."""
    bits = _number(system.read(THROTTLED), 16)
    if bits is None and system.which("vcgencmd"):
        bits = _number(system.run(["vcgencmd", "get_throttled"]).out.strip().rpartition("=")[2], 16)
    return bits


def throttle_words(bits: int) -> tuple[list[str], list[str]]:
    now, since = ([text for bit, text in BITS.items() if bits >> (bit + shift) & 1] for shift in (0, SINCE_START))
    return now, since


def _numbers(system: System, pattern: str) -> list[int]:
    numbers = (_number(system.read(path)) for path in system.glob(pattern))
    return [number for number in numbers if number is not None]


def _number(text: str, base: int = 10) -> int | None:
    try:
        return int(text, base)
    except ValueError:
        return None


MQTT, CAMERA, HTTP = "EDGECNN_MQTT_", "EDGECNN_CAMERA_", "EDGECNN_HTTP_"
"""Prefixes of the environment variables that hold them; the names end in USER and PASSWORD, or in TOKEN."""

HIDDEN = "***"

USERINFO = re.compile(r"://(?:[^/?#\s:@]*:(?!\d*(?:[/?#\s]|$))\S*|[^/?#\s]*)@")
"""The user and password in an address. A password that is not quoted may contain a slash or an @."""

NAMES = "pass|passwd|password|passphrase|pwd|psw|token|key|auth|secret"
FIELD = re.compile(rf"((?:{NAMES})=|--?(?:{NAMES}|u|user)\s+|authorization:\s*\w+\s+)[^&;\s'\"]+", re.IGNORECASE)
"""An address field, option or header that holds a password, with its value."""


def masked(text: str) -> str:
    return FIELD.sub(rf"\1{HIDDEN}", USERINFO.sub(f"://{HIDDEN}@", text))


def environment() -> dict[str, str]:
    """Return the environment for another program, without users and passwords."""
    return {name: value for name, value in os.environ.items() if not name.startswith((MQTT, CAMERA, HTTP))}


def read_secret(prefix: str, file: Path | None) -> tuple[str | None, str | None]:
    """Return (user, password), each None if missing, from a file or the environment variables of a prefix. ValueError names a bad file."""
    user, password = (os.environ.get(prefix + name) or None for name in ("USER", "PASSWORD"))
    if file is not None:
        try:
            in_file, password = parse_secret(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError
            why = "is not UTF-8" if isinstance(error, UnicodeError) else getattr(error, "strerror", None) or error
            raise ValueError(f"{file}: {why}") from None
        user = in_file or user
    return user, password


def parse_secret(text: str) -> tuple[str | None, str]:
    """Parse a file with one line (the password) or two (the user, then the password); ValueError for any other."""
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if len(lines) > 2 or not all(lines):
        raise ValueError("expected one line with the password, or two: the user and the password")
    return (lines[0] if len(lines) == 2 else None), lines[-1]
