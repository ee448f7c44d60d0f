"""`edgecnn run`: the stages in order, each skipped when its inputs have not changed."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from edgecnn import runs
from edgecnn.bundle.evidence import AGAINST, VALIDATION
from edgecnn.data import Dataset, open_dataset
from edgecnn.data.folds import added_images, read_folds
from edgecnn.errors import OutputExistsError
from edgecnn.export import USUAL, alternative, export, export_path, source_model
from edgecnn.export.tflite import needs_representative_dataset
from edgecnn.files import canonical_json, sha256, sha256_file, write_atomic
from edgecnn.interop import MODEL, export_program, programs_of
from edgecnn.recipe import Recipe, Settled, load_recipe, merge, to_tables
from edgecnn.report.page import write_run_page
from edgecnn.runs import Run, create_run, locked, settle_run
from edgecnn.stages import Reporter, Silent
from edgecnn.stages.against import verify_against
from edgecnn.stages.bundle import bundle_path, bundle_stage
from edgecnn.stages.folds import asked_recipe, require_pretrained, ship_head, train_on_all
from edgecnn.stages.network_choice import images_choose, is_kept, of_head, require_budget, settled, with_backbone
from edgecnn.stages.train import check_network, open_images, placed, train_stage
from edgecnn.stages.verify import verify
from edgecnn.stress.stress_report import SPLITS
from edgecnn.tables import to_json
from edgecnn.train.origin import changed_origins
from edgecnn.verify.against import Rule
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Gate, Report, require_parity
from edgecnn.versions import library_versions

STAGES = "stages.json"


class Replacing(NamedTuple):
    """The bundle that a new model would replace; the others as in `edgecnn.stages.against.verify_against`."""

    old: Path
    renamed: Mapping[str, str]
    rule: Rule


class Stages:
    """The inputs with which each stage of a run was done, kept in `stages.json`."""

    def __init__(self, run: Run, note: Callable[[str], None]) -> None:
        self.run = run
        self.note = note

    def do(self, name: str, inputs: Mapping[str, Any], outputs: Sequence[Path], work: Callable[[], Any]) -> None:
        """Do a stage, unless it was done with the same `inputs`, which decide all outputs, and the outputs are unchanged."""
        path = self.run.file(STAGES)
        done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        key = sha256(canonical_json(dict(inputs)).encode())
        if done.get(name) == {"inputs": key, "outputs": hashes(outputs)}:
            self.note(f"{name}: nothing has changed, skipped")
            return
        self.note(name)
        work()
        write_atomic(path, canonical_json(done | {name: {"inputs": key, "outputs": hashes(outputs)}}))


def hashes(paths: Sequence[Path]) -> dict[str, str | None]:
    return {path.name: sha256_file(path) if path.is_file() else None for path in paths}


def stressed(run: Run) -> dict[str, str | None]:
    return hashes([run.file(runs.STRESS.format(split=split)) for split in SPLITS])


def run_recipe(
    recipe: Recipe,
    path: Path,
    reporter: Reporter,
    *,
    max_drop: float,
    target_error: float | None = None,
    accept_conversion: bool = False,
    force: bool = False,
    jobs: int = 1,
    replacing: Replacing | None = None,
) -> tuple[Run, Report]:
    """Take a recipe through every stage: train, all exports, verify, report, bundle.

    With `replacing` the model is also compared with an old one, and the bundle records the verdict, good or bad. A stage is skipped if
    its inputs have not changed; interrupted training continues.
    Raises RunError if another process trains there; ParityError if the gate fails; the report is still written; ThresholdError if no
    threshold meets the target error.
    """
    if recipe.folds:
        run, dataset, stages = trained_by_folds(recipe, path, force, reporter, jobs)
    else:
        run, dataset, stages = trained(recipe, path, force, reporter)
    run.make_latest()
    exports = hashes(do_exports(stages, dataset, reporter))
    gate = Gate(max_drop=max_drop, accept_conversion=accept_conversion)
    do_verify(stages, dataset, exports, gate, target_error, reporter)
    if replacing:
        do_against(stages, dataset, exports, replacing, reporter)
    inputs = {
        "parity": sha256_file(run.file(runs.PARITY)),
        "predictions": sha256_file(run.file(runs.PREDICTIONS)),
        "stress": stressed(run),
        "against": hashes([run.file(AGAINST)]),
    }
    stages.do("report", inputs, [run.file(runs.PAGE), run.file(runs.PAGE_FIGURES)], lambda: write_run_page(run))
    report = parity_report(run)
    require_parity(report)
    inputs = {
        "confidence": sha256_file(run.file(runs.CONFIDENCE)),
        "strangers": hashes([run.file(runs.STRANGERS)]),
        "validation": hashes([run.file(VALIDATION)]),
        "exports": exports,
        "parity": sha256_file(run.file(runs.PARITY)),
        "recipe": stored_recipe(run),
        "stress": stressed(run),
        "against": hashes([run.file(AGAINST)]),
        "versions": library_versions(),
    }
    stages.do("bundle", inputs, [bundle_path(run), run.file(runs.CARD)], lambda: bundle_stage(run, force=True))
    return run, report


TRAINED = (runs.RECIPE, runs.FLOAT_MODEL, runs.QAT_MODEL, runs.HISTORY, runs.CURVES, runs.HELD_OUT)


def trained(open_recipe: Recipe, path: Path, force: bool, reporter: Reporter) -> tuple[Run, Dataset, "Stages"]:
    """Train a recipe in the run at `path`, from where it stopped; return the run, its images and its stages. Errors as in `run_recipe`."""
    dataset = open_dataset(open_recipe.data, progress=reporter.working, note=reporter.note)
    dataset = placed(dataset, reporter, Run(path))
    asked = with_backbone(open_recipe, dataset, reporter, Run(path))
    recipe = settled_in(path, asked, dataset, force, reporter)
    run, images = Run(path), dataset
    if recipe.train.head_may_ship and run.file(runs.RECIPE).exists():
        head = of_head(recipe, dataset, run)
        if head.folds and run.recipe == head and run.info.state == "trained":
            images = dataset.redivided({item.hash: "train" for part in dataset.items.values() for item in part})
        if run.recipe == head and not (force and changes(head, images, run)):
            recipe = head
    if recipe.folds:
        resume_or_create(asked, recipe, images, path, force)  # never a new one
        return trained_on_all(recipe, dataset, path, force, reporter)
    if not Run(path).file(runs.CHECKPOINT).exists():
        check_network(recipe, dataset)
    with locked(path):
        run = resume_or_create(asked, recipe, dataset, path, force)
        stages = Stages(run, reporter.note)
        stages.do(
            "train",
            {"fingerprint": dataset.fingerprint},  # a run of another recipe was refused or removed
            [run.file(name) for name in TRAINED],
            lambda: ship_head(recipe, dataset, run, train_stage(recipe, dataset, run, reporter), reporter),
        )
    run = Run(path)  # its recipe may now be that of its head
    if run.recipe.folds:
        return trained_on_all(run.recipe, dataset, path, force, reporter)
    return run, dataset, Stages(run, reporter.note)


def trained_by_folds(
    recipe: Recipe, path: Path, force: bool, reporter: Reporter, jobs: int
) -> tuple[Run, Dataset, "Stages"]:
    """Train a recipe with its folds, as `trained` does without; the returned images are all for training."""
    dataset = open_images(recipe, Run(path) if Run(path).file(runs.RECIPE).exists() else None, reporter, None)
    dataset = placed(dataset, reporter, Run(path))
    recipe = with_backbone(recipe, dataset, reporter, Run(path))
    require_pretrained(recipe, dataset)
    return trained_on_all(recipe, dataset, path, force, reporter, jobs)


def trained_on_all(
    recipe: Recipe, dataset: Dataset, path: Path, force: bool, reporter: Reporter, jobs: int = 1
) -> tuple[Run, Dataset, "Stages"]:
    with locked(path):
        run, folds = Run(path), read_folds(Run(path))
        begun = run.file(runs.RECIPE).exists() and recipe in (asked_recipe(run), run.recipe)
        if begun and folds and run.file(runs.INFO).exists() and added_images(folds, dataset):
            if not force:
                raise OutputExistsError(DIFFERS.format(path=path, what="the images"))
            begun = False
        if not begun:
            run = create_run(recipe, path, force=force)
            asked_recipe(run)
        stages = Stages(run, reporter.note)
        stages.do(
            "train",
            {"recipe": to_tables(recipe), "fingerprint": dataset.fingerprint},
            [run.file(name) for name in TRAINED],
            lambda: train_on_all(dataset, run, reporter, jobs),
        )
    run, folds = Run(path), read_folds(run)
    assert folds is not None
    return run, folds.all_teach(dataset), Stages(run, reporter.note)


def settled_in(path: Path, recipe: Recipe, dataset: Dataset, force: bool, reporter: Reporter) -> Settled:
    """Return a recipe with every key closed. The run at `path` stores the choice of a network; OutputExistsError if it is another."""
    if not images_choose(recipe, dataset):
        finished = Run(path).file(runs.FLOAT_MODEL).exists() and not force  # what is trained needs no reasons
        return settled(recipe, dataset, Run(path), Silent() if finished else reporter)
    with locked(path):
        run = Run(path)
        begun = run.file(runs.RECIPE).exists() and (run.recipe == recipe or is_kept(recipe, dataset, run))
        if not begun:
            require_budget(recipe, dataset)  # before --force removes a run
        run = run if begun else create_run(recipe, path, force=force)
        return settled(recipe, dataset, run, reporter)


def do_exports(stages: Stages, dataset: Dataset, reporter: Reporter) -> list[Path]:
    run, other = stages.run, alternative(stages.run)
    pairs = (*USUAL, other) if other else USUAL
    features = bool(run.recipe.stranger.rate)
    for format_, precision in pairs:
        source = run.file(source_model(run, precision))
        drawn = {"train": dataset.hashes["train"]} if needs_representative_dataset(run, precision) else {}
        stages.do(
            f"export {format_} {precision}",
            {"model": sha256_file(source), "features": features, "versions": library_versions(), **drawn},
            [export_path(run, format_, precision)],
            partial(export, run, format_, precision, force=True, dataset=dataset, progress=reporter.working),
        )
    for program in programs_of(run):  # once made, they are kept up to date with the int8 file
        stages.do(
            f"export for {program}",
            {"model": sha256_file(export_path(run, "tflite", "int8")), "versions": library_versions()},
            [run.file(program) / MODEL],
            partial(export_program, run, program, force=True),
        )
    return [export_path(run, format_, precision) for format_, precision in pairs]


def do_verify(
    stages: Stages,
    dataset: Dataset,
    exports: Mapping[str, Any],
    gate: Gate,
    target_error: float | None,
    reporter: Reporter,
) -> None:
    """Do the stage of verification; `exports` are the hashes of the files."""
    run = stages.run
    extra = (runs.STRANGERS, runs.KNOWN) if run.recipe.stranger.rate else ()
    stages.do(
        "verify",
        {
            "stranger": to_json(run.recipe.stranger),
            "target_error": target_error,
            "models": hashes([run.file(runs.FLOAT_MODEL), run.file(runs.QAT_MODEL)]),
            "exports": exports,
            "programs": programs_of(run),
            "validation": dataset.hashes["validation"],
            "test": dataset.hashes["test"],
            "gate": vars(gate),
            "versions": library_versions(),
        },
        [run.file(name) for name in (runs.PARITY, runs.CONFIDENCE, VALIDATION, runs.PREDICTIONS, *extra)],
        lambda: verify(run, dataset, gate=gate, target_error=target_error, progress=reporter.working),
    )


def do_against(
    stages: Stages, dataset: Dataset, exports: Mapping[str, Any], replacing: Replacing, reporter: Reporter
) -> None:
    run, (old, renamed, rule) = stages.run, replacing
    stages.do(
        "against",
        {
            "old": sha256_file(old),
            "renamed": renamed,
            "rule": rule,
            "exports": exports,
            "images": dataset.hashes,
            "left_out": hashes([run.file(runs.LEFT_OUT)]),
        },
        [run.file(AGAINST), run.file(runs.AGAINST_PICTURES)],
        lambda: verify_against(run, dataset, old, renamed=renamed, rule=rule, progress=reporter.working),
    )


def stored_recipe(run: Run) -> dict[str, Any]:
    """Return the tables of a run's recipe unchanged from its file, which a version with other keys may have written."""
    return merge({"network": {"options": {}}}, load_recipe(run.file(runs.RECIPE)))  # TOML has no empty tables


DIFFERS = "{path} contains a run that differs in {what}. Replace it (--force), or name another folder with --out."


def resume_or_create(asked: Recipe, recipe: Settled, dataset: Dataset, path: Path, force: bool) -> Run:
    """Open the run at `path` if it has this recipe and these data, else create it; OutputExistsError unless `force`.

    A run with the recipe as `asked` has not begun: its open keys get their values.
    """
    run = Run(path)
    if not run.file(runs.RECIPE).exists():
        return create_run(recipe, path, force=force)
    if run.recipe == asked != recipe:
        run = settle_run(run, recipe)
    if not (changed := changes(recipe, dataset, run)):
        return run
    if not force:
        raise OutputExistsError(DIFFERS.format(path=path, what=", ".join(changed[:4])))
    return create_run(recipe, path, force=True)


def changes(recipe: Settled, dataset: Dataset, run: Run) -> list[str]:
    """Return what is different from what a run began with: its recipe, its images, or the models that it starts from."""
    changed = changed_keys(to_tables(run.recipe), to_tables(recipe))
    if not changed and run.file(runs.INFO).exists() and run.info.data.fingerprint != dataset.fingerprint:
        changed = ["the images"]
    return changed + changed_origins(recipe, run)


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    changed = []
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key), after.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            changed += changed_keys(one, other, f"{prefix}{key}.")
        elif one != other:
            changed.append(f"{prefix}{key} ({one!r}, now {other!r})")
    return changed
