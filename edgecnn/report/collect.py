"""From a run folder or a bundle to what the report shows of it."""

import json
from collections.abc import Sequence

from edgecnn.bundle.read import Bundle
from edgecnn.errors import BundleError
from edgecnn.recipe import to_toml
from edgecnn.report.figures import AnswerFigures, Missing, Origin, RunFigures, answer_figures
from edgecnn.report.history import epochs
from edgecnn.report.summary import summary
from edgecnn.report.table import against_float, warnings_of
from edgecnn.runs import LAYERS, PARITY, RECIPE, Run
from edgecnn.stress.stress_report import best_report
from edgecnn.tables import build
from edgecnn.verify.gate import not_excluded
from edgecnn.verify.layers import LayerErrors
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Report
from edgecnn.verify.predictions import Predictions


def layers(run: Run) -> LayerErrors | None:
    """Return what `edgecnn layers` measured of a run; None if it has not, or the file cannot be used."""
    return run.stored(LAYERS, LayerErrors)


def int8_name(report: Report) -> str | None:
    """Return the name of the int8 export that a report's answers are shown of: its confidence's, else the first."""
    names = [model.name for model in report.models if model.precision == "int8"]
    if report.confidence and report.confidence.model in names:
        return report.confidence.model
    return names[0] if names else None


def verdict(report: Report | None) -> str:
    """Return a report's verdict in a sentence."""
    if report is None:
        return "Not verified: whether the exports answer as the float model does is not known."
    at_chance = report.chance.not_better if report.chance else ()
    int8 = int8_name(report)
    name = int8 or report.models[-1].name
    paired = against_float(report).get(name)
    figures = ""
    if paired:
        figures = (
            f" {name} answers {paired.accuracy_candidate:.2%} of {paired.n:,} test images correctly, the float model "
            f"{paired.accuracy_reference:.2%}; they agree on {paired.agreement:.2%}."
        )
    figures = " ".join([figures, *not_excluded(report)])
    if not report.passed:
        return f"FAILED: what ships does not answer as the float model does.{figures}"
    if at_chance:
        return f"AT CHANCE LEVEL: the model is not shown to be better than guessing.{figures}"
    return f"Passed: what ships answers as the float model does.{figures}"


def said(report: Report | None, answers: AnswerFigures, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the sentences on whether a model is good; none without a report."""
    if report is None:
        return ()
    name = int8_name(report) or report.models[-1].name
    model = next(item for item in report.models if item.name == name)
    return summary(report, model, next((item for item in answers.confusion if item.model == name), None), labels)


def run_figures(run: Run, predictions: Predictions | None) -> RunFigures:
    """Return what a run's files show, computed by no model. RunError if the run or its parity report cannot be read."""
    info = run.info
    report = parity_report(run) if run.file(PARITY).exists() else None
    labels = info.data.labels
    name = int8_name(report) if report else None
    missing: list[Missing] = []
    answers = AnswerFigures()
    if report is None:
        parts = "verdict, confusion, reliability, coverage, galleries, sizes and times"
        missing.append(Missing(part=parts, why="the run was not verified", command=run.command("verify")))
    elif name is None:
        parts = "confusion, reliability, coverage and galleries"
        missing.append(Missing(part=parts, why="the run has no int8 export", command=f"{run.command('export')} --int8"))
    elif predictions is None or not {"float", name} <= set(predictions.answers):
        parts = "confusion, reliability, coverage and galleries"
        missing.append(Missing(part=parts, why="an older edgecnn verified the run", command=run.command("verify")))
    else:
        temperature = report.confidence.temperature if report.confidence and report.confidence.model == name else None
        answers = answer_figures(predictions, name, temperature, labels)
    measured = layers(run)
    if measured is None and not run.imported:
        missing.append(Missing(part="noise by layer", why="it was not measured", command=run.command("layers")))
    stressed = best_report(run)
    if stressed is None and name is not None:
        missing.append(Missing(part="stress", why="it was not measured", command=run.command("stress")))
    if report and not report.boards:
        command = f"{run.command('verify')} --on rpi4"
        missing.append(Missing(part="boards", why="the exports did not run on one", command=command))
    return RunFigures(
        name=run.recipe.name or run.name,
        kind="run",
        summary=said(report, answers, labels),
        verdict=verdict(report),
        passed=report.passed if report else None,
        warnings=tuple(warnings_of(report)) if report else (),
        origin=run_origin(run),
        parity=report,
        int8=name,
        epochs=epochs(run),
        layers=measured,
        stress=stressed,
        missing=tuple(missing),
        **vars(answers),
    )


def bundle_figures(bundle: Bundle) -> RunFigures:
    """Return what a bundle shows: its parity report, without the answers to each image. BundleError if that cannot be read."""
    manifest = bundle.manifest
    provenance = manifest.provenance
    report = None
    if PARITY in bundle.files:
        try:
            report = build(Report, json.loads(bundle.files[PARITY]), ValueError)
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {PARITY} is not a parity report: {error}.") from None
    contract, sizes = manifest.input, provenance["data"]["split_sizes"]
    missing = [
        Missing(
            part="confusion, reliability, coverage, learning curves, noise by layer, stress and galleries",
            why="a bundle carries its parity report alone",
            command="edgecnn run recipe.toml, with the recipe below, then edgecnn report",
        )
    ]
    recipe = bundle.files.get(RECIPE, b"").decode("utf-8", "replace")
    return RunFigures(
        name=manifest.name,
        kind="bundle",
        summary=said(report, AnswerFigures(), manifest.labels),
        verdict=verdict(report),
        passed=report.passed if report else None,
        warnings=tuple(warnings_of(report)) if report else (),
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
            recipe=recipe,
        ),
        parity=report,
        int8=int8_name(report) if report else None,
        epochs=(),
        layers=None,
        stress=None,
        missing=tuple(missing),
        **vars(AnswerFigures()),
    )


def run_origin(run: Run) -> Origin:
    """Return what a run's model is and was made of."""
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
        recipe=to_toml(run.public_recipe),
    )
