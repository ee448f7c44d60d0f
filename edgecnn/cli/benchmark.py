"""`edgecnn benchmark`."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.benchmark_text import print_table, sustained_line, window_line
from edgecnn.cli.console import emit_json, note
from edgecnn.cli.flags import with_flags
from edgecnn.cli.options import Json, Model, check_choice, option
from edgecnn.device.stream.settings import Engine

if TYPE_CHECKING:
    from edgecnn.bundle.read import Bundle
    from edgecnn.device.benchmark.images import BenchImages
    from edgecnn.device.benchmark.sustained import Window
    from edgecnn.runtime.classifier import Classifier

INTERRUPTED = 130
CALLS = "Calls"


@with_flags
def benchmark(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Image files, folders, globs, or - to read paths from standard input.",
            show_default="the golden photos in the bundle",
        ),
    ] = None,
    model: Model = None,
    engine: Annotated[
        list[str] | None,
        option("Measure this engine. May be repeated.", "all that are installed", "Engine", metavar="NAME"),
    ] = None,
    provider: Annotated[str | None, Engine] = None,
    precision: Annotated[
        list[str] | None,
        option("Measure this precision. May be repeated.", "all in the bundle", "Engine", metavar="NAME"),
    ] = None,
    threads: Annotated[
        list[int] | None,
        option(
            "Measure with this many threads. May be repeated.",
            "1, 2, 4 … up to the number of CPUs",
            "Engine",
            min=1,
            max=256,
        ),
    ] = None,
    n: Annotated[int, option("Timed calls of each configuration.", True, CALLS, "--n", min=10, max=1_000_000)] = 200,
    warmup: Annotated[int, option("Untimed calls to make first.", True, CALLS, min=1, max=100_000)] = 20,
    sustained: Annotated[
        float | None,
        option(
            "Run one configuration for this long instead, to see whether it slows down.",
            "off",
            CALLS,
            metavar="MINUTES",
        ),
    ] = None,
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
    from edgecnn.bundle.read import read_bundle
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.engines import PROVIDERS

    check_choice("--provider", provider, PROVIDERS)
    choice = default_bundle(model)
    bundle = read_bundle(choice.path)
    note(f"{choice.path} ({choice.reason}), SHA-256 {bundle.sha256[:12]}")
    from edgecnn.device.benchmark.images import bench_images

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
    from edgecnn.device.benchmark.configurations import configurations
    from edgecnn.device.benchmark.sweep import sweep

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
        from edgecnn.device.benchmark.benchmark_report import document

        emit_json(document(bundle, images, measured, warmup))
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
    from edgecnn.device.benchmark.sustained import sustain
    from edgecnn.device.system import System

    note(classifier.about)

    def report(window: "Window") -> None:
        note(window_line(window))

    system = System(packages={})
    done = sustain(classifier, images, minutes=minutes, warmup=warmup, system=system, report=report)
    if json:
        from edgecnn.device.benchmark.benchmark_report import sustained_document

        emit_json(sustained_document(bundle, images, classifier.about, done))
    else:
        for window in done.windows:
            print(window_line(window))
        print(sustained_line(done))
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)
