"""The model card: what a model is, how well it does, and how to reproduce it.

It shows names that an attacker may have chosen: classes, files, folders. The block at its top is what the Hugging Face Hub reads: YAML,
whose values are written as JSON.
"""

import json
import re
from collections.abc import Sequence

from edgecnn.calibrate.confidence import ChosenConfidence
from edgecnn.labels import plural, printable
from edgecnn.recipe import to_toml
from edgecnn.report import table
from edgecnn.run_info import NetworkChoice, RunInfo
from edgecnn.runs import CHOICE, Run
from edgecnn.stress.stress_report import best_report
from edgecnn.verify.parity_report import BoardRow, Report, gate_line

MARKUP = re.compile(r"[&<>|\\`*\[\]~$]|(?<!\w)_|_(?!\w)")
"""Characters that start HTML, an entity, a cell, code, emphasis, a link or a formula. An underscore within a word starts nothing."""


def plain(text: str) -> str:
    """Return one line of text that every Markdown renderer shows literally: markup characters become entities."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under headings as a Markdown table that shows each cell literally. Use this for any table that prints names."""
    return table.markdown_table(
        [plain(heading) for heading in headings], [[plain(cell) for cell in row] for row in rows]
    )


TASK = "image-classification"


def metadata_block(name: str, report: Report) -> str:
    """Return a card's metadata: library, task, tags, and the accuracy of each model on the test split.

    Source: the Hub's model card specification; `huggingface_hub.ModelCardData` reads it.
    """
    formats = sorted({model.format for model in report.models if model.format in ("tflite", "onnx")})
    task = {"type": TASK, "name": "Image classification"}
    dataset = {"type": report.data.name, "name": report.data.title, "split": "test"}
    metrics = (
        {"type": "accuracy", "value": model.accuracy, "name": f"accuracy, {model.name}"} for model in report.models
    )
    results = [{"task": task, "dataset": dataset, "metrics": [metric]} for metric in metrics]
    aware = report.int8.method == "qat" if report.int8 else any(one.kind == "conversion" for one in report.comparisons)
    fields = {
        "library_name": "edgecnn",
        "pipeline_tag": TASK,
        "tags": [TASK, *formats, "int8", *(["quantization-aware-training"] if aware else []), "edge", "raspberry-pi"],
        "model-index": [{"name": name, "results": results}],
    }
    lines = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    # some renderers treat the block as Markdown, and its content as HTML
    return f"---\n{lines}\n---\n".replace("<", r"\u003c").replace("&", r"\u0026")


def card(run: Run, report: Report, confidence: ChosenConfidence) -> str:
    """Return a run's model card as Markdown. All figures come from `run.json`, the parity report and the chosen confidence."""
    info = run.info
    name = run.recipe.name or run.name
    network = printable(run.public_recipe.network.name).replace("`", "")
    lines = [
        metadata_block(name, report),
        f"# {plain(name)}",
        "",
        f"`{network}` ({info.parameters:,} parameters), input {info.input.height}x{info.input.width}x{info.input.channels}, "
        f"{len(info.data.labels)} classes: {', '.join(map(plain, info.data.labels))}.",
        "",
        *map(plain, origin_lines(info)),
        *([plain(table.judged_line(choice))] if (choice := run.stored(CHOICE, NetworkChoice)) else []),
        "",
        *measured_section(report, confidence, bool(report.folds) or info.head_ships),
        *boards_section(report.boards),
        *stress_section(run),
        *recipe_section(run, report),
    ]
    return "\n".join(lines)


def origin_lines(info: RunInfo) -> list[str]:
    sizes, used, imported = info.data.split_sizes, info.data.used, info.imported
    if imported:
        if imported.ships:
            against = f", verified against {imported.reference}" if imported.reference else ""
            return [f"Imported as a finished file ({imported.format}){against}. {imported.range}."]
        drawn = info.representative_dataset.drawn if info.representative_dataset else None
        how = f", and quantized after training, calibrated on {drawn:,} training images" if drawn else ""
        if info.int8 and info.int8.method == "qat":
            how = (
                f", and trained as int8 to answer as the float model, on {sizes['train']:,} images without their labels"
            )
        if imported.float_layers:
            how += f", except {plural(len(imported.float_layers), 'layer')} in float"
        return [f"Imported ({imported.format}){how}. {sizes['test']:,} images for the test below. {imported.range}."]
    started = []
    if info.init and info.init.licence:
        started = [f"Started from {info.init.run}, licence {info.init.licence}."]
    elif info.init and info.init.run.endswith(".onnx"):
        started = [f"Started from {info.init.run}; the licence is that of the file's author."]
    if info.folds:
        seconds = (info.seconds or 0) + sum(one.seconds for one in info.folds)
        taught = (
            f"Trained on {info.data.title}: all {used['train']:,} images, with {len(info.folds)}-fold cross-validation."
        )
        return [taught, *started, f"Training took {seconds:,.0f} s, including the folds."]
    kept_out, broken = len(info.data.duplicates), len(info.data.unreadable)
    tested = sizes["test"] - sum(item.split == "test" for item in info.data.unreadable)
    trained = (
        f"Trained on {info.data.title}: {used['train']:,} images for training, {used['validation']:,} for validation, "
        f"{tested:,} for the test below"
    )
    if broken:
        trained += f"; {plural(broken, 'unreadable file was', 'unreadable files were')} left out"
    if kept_out:
        trained += f"; {plural(kept_out, 'exact duplicate')} across splits kept out of training"
    trained += "."
    tuned = [f"Verdict on fine-tuning: {table.tuning_line(info.tuning)}."] if info.tuning else []
    if info.head_ships:
        tuned.append("The head was then fitted to the photos of training and validation.")
    return [trained, *started, *tuned, f"Training took {info.seconds:,.0f} s."]


def measured_section(report: Report, confidence: ChosenConfidence, held_out: bool) -> list[str]:
    return [
        "## Measured",
        "",
        f"{where_measured(report)} Drop (percentage points) and agreement are against the float model.",
        "",
        *(part for line in table.warning_lines(report) for part in (f"**{plain(line.replace(chr(10), ' '))}**", "")),
        plain_table(table.HEADINGS, table.parity_rows(report)),
        "",
        plain_table(table.COMPARISON_HEADINGS, table.comparison_rows(report)),
        "",
        *(
            f"- {plain(line)}"
            for line in (*table.class_lines(report), *table.int8_lines(report), *table.conversion_lines(report))
        ),
        *(f"- {plain(line)}" for line in (confidence_line(confidence, held_out), *table.score_lines(report))),
        f"- Times: {plain(report.timing)}; {plain(report.machine)}.",
        f"- {plain(gate_line(report))}",
        "",
    ]


def where_measured(report: Report) -> str:
    if report.folds:
        return plain(" ".join(table.fold_lines(report)))
    count = f"{report.data.test_images:,} images{table.divided(report.data)}"
    where = f"On the test split of {plain(report.data.title)}, {count}, used once."
    return " ".join([where, *map(plain, table.taught_lines(report))])


def recipe_section(run: Run, report: Report) -> list[str]:
    return [
        "## Made with",
        "",
        plain(", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))) + ".",
        f"Data fingerprint (SHA-256): `{run.info.data.fingerprint}`.",
        "",
        "The complete recipe:" if run.imported else "To reproduce it: `edgecnn run recipe.toml`. The complete recipe:",
        "",
        "```toml",
        to_toml(run.public_recipe).rstrip(),
        "```",
        "",
    ]


def boards_section(boards: Sequence[BoardRow]) -> list[str]:
    text = (
        "The runtime and packages that a board would install, on its processor, emulated by QEMU. Accuracy, agreement and "
        "differences are relative to this machine, on a sample of the test split."
    )
    rows = plain_table(table.BOARD_HEADINGS, table.board_rows(boards))
    return ["## On emulated boards", "", text, "", rows, ""] if boards else []


def stress_section(run: Run) -> list[str]:
    report = best_report(run)
    if report is None:
        return []
    columns = "Columns 1 to 5 are the int8 model's accuracy by strength; the others are means over the strengths."
    text = f"{table.stress_images_line(report)}. {columns}"
    rows = plain_table(table.STRESS_HEADINGS, table.stress_rows(report))
    lines = (f"- {plain(line)}" for line in table.stress_lines(report))
    return ["## Under stress", "", plain(text), "", rows, "", *lines, ""]


def confidence_line(confidence: ChosenConfidence, folds: bool = False) -> str:
    images = "held-out" if folds else "validation"
    figures = confidence.validation
    before, after = f"{figures.calibration_error:.2%}", f"{figures.calibration_error_after:.2%}"
    text = (
        f"Scores: logits are divided by {confidence.temperature:.3f}, which changed the calibration error on {figures.n:,} {images} images "
        f"from {before} to {after}."
    )
    if confidence.not_fitted:
        reason = f"no temperature was fitted ({confidence.not_fitted})"
        text = f"Scores: {reason}; the calibration error on {images} images is {before}."
    return f"{text} {abstains_line(confidence)}"


def abstains_line(confidence: ChosenConfidence) -> str:
    """Return a sentence on when a model abstains, and how often it then answers, and errs."""
    choice = confidence.choice
    if choice is None:
        return "It never abstains (no --target-error)."
    return (
        f"Below a score of {confidence.threshold:.2f} it abstains: it answers {choice.share_answered:.2%} of these images "
        f"with {choice.error:.2%} errors, and with {choice.confidence:.0%} confidence at most {choice.bound:.2%}."
    )
