"""The model card: what a model is, how well it does, and how to reproduce it.

It shows names that an attacker may have chosen: classes, files, folders. The block at its top is what the Hugging Face Hub reads: YAML,
whose values are written as JSON.
"""

import json
import re

from edgecnn.calibrate.confidence import ChosenConfidence
from edgecnn.labels import plural, printable
from edgecnn.recipe import to_toml
from edgecnn.report import table
from edgecnn.report.sections import abstains_line, calibration_line, chosen_on, parity_sections, warning_lines
from edgecnn.run_info import NetworkChoice, RunInfo
from edgecnn.runs import CHOICE, Run
from edgecnn.stress.stress_report import best_report
from edgecnn.verify.parity_report import Report

MARKUP = re.compile(r"[&<>|\\`*\[\]~$]|(?<!\w)_|_(?!\w)")
"""Characters that start HTML, an entity, a cell, code, emphasis, a link or a formula. An underscore within a word starts nothing."""


def plain(text: str) -> str:
    """Return one line of text that every Markdown renderer shows literally: markup characters become entities."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


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
    measured, *others = parity_sections(report)
    images = chosen_on(info)
    chosen = [
        calibration_line(confidence.validation, confidence, images),
        abstains_line(confidence.validation, confidence.choice, images),
    ]
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
        *(part for line in warning_lines(report) for part in (f"**{plain(line.replace(chr(10), ' '))}**", "")),
        section_text(measured._replace(lines=[*measured.lines, *chosen])),
        *map(section_text, others),
        *([section_text(table.stress_section(stressed))] if (stressed := best_report(run)) else []),
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
    tuned = [f"Verdict on fine-tuning: {table.tuning_line(info.tuning)}."] if info.tuning else []
    if info.folds:
        seconds = (info.seconds or 0) + sum(one.seconds for one in info.folds)
        taught = (
            f"Trained on {info.data.title}: all {used['train']:,} images, with {len(info.folds)}-fold cross-validation."
        )
        return [*tuned, taught, *started, f"Training took {seconds:,.0f} s, including the folds."]
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
    if info.head_ships:
        tuned.append("The head was then fitted to the photos of training and validation.")
    return [trained, *started, *tuned, f"Training took {info.seconds:,.0f} s."]


def section_text(section: table.Section) -> str:
    rows = []
    if section.table:  # cells may hold names
        headings, cells = section.table
        rows = [table.markdown_table([*map(plain, headings)], [[*map(plain, row)] for row in cells]), ""]
    return "\n".join([f"## {section.title}", "", *rows, *(f"- {plain(line)}" for line in section.lines), ""])


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
