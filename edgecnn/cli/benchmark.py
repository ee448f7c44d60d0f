"""`edgecnn benchmark`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.benchmark_text import print_table, sustained_line, window_line
from edgecnn.cli.console import emit_json, note
from edgecnn.cli.options import Json, Model, Provider, check_choice

if TYPE_CHECKING:
    from edgecnn.boards.targets import Target
    from edgecnn.bundle.read import Bundle
    from edgecnn.device.benchmark.configurations import Configuration
    from edgecnn.device.benchmark.figures import Sweep
    from edgecnn.device.benchmark.images import BenchImages

INTERRUPTED = 130
CALLS, WINNER = "Calls", "The winner"
"""Headings of options in the help."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is to be measured: each field empty or None for all that there is."""

    engines: Sequence[str]
    precisions: Sequence[str]
    threads: Sequence[int]
    provider: str | None


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
        typer.Option(
            metavar="NAME",
            help="Measure this engine. May be repeated.",
            show_default="all that are installed",
            rich_help_panel="Engine",
        ),
    ] = None,
    provider: Provider = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Measure this precision. May be repeated.",
            show_default="all in the bundle",
            rich_help_panel="Engine",
        ),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=256,
            help="Measure with this many threads. May be repeated.",
            show_default="1, 2, 4 … up to the number of CPUs",
            rich_help_panel="Engine",
        ),
    ] = None,
    n: Annotated[
        int,
        typer.Option("--n", min=10, max=1_000_000, help="Timed calls of each configuration.", rich_help_panel=CALLS),
    ] = 200,
    warmup: Annotated[
        int, typer.Option(min=1, max=100_000, help="Untimed calls to make first.", rich_help_panel=CALLS)
    ] = 20,
    cold: Annotated[
        int,
        typer.Option(
            min=0, max=1000, help="Cold starts of each engine's fastest configuration.", rich_help_panel=CALLS
        ),
    ] = 5,
    sustained: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES",
            help="Run one configuration for this long instead, to see whether it slows down.",
            show_default="off",
            rich_help_panel=CALLS,
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Make classify use the winner from now on.", show_default="off", rich_help_panel=WINNER
        ),
    ] = False,
    untune: Annotated[
        bool,
        typer.Option(
            "--untune",
            help="Forget the bundle's winner, and measure nothing.",
            show_default="off",
            rich_help_panel=WINNER,
        ),
    ] = False,
    save: Annotated[
        bool,
        typer.Option(
            "--save", help="Write the figures into the target's file.", show_default="off", rich_help_panel=WINNER
        ),
    ] = False,
    save_to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write them into this file instead.",
            show_default="none",
            rich_help_panel=WINNER,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The target whose file --save writes.",
            show_default="the one for this board",
            rich_help_panel=WINNER,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Measure decoding, preprocessing and inference on this machine.

    Calls of different configurations are interleaved, and all images are loaded into memory before the first call. Peak memory is
    measured in a separate process for each configuration. A cold start is one run of edgecnn classify on one image. Ctrl-C prints the
    results so far; the exit code is then 130.

    \b
    Examples:
      edgecnn benchmark photos/ --json
      edgecnn benchmark --tune
      edgecnn benchmark --sustained 10
      edgecnn benchmark --save --target rpi4
    """
    chosen = Choice(engines=engine or (), precisions=precision or (), threads=threads or (), provider=provider)
    saves = save or save_to is not None
    if sustained is not None and (tune or saves or target):
        raise typer.BadParameter("--sustained runs one configuration, so it goes with neither --tune nor --save.")
    if sustained is not None:
        require_one(chosen, sustained)
    if untune and (source or sustained is not None or tune or saves):
        raise typer.BadParameter("--untune measures nothing: give only --model and --json with it.")
    if target is not None and not saves:
        raise typer.BadParameter("--target goes with --save.")
    from edgecnn.bundle.read import read_bundle
    from edgecnn.device.slots.default import default_bundle
    from edgecnn.runtime.engines import PROVIDERS

    check_choice("--provider", provider, PROVIDERS)
    choice = default_bundle(model)
    bundle = read_bundle(choice.path)
    note(f"{choice.path} ({choice.reason}), SHA-256 {bundle.sha256[:12]}")
    if untune:
        print_untune(bundle.sha256, json)
        return
    saving = save_target(bundle, target) if saves else None
    from edgecnn.device.benchmark.images import bench_images

    images = bench_images(bundle, source or (), n, note)
    note(f"images: {images.about}")
    if sustained is not None:
        print_sustained(bundle, images, chosen, sustained, warmup, json)
        return
    measured = measure(bundle, images, chosen, n=n, warmup=warmup, cold=cold, json=json)
    if measured.interrupted:
        note("interrupted: the results cover the calls made so far" + ("; nothing was saved" if tune or saving else ""))
        raise typer.Exit(INTERRUPTED)
    if tune:
        store_winner(bundle, measured)
    if saving:
        save_figures(bundle, measured, saving[0], saving[1], save_to)


def require_one(chosen: Choice, minutes: float) -> None:
    """Check what --sustained can run.

    Raises:
        typer.BadParameter: a usage error, for minutes out of range, or more than one configuration.
    """
    if not 0.01 <= minutes <= 10_000:
        raise typer.BadParameter(f"--sustained takes 0.01 to 10000 minutes, received {minutes:g}.")
    options = {"--engine": chosen.engines, "--precision": chosen.precisions, "--threads": chosen.threads}
    for name, values in options.items():
        if len(values) > 1:
            raise typer.BadParameter(f"--sustained runs one configuration: give {name} once.")


def measure(
    bundle: "Bundle", images: "BenchImages", chosen: Choice, *, n: int, warmup: int, cold: int, json: bool
) -> "Sweep":
    """Measure the chosen configurations, and print the result."""
    from edgecnn.device.benchmark.configurations import configurations
    from edgecnn.device.benchmark.sweep import sweep

    note_load()
    if n < 100:
        note(f"with {n} calls, p99 is close to the slowest call. For a better estimate: --n 100 or more")
    items = configurations(
        bundle.manifest,
        engines=chosen.engines,
        precisions=chosen.precisions,
        threads=chosen.threads,
        provider=chosen.provider,
    )
    measured = sweep(bundle, images, items, n=n, warmup=warmup, cold=cold, progress=Progress())
    for item, reason in measured.failed.items():
        note(f"{item.name} cannot run here: {reason}")
    if json:
        from edgecnn.device.benchmark.report import document

        emit_json(document(bundle, images, measured, warmup))
    else:
        print_table(measured)
    return measured


class Progress:
    """Progress on standard error: in a terminal one line that is overwritten, elsewhere a line for each step."""

    def __init__(self) -> None:
        self.step = ""
        self.shown = -1

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show how much of a step is done."""
        percent = 100 * done // max(total, 1)
        if sys.stderr.isatty():
            if (step, percent) != (self.step, self.shown):
                sys.stderr.write(f"\r\033[K{step} {percent} %" if done < total else "\r\033[K")
                sys.stderr.flush()
        elif step != self.step:
            note(f"{step} ({total:,})")
        self.step, self.shown = step, percent


def note_load() -> None:
    """Print a note if other work keeps the machine busy, which makes the figures worse."""
    import os

    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > cpus / 2:
        note(
            f"this machine is busy: load average {load:.1f} on {cpus} CPUs. Measure on a quiet machine for better figures."
        )


def print_sustained(
    bundle: "Bundle", images: "BenchImages", chosen: Choice, minutes: float, warmup: int, json: bool
) -> None:
    """Run one configuration for minutes, and print how its speed developed."""
    from edgecnn.device.benchmark.sustained import sustain
    from edgecnn.device.system import System
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(
        bundle.path,
        engine=next(iter(chosen.engines), None),
        provider=chosen.provider,
        precision=next(iter(chosen.precisions), None),
        num_threads=next(iter(chosen.threads), None),
    )
    note(classifier.about)
    system = System(packages={})
    done = sustain(
        classifier,
        images,
        minutes=minutes,
        warmup=warmup,
        system=system,
        report=lambda window: note(window_line(window)),
    )
    if json:
        from edgecnn.device.benchmark.report import sustained_document

        emit_json(sustained_document(bundle, images, classifier.about, done))
    else:
        for window in done.windows:
            print(window_line(window))
        print(sustained_line(done))
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


def store_winner(bundle: "Bundle", measured: "Sweep") -> None:
    """Keep the winner for `edgecnn classify`."""
    from edgecnn.device.benchmark.report import tuned_winner
    from edgecnn.runtime.tuned import store

    tuned = tuned_winner(measured)
    note(f"{tuned.about}; saved in {store(bundle.sha256, tuned)}. To undo: edgecnn benchmark --untune")


def print_untune(sha256: str, json: bool) -> None:
    """Forget a bundle's tuned setting."""
    from edgecnn.runtime.tuned import remove

    removed = remove(sha256)
    if json:
        emit_json({"sha256": sha256, "removed": removed})
    else:
        print("removed the tuned setting" if removed else "there was no tuned setting for this bundle")


def save_target(bundle: "Bundle", name: str | None) -> tuple["Target", str]:
    """Return the target of --save, the one named, else this board's, and the model file whose figures are its reference."""
    from edgecnn.boards.reference import detect_target
    from edgecnn.boards.targets import load_target
    from edgecnn.device.system import System
    from edgecnn.runtime.default import choose_model

    target = load_target(name) if name else detect_target(System(packages={}).board)
    return target, choose_model(bundle.manifest, engine=target.engine).model.file


def save_figures(bundle: "Bundle", measured: "Sweep", target: "Target", file: str, out: Path | None) -> None:
    """Write the figures of the target's engine and threads, with the bundle's default model for it, into the target's file.

    Raises:
        EngineError: if that configuration was not measured.
    """
    from edgecnn.boards.reference import save_reference
    from edgecnn.boards.targets import Reference
    from edgecnn.errors import EngineError
    from edgecnn.runtime.tuned import hardware
    from edgecnn.versions import library_versions

    rows = [row for row in measured.rows if matches(row.configuration, target, file)]
    if not rows:
        raise EngineError(
            f"nothing was saved: {target.name} needs {target.engine} with {target.num_threads} threads and {file}, which was not "
            f"measured. Measure it: edgecnn benchmark --save --target {target.name} --engine {target.engine} --threads {target.num_threads}"
        )
    infer, taken = rows[0].parts["infer"], bundle.manifest.input
    versions = {key: value for key, value in library_versions().items() if key in ("edgecnn", "python", "numpy")}
    reference = Reference(
        model=f"{bundle.manifest.name} {rows[0].configuration.precision}, SHA-256 {bundle.sha256[:12]}",
        hardware=hardware(),
        versions={**versions, target.engine: rows[0].probed.version},
        n=infer.n,
        p50_ms=round(infer.p50_ms, 4),
        p90_ms=round(infer.p90_ms, 4),
        network=network_of(bundle),
        height=taken.height,
        width=taken.width,
        channels=taken.channels,
    )
    note(
        f"saved in {save_reference(target, reference, out)}: one inference takes {reference.p50_ms} ms (p50), {reference.p90_ms} ms (p90)"
    )


def network_of(bundle: "Bundle") -> str:
    """Return the network that a bundle's recipe names; "" where it has no recipe."""
    recipe = bundle.manifest.provenance.get("recipe")
    network = recipe.get("network") if isinstance(recipe, dict) else None
    name = network.get("name") if isinstance(network, dict) else None
    return name if isinstance(name, str) else ""


def matches(item: "Configuration", target: "Target", file: str) -> bool:
    """Tell whether a configuration is the one that a target's reference figures are of."""
    provider = item.provider or "cpu"
    return (item.engine, item.threads, item.file, provider) == (
        target.engine,
        target.num_threads,
        file,
        target.provider,
    )
