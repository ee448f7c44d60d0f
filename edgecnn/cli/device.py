"""The commands of the device: each parses, imports its stage, calls it once and prints."""

import json as json_module
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgecnn.cli.console import emit_json, note

if TYPE_CHECKING:
    from edgecnn.device.classify import Outcome
    from edgecnn.runtime.selftest import Row

Model = Annotated[
    Path | None,
    typer.Option(help="A bundle.", show_default="that of runs/latest, else the installed one, else the one that ships"),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="litert, tflite_runtime or onnxruntime.",
        show_default="the first installed one that runs a model of the bundle",
    ),
]
Threads = Annotated[int, typer.Option(min=1, max=256, help="Threads of one inference.")]


def classify(
    source: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            help="Image files, folders, globs, or - for a list of paths on standard input.",
            show_default="none",
        ),
    ] = None,
    model: Model = None,
    engine: EngineName = None,
    provider: Annotated[
        str | None, typer.Option(metavar="NAME", help="cpu, or cuda (ONNX Runtime only).", show_default="cpu")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="int8, float32, float16 or int16x8.", show_default="the bundle's choice for the engine"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=256, help="Threads of one inference.", show_default="as tuned, else 1")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes an image.")] = 3,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Abstain where the best score is below.", show_default="the bundle's, else 0"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON line an image.", show_default="off")] = False,
) -> None:
    """Classify images.

    An image that cannot be read is reported and skipped; the exit code is then 22. Which bundle and engine were taken
    stands on standard error.

    \b
    Examples:
      edgecnn classify photo.jpg
      edgecnn classify photos/ 'more/*.png' --json --threshold 0.6
      find . -name '*.jpg' | edgecnn classify - --model cats.edgecnn
    """
    if not source:
        raise typer.BadParameter(
            "name at least one image, folder or glob, or - to read a list of paths.", param_hint="SOURCE"
        )
    from edgecnn.device.classify import classify_sources
    from edgecnn.errors import PartialFailure
    from edgecnn.runtime.classifier import Classifier

    classifier = Classifier.load(model, engine=engine, provider=provider, precision=precision, num_threads=threads)
    note(classifier.about)
    count = failed = 0
    for outcome in classify_sources(classifier, source, sys.stdin.buffer, top_k=top_k, threshold=threshold):
        count += 1
        failed += outcome.error is not None
        if json:
            print(json_line(outcome), flush=True)
        elif outcome.error is not None:
            note(f"{outcome.source}: {outcome.error}")
        else:
            print(text_line(outcome), flush=True)
    if failed:
        raise PartialFailure(f"{failed} of {count} images could not be classified; each is named above.")
    if not count:
        raise PartialFailure("standard input named no image.")


def json_line(outcome: "Outcome") -> str:
    """Return one image's outcome as a JSON line: source, top and decision, or source and error."""
    if outcome.result is None:
        return json_module.dumps({"source": outcome.source, "error": str(outcome.error)})
    top = [{"label": item.label, "index": item.index, "score": round(item.score, 6)} for item in outcome.result.top]
    return json_module.dumps({"source": outcome.source, "top": top, "decision": outcome.result.decision})


def text_line(outcome: "Outcome") -> str:
    """Return one image's result for people: the source, then the classes with their scores, or the decision to abstain."""
    source = outcome.source.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text
    if outcome.result is None or not outcome.result.top:
        return f"{source}: abstain"
    return f"{source}: {', '.join(f'{item.label} {item.score:.2%}' for item in outcome.result.top)}"


def selftest(
    model: Model = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Check on this engine only; repeat it.", show_default="all that are installed"
        ),
    ] = None,
    threads: Threads = 1,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")] = False,
) -> None:
    """Replay a bundle's golden vectors on this device's engines.

    A difference larger than the bundle allows is a failure; the exit code is then 18.

    \b
    Examples:
      edgecnn selftest
      edgecnn selftest --model cats.edgecnn --engine litert --json
    """
    from edgecnn.bundle.read import read_bundle
    from edgecnn.runtime.default import find_bundle
    from edgecnn.runtime.selftest import require_pass
    from edgecnn.runtime.selftest import selftest as run_selftest

    choice = find_bundle(model)
    bundle = read_bundle(choice.path)
    note(f"{choice.path} ({choice.reason}), SHA-256 {bundle.sha256[:12]}")
    report = run_selftest(bundle, engine, threads)
    if json:
        rows = [row._asdict() for row in report.rows]
        layers = [layer._asdict() for layer in report.layers]
        emit_json(
            {
                "bundle": str(choice.path),
                "sha256": bundle.sha256,
                "passed": report.passed,
                "layers": layers,
                "rows": rows,
            }
        )
    else:
        for layer in report.layers:
            verdict = "passed" if layer.passed else "FAILED"
            print(f"{verdict:7} {layer.layer}: {layer.images} images, {len(layer.differing)} differ (0 allowed)")
        for row in report.rows:
            print(selftest_line(row))
    require_pass(report)


def selftest_line(row: "Row") -> str:
    """Return one model's check on one engine for people."""
    verdict = {True: "passed", False: "FAILED", None: "-"}[row.passed]
    where = (
        f" on {row.engine} {row.version} ({row.provider})" if row.version else f" on {row.engine}" if row.engine else ""
    )
    if row.note:
        return f"{verdict:7} {row.model}{where}: {row.note}"
    return (
        f"{verdict:7} {row.model}{where}: {row.images} images, largest difference {row.largest_difference:.3g} {row.unit} "
        f"({row.allowed:.3g} allowed), top-1 changes {row.top1_changes}"
    )


def targets(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default="off")] = False,
) -> None:
    """List the boards that edgecnn knows.

    \b
    Example:
      edgecnn targets --json
    """
    from edgecnn.boards.targets import list_targets

    known = list_targets()
    if json:
        emit_json({target.name: target.to_json() for target in known})
        return
    for target in known:
        memory = f"{target.memory_mib:,} MiB" if target.memory_mib else "-"
        print(f"{target.name:18} {target.title:32} {target.arch:8} {target.cpu_model:14} {target.engine:12} {memory}")
