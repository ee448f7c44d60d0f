"""The sensors of a board: clock frequency, temperature, throttling."""

from dataclasses import dataclass

from edgecnn.device.system import System

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
    """Return the conditions that the bits report: the current ones, and those since boot."""
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
