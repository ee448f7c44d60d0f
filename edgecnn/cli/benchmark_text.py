"""The results of `edgecnn benchmark` as text."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgecnn.device.benchmark.configurations import Configuration
    from edgecnn.device.benchmark.figures import Row, Sweep
    from edgecnn.device.benchmark.sustained import Sustained, Window


def print_table(measured: "Sweep") -> None:
    from edgecnn.device.benchmark.benchmark_report import hardware
    from edgecnn.device.benchmark.figures import ELIGIBLE, RULE, winner

    if not measured.rows:
        print("nothing was measured")
        return
    counts = sorted({row.parts["whole"].n for row in measured.rows})
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))  # an interruption leaves fewer for some
    print(f"{hardware()}; ms, n = {n}; fastest first by infer p50\n")
    print(f"{'':34} {'infer':^26} {'whole':^26} {'peak':>6}")
    print(f"{'configuration':34}{'p50':>9}{'p90':>9}{'p99':>9}{'p50':>9}{'p90':>9}{'p99':>9}{'MiB':>7}  gate")
    for row in measured.rows:
        print(table_line(row))
    print()
    for part in ("decode", "preprocess"):
        p50, p90, p99, _ = dataclasses.astuple(measured.rows[0].parts[part])
        print(f"{part}: p50 {p50:.3f}, p90 {p90:.3f}, p99 {p99:.3f} ms (of the first row)")
    best = winner(measured.rows)
    print(f"winner: {best.configuration.name if best else 'none'} ({RULE};\n{ELIGIBLE})")
    if best:
        print(f"to use it: edgecnn classify {' '.join(options(best.configuration))}")


def options(chosen: "Configuration") -> list[str]:
    """Return the options of `edgecnn classify` that select a configuration."""
    provider = ["--provider", chosen.provider] if chosen.provider else []
    return ["--engine", chosen.engine, *provider, "--precision", chosen.precision, "--threads", f"{chosen.threads}"]


def table_line(row: "Row") -> str:
    infer, whole = row.parts["infer"], row.parts["whole"]
    figures = "".join(f"{value:9.3f}" for part in (infer, whole) for value in dataclasses.astuple(part)[:3])
    verdict = {True: "passed", False: "FAILED", None: "unknown"}[row.gate]
    here = f"; GOLDEN VECTORS FAILED: {row.probed.golden}" if row.probed.golden else ""
    return f"{row.configuration.name:34}{figures}{row.probed.peak_mib:7.0f}  {verdict}{here}"


def window_line(window: "Window") -> str:
    from edgecnn.device.sensors import throttle_words

    sensors = window.sensors
    whole = window.whole
    line = f"{window.start_s:6.0f} s  p50 {whole.p50_ms:.3f} ms  p90 {whole.p90_ms:.3f} ms  n = {whole.n:,}"
    line += f"  {sensors.mhz:,} MHz" if sensors.mhz is not None else ""
    line += f"  {sensors.celsius:.1f} °C" if sensors.celsius is not None else ""
    if sensors.throttled is not None:
        line += f"  {', '.join(throttle_words(sensors.throttled)[0]) or 'not throttled'}"
    return line


def sustained_line(done: "Sustained") -> str:
    drift = "the drift is unknown with fewer than two windows"
    if done.drift is not None:
        first, last = (done.windows[index].whole.p50_ms for index in (0, -1))
        drift = f"drift of p50: {done.drift:+.1%}, from {first:.3f} ms to {last:.3f} ms"
    if done.throttled is None:
        return f"{drift}; throttling is unknown: this machine has no sensor for it"
    return f"{drift}; {'it throttled: ' + ', '.join(done.throttled) if done.throttled else 'it did not throttle'}"
