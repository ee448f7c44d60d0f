"""Generate the figures of the pages in docs/ that PAGES lists.

Figures of models come from their bundles, the others from tools/bench/results/. `--check` fails if a page is out of date.
"""

import argparse
import importlib
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgecnn.bundle.file import read_bundle
from edgecnn.report.table import markdown_table
from edgecnn.tables import build
from edgecnn.verify.parity_report import Report

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tools" / "bench" / "results"
SPEED = RESULTS / "benchmark.json"
LADDER = RESULTS / "ladder.json"
PLANTED = RESULTS / "inspect_planted.json"
GPU = RESULTS / "gpu.json"
NETWORKS = RESULTS / "networks.json"
LEAKS = RESULTS / "leaks.json"
QUICK = RESULTS / "photo_sets_quick.json"
IMPORTED = RESULTS / "imported.json"

sys.path.append(str(ROOT / "tools" / "bench"))  # for the benches' imports of each other


def measured(path: Path, bench: str = "") -> tuple[Any, Any]:
    """Return the bench of a file of results, which has the same name if none is given, and these results."""
    return importlib.import_module(f"bench.{bench or path.stem}"), json.loads(path.read_text(encoding="utf-8"))


def table(
    results: str, rows: Callable[[Any, Any], Any], headings: str = "HEADINGS", bench: str = ""
) -> Callable[[], str]:
    """Return a generator of one Markdown table: `rows` makes its rows from a bench and its results; the bench has the headings."""

    def make() -> str:
        module, report = measured(RESULTS / f"{results}.json", bench)
        return markdown_table(getattr(module, headings), rows(module, report))

    return make


def model_table() -> str:
    """Return a Markdown table of the models in models/, from the parity report in each bundle; the times are from the ladder's bench."""
    ladder, timed = measured(LADDER)
    rows = []
    for path in sorted((ROOT / "models").glob("*/*.edgecnn")):
        bundle = read_bundle(path)
        report = build(Report, json.loads(bundle.files["parity.json"]), ValueError)
        models = {model.name: model for model in report.models}
        quantization = {item.candidate: item for item in report.comparisons if item.kind == "quantization"}
        int8 = models["tflite-int8"]
        against_float = quantization["tflite-int8"]
        rows.append(
            (
                f"[`{bundle.manifest.name}`](../models/{path.parent.name}/card.md)",
                f"{report.data.title}, n = {report.data.test_images:,}",
                f"{models['float'].accuracy:.2%}",
                f"{int8.accuracy:.2%}",
                f"{against_float.agreement:.2%}",
                f"{int8.size_bytes:,}",
                f"{timed['ms'][bundle.manifest.name]:.3f}",
            )
        )
    headings = ("model", "test split", "float", "int8", "agreement", "int8 bytes", "int8 ms")
    return f"{markdown_table(headings, rows)}\n\n{ladder.where(timed)}"


def speed_table() -> str:
    """Return a Markdown table of the results of `tools/bench/benchmark.py`: the default model's configurations, fastest first.

    Raises:
        ValueError: if the figures are for a different bundle than the one that ships.
    """
    report = json.loads(SPEED.read_text(encoding="utf-8"))
    if report["bundle"]["sha256"] != read_bundle(ROOT / report["bundle"]["path"]).sha256:
        raise ValueError(f"{SPEED} is for a different {report['bundle']['path']}. Run: python tools/bench/benchmark.py")
    rows = []
    for item in report["configurations"]:
        infer, whole = (
            " / ".join(f"{item[part][key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms"))
            for part in ("infer", "whole")
        )
        engine = f"{item['engine']} {item['version']}"
        rows.append((engine, item["precision"], str(item["threads"]), infer, whole, f"{item['peak_mib']:.0f}"))
    headings = ("engine", "model", "threads", "infer ms, p50 / p90 / p99", "whole ms, p50 / p90 / p99", "peak MiB")
    first = report["configurations"][0]
    versions = report["versions"]
    where = (
        f"`{report['bundle']['name']}` on {report['hardware']}, load average {report['load_average']:.1f} before; "
        f"Python {versions['python']}, numpy {versions['numpy']}, Pillow {versions['pillow']};\n{report['images']['about']}; "
        f"n = {first['whole']['n']:,}, interleaved, after {report['warmup']} warm-up calls.\n"
        f"Of the whole, decoding takes {first['decode']['p50_ms']:.3f} ms and resizing "
        f"{first['preprocess']['p50_ms']:.3f} ms (medians).\nTo measure again: `python tools/bench/benchmark.py && python tools/readme.py`."
    )
    return f"{markdown_table(headings, rows)}\n\n{where}"


def ladder_table() -> str:
    """Return Markdown tables of the results of `tools/bench/ladder.py`, one per dataset.

    Raises:
        ValueError: if they are for different bundles than those in models/.
    """
    ladder, report = measured(LADDER)
    tables = []
    for title, chosen in ladder.by_data(report["models"]).items():
        for model in chosen:
            path = ROOT / "models" / model["name"] / f"{model['name']}.edgecnn"
            if read_bundle(path).sha256 != model["bundle_sha256"]:
                raise ValueError(f"{LADDER} is for a different {path.name}. Run: python tools/bench/ladder.py")
        tables.append(
            f"{title}, n = {chosen[0]['n']:,}:\n\n{markdown_table(ladder.HEADINGS, [ladder.text_row(model) for model in chosen])}"
        )
    return "\n\n".join([*tables, ladder.where(report)])


def inspect_table() -> str:
    """Return a Markdown table of the planted mistakes that inspection finds."""
    bench, report = measured(PLANTED)
    table = markdown_table(bench.HEADINGS, bench.rows_of(report["cases"]))
    first = [case["labels"]["first_50"] for case in report["cases"]]
    named = ", ".join(str(case["labels"]["named"]) for case in report["cases"])
    right = ", ".join(map(str, first))
    return f"{table}\n\nAmong the first 50 labels that each draw named, {right} were planted; the draws named {named} labels in total."


def inspect_speed() -> str:
    """Return the time an inspection takes, as a sentence."""
    report = json.loads(PLANTED.read_text(encoding="utf-8"))
    first, *others = (case["seconds"]["features"] for case in report["cases"])
    return (
        f"{report['cases'][0]['images']:,} photos with features, inspected for the first time: {first:.0f} s. The same photos with other "
        f"mistakes planted, so that most of them are cached: {statistics.median(others):.0f} s. On {report['machine']}, shared with other "
        "programs."
    )


def leaks_table() -> str:
    """Return a Markdown table of the effect of bursts on a split."""
    bench, report = measured(LEAKS)
    return f"{markdown_table(bench.HEADINGS, bench.rows_of(report['draws']))}\n\n{bench.sentence(report)}"


def quick_table() -> str:
    """Return a Markdown table of what `train --quick` says of all photos by folds, and the simplest way on the same folds."""
    bench, report = measured(QUICK, "photo_sets")
    return f"{markdown_table(bench.HEADINGS, [bench.row(one) for one in report['results']])}\n\n{bench.pooled(report['results'])}"


def ways_in_short() -> str:
    """Return the columns of the table of `ways` that a first reader needs."""
    bench, report = measured(RESULTS / "ways.json")
    chosen = [bench.SUMMARY.index(name) for name in bench.SHORT]
    results = [one for one in report["results"] if one["data"] in bench.FIRST]
    rows = [tuple(row[column] for column in chosen) for row in bench.summary(results)]
    return markdown_table(bench.SHORT, rows)


def gpu_figures() -> str:
    """Return the results of `tools/bench/gpu.py` on an NVIDIA GPU as a table and sentences, or a sentence if there are none yet."""
    if not GPU.exists():
        return "There are no figures: the bench has not run on a GPU yet."
    bench, report = measured(GPU)
    versions = report["versions"]
    where = (
        f"`{report['network']}` at {report['side']}x{report['side']} on {report['gpu']}; {report['machine']}; onnxruntime-gpu "
        f"{versions['onnxruntime-gpu']}, TensorFlow {versions['tensorflow']}."
    )
    return "\n".join([markdown_table(bench.HEADINGS, bench.rows(report)), "", *bench.sentences(report), where])


def imported_table() -> str:
    """Return Markdown tables of networks trained in PyTorch: accuracy of their int8 files, and milliseconds."""
    bench, report = measured(IMPORTED)
    others = {name: version for one in report["others"] for name, version in one.items()}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(others.items()))
    tables = (
        markdown_table(headings, rows(report["results"]))
        for headings, rows in ((bench.SUMMARY, bench.summary), (bench.SPEEDS, bench.speeds))
    )
    where = f"{report['machine']}; {versions}, onnxruntime {report['versions']['onnxruntime']}."
    return "\n\n".join((*tables, bench.executed(report["results"]), where))


def networks_table() -> str:
    """Return what `tools/bench/networks.py` measured: a table and its conditions."""
    bench, report = measured(NETWORKS)
    where = (
        f"{report['classes']} classes; LiteRT {report['versions']['ai-edge-litert']}, one thread, n = {report['n']}, interleaved; "
        f"{report['machine']}. Milliseconds are processor time: other programs ran (load {report['load']}). Memory is the peak of a Python "
        "process that imports numpy and LiteRT, opens the file and classifies once. To measure again: `python tools/bench/networks.py`."
    )
    return f"{markdown_table(bench.HEADINGS, bench.table(report['results']))}\n\n{where}"


def with_section(text: str, section: str, content: str) -> str:
    """Return a text with the part between `<!-- SECTION -->` and `<!-- /SECTION -->` replaced."""
    start, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    if start not in text or end not in text:
        raise ValueError(f"the section {section!r} does not exist")
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{start}\n{content}\n{end}", text)


PAGES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    ROOT / "docs" / "figures.md": {
        "figures": model_table,
        "speed": speed_table,
        "ways": table("ways", lambda bench, report: bench.summary(report["results"]), "SUMMARY"),
        "earlier": table("ways", lambda bench, report: bench.earlier_summary(report["results"]), "EARLIER"),
        "quick": quick_table,
        "verdicts": table("verdicts", lambda bench, report: [bench.row(one) for one in report["results"]]),
        "few": table("few_photos", lambda bench, report: bench.few_summary(report["results"]), "FEW", "ways"),
    },
    ROOT / "README.md": {"ways": ways_in_short},
    ROOT / "docs" / "networks.md": {"ladder": ladder_table, "networks": networks_table},
    ROOT / "docs" / "boards.md": {"gpu": gpu_figures},
    ROOT / "docs" / "inspect.md": {"planted": inspect_table, "speed": inspect_speed},
    ROOT / "docs" / "second-day.md": {
        "gate": table("gate_draws", lambda bench, report: bench.rows(report, "usual")),
        "strict": table("gate_draws", lambda bench, report: bench.stated_rows(report), "STATED"),
    },
    ROOT / "docs" / "your-model.md": {
        "imported": imported_table,
        "backbones": table("backbones", lambda bench, report: list(map(bench.row, report["results"]))),
    },
    ROOT / "docs" / "splits.md": {
        "leaks": leaks_table,
        "groups": table("groups", lambda bench, report: bench.rows_of(report["results"])),
    },
}
"""Each page's sections and their generators."""


def generated(page: Path) -> str:
    """Return the text of one of PAGES with all of its sections generated again."""
    text = page.read_text(encoding="utf-8")
    for section, make in PAGES[page].items():
        text = with_section(text, section, make())
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a page would change")
    check = parser.parse_args().check
    for page in PAGES:
        before, after = page.read_text(encoding="utf-8"), generated(page)
        if check and after != before:
            sys.exit(f"{page.relative_to(ROOT)} is out of date: python tools/readme.py")
        if after != before:
            page.write_text(after, encoding="utf-8")
