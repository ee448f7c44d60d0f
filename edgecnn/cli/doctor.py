"""edgecnn doctor, selftest and benchmark: is this machine in order, are its answers right, and how fast are they?"""

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.options import Json, Model, check_choice, emit_json, note, option, with_flags
from edgecnn.device.stream.settings import Engine
from edgecnn.labels import printable, printable_lines

if TYPE_CHECKING:
    from edgecnn.bundle.file import Bundle
    from edgecnn.device.benchmark import BenchmarkRow, Configuration, Sustained, Sweep, Window
    from edgecnn.device.doctor import Finding
    from edgecnn.device.probe import BenchImages
    from edgecnn.runtime.classifier import Classifier
    from edgecnn.runtime.selftest import SelftestRow


def doctor(
    model: Model = None,
    quiet: bool = option(False, "Leave out the checks that pass.", "off", None, "--quiet", "-q"),
    json: Json = False,
) -> None:
    """Check this machine, and show how to fix what is wrong.

    Checks the system, processor, power, versions, bundle, engines and cameras. Each engine runs in its own process, so a crash is reported
    too. The exit code is 26 if there is an error. doctor changes nothing and does not use the network.

    \b
    Examples:
      edgecnn doctor
      edgecnn doctor --quiet --model cats.edgecnn
    """
    from edgecnn.device.doctor import examine, require_healthy
    from edgecnn.device.system import System

    diagnosis = examine(System(model=str(model or "")))
    if json:
        emit_json(diagnosis.to_json())
    else:
        for name, finding in diagnosis.findings:
            if not quiet or finding.severity != "ok":
                print(printable_lines(text(name, finding)))
        print(", ".join(f"{diagnosis.count(severity)} {severity}" for severity in ("ok", "note", "warning", "error")))
    require_healthy(diagnosis)


def text(name: str, finding: "Finding") -> str:
    lines = [f"{finding.severity:8} {name:14} {finding.result}"]
    lines += [f"{'':23} {finding.means}"] if finding.means else []
    lines += [f"{'':23} fix: {finding.fix}"] if finding.fix else []
    return "\n".join(lines)


def selftest(
    model: Model = None,
    engine: list[str] | None = option(
        None, "Check only this engine. May be repeated.", "all that are installed", metavar="NAME"
    ),
    threads: int = option(1, "Threads per inference.", min=1, max=256),
    limit: float = option(
        60.0, "Seconds that one model may take; all together, five times as long.", min=1, metavar="SECONDS"
    ),
    json: Json = False,
) -> None:
    """Replay a bundle's golden vectors on this device's engines.

    A difference larger than the bundle allows is a failure; the exit code is then 18. Each model runs in its own process, with limited
    time and at most 2 GiB of memory, so a model that crashes or hangs its engine is a failure too.

    \b
    Examples:
      edgecnn selftest
      edgecnn selftest --model cats.edgecnn --engine litert --json
    """
    from edgecnn.bundle.file import read_bundle
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.selftest import require_pass
    from edgecnn.runtime.selftest import selftest as run_selftest

    choice = default_bundle(model)
    bundle = read_bundle(choice.path)
    note(f"{choice.path} ({choice.reason}), SHA-256 {bundle.sha256[:12]}")
    report = run_selftest(bundle, engine, threads, apart=True, limit_s=limit)
    if json:
        checked = {name: [row._asdict() for row in getattr(report, name)] for name in ("layers", "rows")}
        about = {"bundle": str(choice.path), "reason": choice.reason, "sha256": bundle.sha256}
        emit_json({**about, "passed": report.passed, **checked})
    else:
        for layer in report.layers:
            verdict = "passed" if layer.passed else "FAILED"
            print(f"{verdict:7} {layer.layer}: {layer.images} images, {len(layer.differing)} differ (0 allowed)")
        for row in report.rows:
            print(printable(selftest_line(row)))
    require_pass(report)


def selftest_line(row: "SelftestRow") -> str:
    verdict = {True: "passed", False: "FAILED", None: "-"}[row.passed]
    where = f" on {row.engine}" if row.engine else ""
    where += f" {row.version} ({row.provider})" if row.version else ""
    if row.note:
        return f"{verdict:7} {row.model}{where}: {row.note}"
    return (
        f"{verdict:7} {row.model}{where}: {row.images} images, largest difference {row.largest_difference:.3g} {row.unit} "
        f"({row.allowed:.3g} allowed), top-1 changes {row.top1_changes}"
    )


INTERRUPTED = 130
CALLS = "Calls"


@with_flags
def benchmark(
    source: list[str] | None = typer.Argument(
        None,
        metavar="[SOURCE]...",
        help="Image files, folders, globs, or - to read paths from standard input.",
        show_default="the golden photos in the bundle",
    ),
    model: Model = None,
    engine: list[str] | None = option(
        None, "Measure this engine. May be repeated.", "all that are installed", "Engine", metavar="NAME"
    ),
    provider: Annotated[str | None, Engine] = None,
    precision: list[str] | None = option(
        None, "Measure this precision. May be repeated.", "all in the bundle", "Engine", metavar="NAME"
    ),
    threads: list[int] | None = option(
        None,
        "Measure with this many threads. May be repeated.",
        "1, 2, 4 … up to the number of CPUs",
        "Engine",
        min=1,
        max=256,
    ),
    n: int = option(200, "Timed calls of each configuration.", True, CALLS, "--n", min=10, max=1_000_000),
    warmup: int = option(20, "Untimed calls to make first.", True, CALLS, min=1, max=100_000),
    sustained: float | None = option(
        None,
        "Run one configuration for this long instead, to see whether it slows down.",
        "off",
        CALLS,
        metavar="MINUTES",
    ),
    json: Json = False,
) -> None:
    """Measure decoding, preprocessing and inference on this machine.

    Calls of different configurations are interleaved, and all images are loaded into memory before the first call. Peak memory is
    measured in a separate process for each configuration. The table ends with the winner and the options that make classify use it.
    Ctrl-C prints the results so far and exits with code 130.

    \b
    Examples:
      edgecnn benchmark photos/ --json
      edgecnn benchmark --threads 1 --threads 2
      edgecnn benchmark --sustained 10
    """
    if sustained is not None:
        if not 0.01 <= sustained <= 10_000:
            raise typer.BadParameter(f"--sustained takes 0.01 to 10000 minutes, received {sustained:g}.")
        for name, values in {"--engine": engine, "--precision": precision, "--threads": threads}.items():
            if len(values or ()) > 1:
                raise typer.BadParameter(f"--sustained runs one configuration: give {name} once.")
    from edgecnn.bundle.file import read_bundle
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.engines import PROVIDERS

    check_choice("--provider", provider, PROVIDERS)
    choice = default_bundle(model)
    bundle = read_bundle(choice.path)
    note(f"{choice.path} ({choice.reason}), SHA-256 {bundle.sha256[:12]}")
    from edgecnn.device.probe import bench_images

    images = bench_images(bundle, source or (), n, note)
    note(f"images: {images.about}")
    if sustained is not None:
        from edgecnn.runtime.classifier import Classifier

        classifier = Classifier.load(
            bundle.path,
            engine=next(iter(engine or ()), None),
            provider=provider,
            precision=next(iter(precision or ()), None),
            num_threads=next(iter(threads or ()), 1),
        )
        print_sustained(bundle, images, classifier, sustained, warmup, json)
        return
    from edgecnn.device.benchmark import configurations, sweep

    note_load()
    if n < 100:
        note(f"with {n} calls, p99 is close to the slowest call. For a better estimate: --n 100 or more")
    items = configurations(
        bundle.manifest, engines=engine or (), precisions=precision or (), threads=threads or (), provider=provider
    )
    measured = sweep(bundle, images, items, n=n, warmup=warmup, progress=Progress())
    for item, reason in measured.failed.items():
        note(f"{item.name} cannot run here: {reason}")
    if json:
        from edgecnn.device.benchmark import sweep_document

        emit_json(sweep_document(bundle, images, measured, warmup))
    else:
        print_table(measured)
    if measured.interrupted:
        note("interrupted: the results cover the calls made so far")
        raise typer.Exit(INTERRUPTED)


class Progress:
    """Progress on standard error: in a terminal one line that is overwritten, elsewhere a line for each step."""

    def __init__(self) -> None:
        self.step = ""
        self.shown = -1

    def __call__(self, step: str, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if sys.stderr.isatty():
            if (step, percent) != (self.step, self.shown):
                sys.stderr.write(f"\r\033[K{step} {percent} %" if done < total else "\r\033[K")
                sys.stderr.flush()
        elif step != self.step:
            note(f"{step} ({total:,})")
        self.step, self.shown = step, percent


def note_load() -> None:
    import os

    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > cpus / 2:
        note(
            f"this machine is busy: load average {load:.1f} on {cpus} CPUs. Measure on a quiet machine for better figures."
        )


def print_sustained(
    bundle: "Bundle", images: "BenchImages", classifier: "Classifier", minutes: float, warmup: int, json: bool
) -> None:
    from edgecnn.device.benchmark import sustain
    from edgecnn.device.system import System

    note(classifier.about)

    def report(window: "Window") -> None:
        note(window_line(window))

    system = System(packages={})
    done = sustain(classifier, images, minutes=minutes, warmup=warmup, system=system, report=report)
    if json:
        from edgecnn.device.benchmark import sustained_document

        emit_json(sustained_document(bundle, images, classifier.about, done))
    else:
        for window in done.windows:
            print(window_line(window))
        print(sustained_line(done))
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


def print_table(measured: "Sweep") -> None:
    from edgecnn.device.benchmark import ELIGIBLE, RULE, hardware, winner

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


def table_line(row: "BenchmarkRow") -> str:
    infer, whole = row.parts["infer"], row.parts["whole"]
    figures = "".join(f"{value:9.3f}" for part in (infer, whole) for value in dataclasses.astuple(part)[:3])
    verdict = {True: "passed", False: "FAILED", None: "unknown"}[row.gate]
    here = f"; GOLDEN VECTORS FAILED: {row.probed.golden}" if row.probed.golden else ""
    return f"{row.configuration.name:34}{figures}{row.probed.peak_mib:7.0f}  {verdict}{here}"


def window_line(window: "Window") -> str:
    from edgecnn.device.system import throttle_words

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
