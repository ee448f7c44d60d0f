"""Collects from a run folder or a bundle what the report shows."""

import json
from collections.abc import Sequence
from typing import Any

from edgecnn.bundle.read import Bundle
from edgecnn.bundle.verdict import AGAINST
from edgecnn.errors import BundleError
from edgecnn.recipe import to_toml
from edgecnn.report.choice import tuning_line
from edgecnn.report.figures import NO_ANSWERS, AnswerFigures, Missing, Origin, RunFigures, answer_figures
from edgecnn.report.history import epochs
from edgecnn.report.summary import summary
from edgecnn.report.table import against_float, images_of, warnings_of
from edgecnn.run_info import NetworkChoice
from edgecnn.runs import CHOICE, LAYERS, PARITY, PREDICTIONS, RECIPE, Run
from edgecnn.stress.stress_report import best_report
from edgecnn.tables import build
from edgecnn.verify.against import Against, read_against
from edgecnn.verify.gate import not_excluded
from edgecnn.verify.layers import LayerErrors
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Report
from edgecnn.verify.predictions import Predictions


def int8_name(report: Report) -> str | None:
    """Return the name of the int8 export whose answers the report shows: the one used for confidence, else the first."""
    names = [model.name for model in report.models if model.precision == "int8"]
    if report.confidence and report.confidence.model in names:
        return report.confidence.model
    return names[0] if names else None


def verdict(report: Report | None) -> str:
    if report is None:
        return "Not verified: it is not known whether the exports answer like the float model."
    name = int8_name(report) or report.models[-1].name
    paired = against_float(report).get(name)
    figures = ""
    if paired:
        figures = (
            f" {name} answers {paired.accuracy_candidate:.2%} of {paired.n:,} {images_of(report)} correctly, the float model "
            f"{paired.accuracy_reference:.2%}; they agree on {paired.agreement:.2%}."
        )
    figures = " ".join([figures, *not_excluded(report)])
    if not report.passed:
        return f"FAILED: the exports do not answer like the float model.{figures}"
    if report.chance.not_better:
        return f"AT CHANCE LEVEL: the model is not shown to be better than guessing.{figures}"
    return f"Passed: the exports answer like the float model.{figures}"


def shared(report: Report | None, answers: AnswerFigures, labels: Sequence[str]) -> dict[str, Any]:
    """Return the common part of a run's and a bundle's report, from the parity report and answers, as arguments of `RunFigures`."""
    said: tuple[str, ...] = ()
    int8 = int8_name(report) if report else None
    if report:
        model = next(item for item in report.models if item.name == (int8 or report.models[-1].name))
        said = summary(
            report, model, next((item for item in answers.confusion if item.model == model.name), None), labels
        )
    return {
        **vars(answers),
        "summary": said,
        "verdict": verdict(report),
        "passed": report.passed if report else None,
        "warnings": tuple(warnings_of(report)) if report else (),
        "parity": report,
        "int8": int8,
    }


def run_figures(run: Run, predictions: Predictions | None) -> RunFigures:
    """Collect a run's figures from its files, without running a model. Raises RunError if the run or its parity report is unreadable."""
    labels = run.info.data.labels
    report = parity_report(run) if run.file(PARITY).exists() else None
    name = int8_name(report) if report else None
    missing: list[Missing] = []
    answers = NO_ANSWERS

    def lacks(part: str, why: str, command: str) -> None:
        missing.append(Missing(part=part, why=why, command=command))

    parts = "confusion, reliability, coverage and galleries"
    if report is None:
        every = "verdict, confusion, reliability, coverage, galleries, sizes and times"
        lacks(every, "the run was not verified", run.command("verify"))
    elif name is None:
        lacks(parts, "the run has no int8 export", f"{run.command('export')} --int8")
    elif predictions is None or not {"float", name} <= set(predictions.answers):
        lacks(parts, f"the run lacks answers to its test images ({PREDICTIONS})", run.command("verify"))
    else:
        temperature = report.confidence.temperature if report.confidence and report.confidence.model == name else None
        answers = answer_figures(predictions, name, temperature, labels)
    layers, stressed = run.stored(LAYERS, LayerErrors), best_report(run)
    if layers is None and not run.frozen:
        lacks("noise by layer", "it was not measured", run.command("layers"))
    if stressed is None and name is not None:
        lacks("stress", "it was not measured", run.command("stress"))
    if report and not report.boards:
        lacks("boards", "the exports were not run on a board", f"{run.command('verify')} --on rpi4")
    return RunFigures(
        name=run.recipe.name or run.name,
        kind="run",
        origin=run_origin(run),
        choice=run.stored(CHOICE, NetworkChoice),
        against=run.stored(AGAINST, Against),
        epochs=epochs(run),
        layers=layers,
        stress=stressed,
        missing=tuple(missing),
        **shared(report, answers, labels),
    )


def bundle_figures(bundle: Bundle) -> RunFigures:
    """Collect a bundle's figures from its parity report, without answers to single images. Raises BundleError if it is unreadable."""
    manifest = bundle.manifest
    provenance = manifest.provenance
    report = None
    if PARITY in bundle.files:
        try:
            report = build(Report, json.loads(bundle.files[PARITY]), ValueError)
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {PARITY} is not a parity report: {error}.") from None
    contract, sizes = manifest.input, provenance["data"]["split_sizes"]
    missing = Missing(
        part="confusion, reliability, coverage, learning curves, noise by layer, stress and galleries",
        why="a bundle contains only its parity report",
        command="edgecnn run recipe.toml, with the recipe below, then edgecnn report",
    )
    return RunFigures(
        name=manifest.name,
        kind="bundle",
        origin=Origin(
            network=str(provenance["recipe"]["network"]["name"]),
            parameters=None,
            input=f"{contract.height}x{contract.width}x{contract.channels}",
            labels=manifest.labels,
            data=str(provenance["data"]["title"]),
            fingerprint=str(provenance["data"]["fingerprint"]),
            training_images=sizes.get("train"),
            validation_images=sizes.get("validation"),
            seconds=None,
            imported=None,
            tuning=None,
            recipe=bundle.files.get(RECIPE, b"").decode("utf-8", "replace"),
        ),
        choice=None,
        against=read_against(bundle),
        epochs=(),
        layers=None,
        stress=None,
        missing=(missing,),
        **shared(report, NO_ANSWERS, manifest.labels),
    )


def run_origin(run: Run) -> Origin:
    info = run.info
    data, shape = info.data, info.input
    return Origin(
        network=run.public_recipe.network.name,
        parameters=info.parameters,
        input=f"{shape.height}x{shape.width}x{shape.channels}",
        labels=data.labels,
        data=data.title,
        fingerprint=data.fingerprint,
        training_images=data.used.get("train"),
        validation_images=data.used.get("validation"),
        seconds=info.seconds,
        imported=info.imported.format if info.imported else None,
        tuning=tuning_line(info.tuning) if info.tuning else None,
        recipe=to_toml(run.public_recipe),
    )
