"""Show the ladder: the accuracy of each network's int8 file for its size, from the bundles and cards in models/.

Accuracies, agreement and intervals come from each bundle's own parity report, on the test split of its data; the minutes come from its
card. MACs are counted from the network. Only the milliseconds are measured here: the median of interleaved calls of all files, with one
image and one thread each. There is one table per dataset, and one plot of those with several models.

"p worse" is McNemar's one-sided exact test that QAT is worse than PTQ.

    python tools/bench/ladder.py [models/cifar10-resnet8 …]
"""

import io
import json
import operator
import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, about, parser

from edgecnn.bundle.file import Bundle, read_bundle
from edgecnn.errors import EdgeCNNError
from edgecnn.evaluate.answers import device_model
from edgecnn.files import canonical_json, write_atomic
from edgecnn.labels import text_table
from edgecnn.networks import NETWORKS
from edgecnn.runtime.model import measure_interleaved

LADDER = NETWORKS.keys() - {"article"}
MAX_DROP, MIN_AGREEMENT, MIN_P = 0.3, 0.985, 0.05
WARM_UP, REPEATS = 50, 500  # calls of each file
HEADINGS = (
    "model", "float", "PTQ", "QAT", "int8", "drop", "95 % interval", "agreement", "p worse", "bytes", "MACs", "ms",
    "minutes", "goals",
)  # fmt: skip

PUBLISHED: tuple[dict[str, Any], ...] = (
    {"name": "ResNet-20, float", "accuracy": 92.6, "bytes": 272_474, "macs": 40_810_000},
    {"name": "MLPerf Tiny 1.4, int8, n = 200", "accuracy": 92.5, "bytes": 512_024, "macs": 76_500_000},
    {"name": "ResNet-56, float", "accuracy": 94.37, "bytes": 855_770, "macs": 125_750_000},
)
"""Others' accuracies (percent) on the lossless CIFAR-10; nobody has measured what a JPEG copy costs. A float network's bytes are its
parameters. Sources: chenyaofo/pytorch-cifar-models; the reference model of MLPerf Tiny v1.4."""

AXES = (
    ("bytes", 1e3, "int8 TFLite file, kB"),
    ("macs", 1e6, "million MACs"),
    ("ms", 1e-3, "microseconds per image, one thread"),
)
"""A figure of a model, its unit, and what the plot says under it."""


def main() -> None:
    """Read the bundles, print a table per dataset, and write the figures and the plot."""
    made = parser(__doc__, "ladder")
    made.add_argument("folders", type=Path, nargs="*", help="with bundles and cards (default: the ladder's in models/)")
    arguments = made.parse_args()
    folders = arguments.folders or sorted(path.parent for path in ROOT.glob("models/*/*.edgecnn"))
    bundles = {folder: the_bundle(folder) for folder in folders}
    ms = milliseconds(bundles.values())
    models = [model_row(folder, bundle, ms) for folder, bundle in bundles.items()]
    if not arguments.folders:
        models = [model for model in models if model["network"] in LADDER]
    models.sort(key=lambda model: (model["data"], model["bytes"]))
    for title, chosen in by_data(models).items():
        print(f"{title}, {chosen[0]['n']:,} test images")
        print(text_table(HEADINGS, [text_row(model) for model in chosen]), end="\n\n")
    report = about("ladder", repeats=REPEATS, ms=ms, models=models)
    print(where(report))
    write_atomic(arguments.out, canonical_json(report))
    several = [model for chosen in by_data(models).values() if len(chosen) > 1 for model in chosen]
    if several:
        write_atomic(arguments.out.with_suffix(".png"), plot(several))
    print(arguments.out)


def the_bundle(folder: Path) -> Bundle:
    """Read the one bundle in a folder; EdgeCNNError if it does not have exactly one that can be read."""
    paths = sorted(folder.glob("*.edgecnn"))
    if len(paths) != 1:
        raise EdgeCNNError(f"{folder} has {len(paths)} bundles, expected one")
    return read_bundle(paths[0])


def milliseconds(bundles: Iterable[Bundle]) -> dict[str, float]:
    """Return the median time of each bundle's int8 TFLite file by the bundle's name, for one grey image and one thread."""
    calls = {}
    for bundle in bundles:
        read = bundle.manifest.input
        (entry,) = (one for one in bundle.manifest.models if (one.format, one.precision) == ("tflite", "int8"))
        image = np.full((1, read.height, read.width, read.channels), 128, np.uint8)
        calls[bundle.manifest.name] = partial(device_model(bundle.files[entry.file], "tflite", read).logits, image)
    taken = measure_interleaved(calls, warmup=WARM_UP, repeats=REPEATS)
    return {name: round(timing.p50_ms, 4) for name, timing in taken.items()}


def where(report: dict[str, Any]) -> str:
    """Return what the times depend on, as a sentence."""
    return (
        f"Milliseconds of the int8 TFLite files: {report['machine']}; LiteRT {report['versions']['ai-edge-litert']}; median of "
        f"{report['repeats']} calls with one image, one thread, all files interleaved."
    )


def model_row(folder: Path, bundle: Bundle, ms: dict[str, float]) -> dict[str, Any]:
    """Return the figures of the bundle in a folder; figures missing from the bundle are None."""
    report = json.loads(bundle.files["parity.json"])
    card = folder / "card.md"
    return report_figures(report) | {
        "name": bundle.manifest.name,
        "network": bundle.manifest.provenance["recipe"]["network"]["name"],
        "data": bundle.manifest.title,
        "bundle_sha256": bundle.sha256,
        "macs": macs(bundle),
        "ms": ms[bundle.manifest.name],
        "training_s": training_seconds(card.read_text(encoding="utf-8")) if card.is_file() else None,
    }


def by_data(models: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group the models by the title of their dataset, keeping their order."""
    titles = dict.fromkeys(model["data"] for model in models)
    return {title: [model for model in models if model["data"] == title] for title in titles}


def report_figures(report: dict[str, Any]) -> dict[str, Any]:
    """Return a parity report's figures for float and both int8 methods, and the goals that the shipped one misses."""
    accuracy = {model["name"]: model["accuracy"] for model in report["models"]}
    interval = {model["name"]: model["accuracy_interval"] for model in report["models"]}
    (int8,) = (model for model in report["models"] if model["name"] == "tflite-int8")
    (against,) = (
        item for item in report["comparisons"] if item["candidate"] == "tflite-int8" and item["kind"] == "quantization"
    )
    chosen = report.get("int8") or {}
    method = chosen.get("method", "qat" if "fake-quantized" in accuracy else "ptq")
    both = chosen.get("qat_against_ptq") or {}
    found = {
        "n": against["n"],
        "float": accuracy["float"],
        "float_interval": interval["float"],
        "ptq": accuracy.get("tflite-int8" if method == "ptq" else "tflite-int8-ptq"),
        "qat": accuracy.get("tflite-int8" if method == "qat" else "tflite-int8-qat"),
        "method": method,
        "int8": int8["accuracy"],
        "int8_interval": int8["accuracy_interval"],
        "bytes": int8["size_bytes"],
        "drop": against["drop"],
        "drop_interval": against["drop_interval"],
        "agreement": against["agreement"],
        "p_worse": both.get("mcnemar_p_worse"),
    }
    return found | {"missed": missed(found)}


def missed(found: dict[str, Any]) -> list[str]:
    """Return the goals that a model misses or that cannot be checked: "drop", "agreement", "PTQ"."""
    worse = found["p_worse"] is None or found["p_worse"] < MIN_P
    goals = {"drop": found["drop"] > MAX_DROP, "agreement": found["agreement"] < MIN_AGREEMENT}
    goals["PTQ"] = found["method"] == "qat" and worse
    return [name for name, failed in goals.items() if failed]


def macs(bundle: Bundle) -> int:
    """Count a bundle's network's multiply-accumulates for one image."""
    from edgecnn.networks import build_network
    from edgecnn.networks.blocks import describe

    contract, network = bundle.manifest.input, bundle.manifest.provenance["recipe"]["network"]
    shape = (contract.height, contract.width, contract.channels)
    return describe(build_network(network["name"], *shape, len(bundle.manifest.labels), network.get("options"))).macs


def training_seconds(card: str) -> float | None:
    """Read a card's training time in seconds; None if it states none."""
    found = re.search(r"^Training took ([\d,]+) s\.", card, re.MULTILINE)
    return float(found[1].replace(",", "")) if found else None


def text_row(model: dict[str, Any]) -> tuple[str, ...]:
    """Return a model's figures as text, under HEADINGS."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{value:.2%}"

    low, high = model["drop_interval"]
    p_worse = "-" if model["p_worse"] is None else f"{model['p_worse']:.3g}"
    minutes = "-" if model["training_s"] is None else f"{model['training_s'] / 60:.1f}"
    accuracies = [percent(model[key]) for key in ("float", "ptq", "qat")]
    drop = (f"{model['drop']:.2f}", f"{low:.2f} to {high:.2f}", percent(model["agreement"]), p_worse)
    goals = f"missed: {', '.join(model['missed'])}" if model["missed"] else "met"
    sizes = (f"{model['bytes']:,}", f"{model['macs']:,}", f"{model['ms']:.3f}", minutes)
    return (model["name"], *accuracies, model["method"].upper(), *drop, *sizes, goals)


def plot(models: Sequence[dict[str, Any]]) -> bytes:
    """Plot accuracy over bytes, MACs and time, one row per dataset, and return the PNG's bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = by_data(models)
    figure = Figure(figsize=(5 * len(AXES), 4.5 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (title, chosen) in zip(figure.subplots(len(sets), len(AXES), squeeze=False), sets.items(), strict=True):
        for axes, (key, unit, label) in zip(row, AXES, strict=True):
            ordered = sorted(chosen, key=operator.itemgetter(key))
            places = [model[key] / unit for model in ordered]
            values = [100 * model["int8"] for model in ordered]
            ends = [
                [abs(100 * model["int8_interval"][side] - 100 * model["int8"]) for model in ordered] for side in (0, 1)
            ]
            axes.errorbar(places, values, ends, fmt="C3s-", capsize=3, label=f"{title}, int8")
            for x, y, model in zip(places, values, ordered, strict=True):
                axes.annotate(model["network"], (x, y), (-5, 6), textcoords="offset points", fontsize=8, ha="right")
            for index, other in enumerate(PUBLISHED if title.startswith("CIFAR-10") and key in PUBLISHED[0] else ()):
                place = (other[key] / unit, other["accuracy"])
                axes.plot(*place, "C7o", fillstyle="none", label="" if index else "published, lossless images")
                shift = (-5, -13 if index % 2 else 6)
                axes.annotate(other["name"], place, shift, textcoords="offset points", fontsize=8, ha="right")
            axes.set(xscale="log", xlabel=label, ylabel="test accuracy, % (bars: 95 %)")
            axes.margins(x=0.25, y=0.12)
            axes.tick_params(which="minor", labelbottom=False)
            axes.grid(alpha=0.3, which="both")
            axes.legend(loc="lower right", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


if __name__ == "__main__":
    main()
