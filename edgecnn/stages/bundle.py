"""The stage that makes a run's bundle: the models that were verified, with the proof, and the card."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from edgecnn.bundle.evidence import AGAINST, VALIDATION, ValidationScores
from edgecnn.bundle.file import write_bundle
from edgecnn.bundle.manifest import Manifest
from edgecnn.calibrate.confidence import ChosenConfidence, ChosenStrangers
from edgecnn.errors import RunError
from edgecnn.evaluate.answers import ANSWERS, answers_csv, images_csv, input_contract, require_held_out
from edgecnn.export import EXPORTS, export_path
from edgecnn.export.tflite import needs_representative_dataset
from edgecnn.files import canonical_json, npy, refuse_existing, sha256, write_atomic
from edgecnn.recipe import to_tables, to_toml
from edgecnn.report.card import card
from edgecnn.runs import CARD, CONFIDENCE, IMAGES, KNOWN, Run
from edgecnn.stages.against import ASKED_FOR, asked_for
from edgecnn.tables import to_json
from edgecnn.verify.against import Against
from edgecnn.verify.golden import golden_images, golden_models, golden_photos
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Report, require_parity
from edgecnn.verify.predictions import stored_strangers
from edgecnn.versions import library_versions

DATA_KEYS = ("name", "title", "fingerprint", "split_hashes", "split_sizes", "groups")
ORIGIN_KEYS = ("imported", "network", "init", "tuning", "int8")


def bundle_path(run: Run) -> Path:
    return run.file(f"{run.name}.edgecnn")


def default_model(report: Report, format_: str, precisions: Collection[str]) -> str | None:
    """Return a format's default model among those that passed: TFLite's int8, which boards run fastest; for ONNX the faster one."""
    failed = {item.candidate for item in report.comparisons if not item.passed}
    passed = [
        (model.precision != "int8" if format_ == "tflite" else model.ms_per_image, model.precision)
        for model in report.models
        if model.format == format_ and model.precision in precisions and model.name not in failed
    ]
    return f"models/{min(passed, key=lambda pair: pair[0])[1]}.{format_}" if passed else None


def verified_confidence(run: Run, report: Report) -> ChosenConfidence:
    """Return a run's temperature and threshold; RunError if its report did not measure the scores with them."""
    chosen, tested = run.stored(CONFIDENCE, ChosenConfidence), report.confidence
    if not (chosen and tested and (chosen.temperature, chosen.threshold) == (tested.temperature, tested.threshold)):
        raise RunError(f"the parity report of {run.path} has no figures for its scores. First: {run.command('verify')}")
    return chosen


def verified_strangers(run: Run, report: Report) -> ChosenStrangers | None:
    """Return how a run's models recognise strangers, or None; RunError if its report was measured with another choice."""
    tested = report.strangers
    if tested is None:
        return None
    chosen, models = stored_strangers(run), {model.name: model for model in report.models}
    if chosen is None or chosen.rate != tested.rate or chosen.model_sha256 != models[tested.model].sha256:
        raise RunError(f"the report of {run.path} has no figures for its strangers. First: {run.command('verify')}")
    return chosen


def verified_scores(run: Run, confidence: ChosenConfidence, strangers: ChosenStrangers | None) -> bytes:
    """Return a run's counts of its validation scores; RunError if they were not counted with these choices."""
    limit = strangers.limit if strangers else None
    stored = run.stored(VALIDATION, ValidationScores)
    expected = (confidence.model_sha256, confidence.temperature, confidence.threshold, limit.limit if limit else None)
    if stored is None or expected != (stored.model_sha256, stored.temperature, stored.threshold, stored.limit):
        raise RunError(f"{run.path} has no {VALIDATION} that counts its scores. First: {run.command('verify')}")
    return run.file(VALIDATION).read_bytes()


def verified_against(run: Run, report: Report) -> Against | None:
    """Return how a run's model compares with the one that it replaces, or None; RunError if another model was compared."""
    against = run.stored(AGAINST, Against)
    if against and against.new.model_sha256 not in {model.sha256 for model in report.models}:
        again = f"{run.command('verify')} --against {against.old.name}.edgecnn"
        raise RunError(f"{run.file(AGAINST)} is about another model than {run.path} has now. First: {again}")
    return against


def bundle_stage(
    run: Run,
    out: Path | None = None,
    *,
    only: Collection[str] = (),
    serial: int = 0,
    force: bool = False,
) -> tuple[Path, str]:
    """Write a verified run's bundle: models, manifest, labels, recipe, parity report and golden vectors. Return its path and SHA-256.

    `only` are the precisions to include, by default all that were verified. `serial` 0 stands for the next number after the bundle that it
    was compared with, if any.
    Raises RunError if the run was not verified with its current exports and scores, or has no model of a precision; ParityError if the gate
    failed.
    """
    path = out or bundle_path(run)
    refuse_existing(path, force)
    report = parity_report(run)
    require_parity(report)
    confidence = verified_confidence(run, report)
    contract = input_contract(run)
    images = golden_images(contract)
    files = {
        "golden/inputs.npy": npy(images),
        "parity.json": canonical_json(to_json(report)).encode(),
        "recipe.toml": to_toml(run.public_recipe).encode(),
    }
    models = carried_models(run, report, only)
    strangers = verified_strangers(run, report)
    files[VALIDATION] = verified_scores(run, confidence, strangers)
    limit = strangers.limit if strangers else None
    if limit:
        limit = replace(limit, decide=bool(run.recipe.stranger.decide))
        files[limit.known] = run.file(KNOWN).read_bytes()
    if listed := images_csv(run):
        files[IMAGES] = listed
    if against := verified_against(run, report):
        files[AGAINST] = canonical_json(to_json(against)).encode()
        serial = serial or against.old.serial + 1
    entries, model_files = golden_models(models, contract, images, features=limit is not None)
    info, recorded = run.info, to_json(run.info)
    carried = {model.precision for model in entries}
    defaults = {format_: default_model(report, format_, carried) for format_ in ("tflite", "onnx")}
    keys = list(ORIGIN_KEYS)
    if any(needs_representative_dataset(run, model.precision) for model in entries):
        keys.append("representative_dataset")
    if info.folds:
        files[ANSWERS] = answers_csv(require_held_out(run), info.data.labels)
        keys.append("folds")
    photos, golden_encoded = golden_photos(contract)
    manifest = Manifest(
        name=run.recipe.name or run.name,
        title=info.data.title,
        labels=info.data.labels,
        input=contract,
        models=entries,
        defaults={format_: file for format_, file in defaults.items() if file},
        golden_images=golden_encoded,
        temperature=confidence.temperature,
        threshold=confidence.threshold,
        serial=serial,
        stranger=limit,
        provenance={
            "recipe": to_tables(run.public_recipe),
            "data": {key: recorded["data"][key] for key in DATA_KEYS if key in recorded["data"]},
            "trained_with": recorded["versions"],
            "bundled_with": library_versions(),
            **{key: recorded[key] for key in keys if key in recorded},
            "confidence": to_json(confidence),
            **({ASKED_FOR: asked} if (asked := asked_for(run)) else {}),
        },
    )
    # The card first: if that fails, no bundle is left behind.
    write_atomic(run.file(CARD), card(run, report, confidence))
    return path, write_bundle(path, manifest, files | model_files | photos, force=force)


def refresh_card(run: Run) -> None:
    """Rewrite a bundled run's card, after a measurement that it shows; do nothing if the run has no card."""
    if run.file(CARD).exists():
        report = parity_report(run)
        write_atomic(run.file(CARD), card(run, report, verified_confidence(run, report)))


def carried_models(run: Run, report: Report, only: Collection[str]) -> list[tuple[str, str, bytes]]:
    """Return the exports for a bundle; RunError if none of a precision was verified, or a file has changed since."""
    exports = [
        item
        for item in report.models
        if (item.format, item.precision) in EXPORTS and item.name == f"{item.format}-{item.precision}"
    ]
    verified = {item.precision for item in exports}
    if unknown := sorted(set(only) - verified):
        raise RunError(
            f"no {' or '.join(unknown)} model of {run.path} was verified, only {', '.join(sorted(verified))}. "
            f"First: {run.command('export')}, then {run.command('verify')}"
        )
    models = []
    for item in exports:
        if only and item.precision not in only:
            continue
        data = run.read(export_path(run, item.format, item.precision).name, "export")
        if sha256(data) != item.sha256:
            raise RunError(
                f"{item.name} of {run.path} has changed since it was verified. First: {run.command('verify')}"
            )
        models.append((item.format, item.precision, data))
    return models
