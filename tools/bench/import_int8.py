"""Trained ONNX files, from import_torch.py, as int8: edgecnn's, after training and trained, next to float and to quantize_static.

Answers are those to the test photos, which taught, calibrated and chose nothing. Times are medians of interleaved calls with one thread.

    python tools/bench/import_int8.py work/signs-resnet18.onnx --data work/signs --work work
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from harness import about, edgecnn, finish, parser

from edgecnn.calibrate.input_range import stated_range
from edgecnn.data import open_dataset
from edgecnn.data.balanced import balanced
from edgecnn.evaluate.answers import input_contract, milliseconds
from edgecnn.export import export_path
from edgecnn.recipe import build_recipe
from edgecnn.runs import Run
from edgecnn.runtime.engines import open_engine
from edgecnn.runtime.model import Model

EXPORTS = (("tflite", "int8"), ("onnx", "int8"), ("tflite", "float32"), ("onnx", "float32"))
IMAGES = 200  # training photos that calibrate quantize_static


def quantize_static(source: Path, images: np.ndarray, path: Path) -> None:
    """Quantize as ONNX Runtime's documentation recommends for x86: QDQ, per channel, after its own preprocessing."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {name: image[None]}

    name = open_engine(None, source.read_bytes(), "onnx").input.name
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(prepared, path, Reader(), per_channel=True)


def photos(data: str, run: Run, source: Path, range_: str) -> np.ndarray:
    """Return training photos as the ONNX file reads them, for one of the usual ranges."""
    dataset = open_dataset(build_recipe({"data": {"source": data}}).data)
    split = dataset.load(("train",), **vars(run.info.input), stage="train")["train"]
    pixels = split.images[balanced(split.classes, IMAGES, 1)]
    given = stated_range(range_)
    assert given
    scale, zero_point = (np.asarray(number, np.float32) for number in given.numbers)
    images = (pixels - (128 + zero_point)) * scale
    shape = open_engine(None, source.read_bytes(), "onnx").input.shape
    first = shape[1] in (1, 3) and shape[3] not in (1, 3)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if first else images, np.float32)


def verified(run: Path, *arguments: str | Path) -> dict[str, Any]:
    """Import a file, export it unless it ships as it is, and return the report of `edgecnn verify`."""
    edgecnn("import", *arguments, "--out", run, "--force")
    if "--reference" not in arguments:
        for format_, precision in EXPORTS:
            edgecnn("export", run, "--format", format_, f"--{precision}", "--force")
    report: dict[str, Any] = json.loads(edgecnn("verify", run, "--max-drop", "100", "--json"))
    return report


def rows_of(source: Path, data: str, work: Path, epochs: int, range_: str) -> list[dict[str, Any]]:
    name, rival = source.stem, work / f"{source.stem}-static.onnx"
    start = (source, "--calibrate", data, "--input-range", range_)
    runs = {"after training": work / f"run-{name}", "trained": work / f"run-{name}-trained"}
    reports = {
        "after training": verified(runs["after training"], *start),
        "trained": verified(runs["trained"], *start, "--qat-epochs", str(epochs)),
    }
    quantize_static(source, photos(data, Run(runs["trained"]), source, range_), rival)
    runs["quantize_static"] = work / f"run-{name}-static"
    reports["quantize_static"] = verified(runs["quantize_static"], rival, *start[1:], "--reference", source)
    rows, calls = [], {}
    image = np.random.default_rng(1).integers(0, 256, (1, *vars(Run(runs["trained"]).info.input).values()), np.uint8)
    for how, report in reports.items():
        against = {item["candidate"]: item for item in report["comparisons"] if item["kind"] == "quantization"}
        for model in report["models"]:
            if model["name"] not in against or (how == "trained" and model["precision"] != "int8"):
                continue
            run, item = Run(runs[how]), against[model["name"]]
            data_ = export_path(run, model["format"], model["precision"]).read_bytes()
            key = f"{how}, {model['name']}"
            calls[key] = Model(open_engine(None, data_, model["format"], num_threads=1), input_contract(run)).logits
            rows.append(
                {
                    "network": name, "how": how, "model": model["name"], "n": item["n"], "accuracy": model["accuracy"],
                    "lost": item["lost"], "gained": item["gained"], "drop": item["drop"], "agreement": item["agreement"],
                    "bytes": model["size_bytes"], "key": key,
                }
            )  # fmt: skip
    times = milliseconds(calls, image)
    return [{**row, "ms": times[row.pop("key")]} for row in rows]


def main() -> None:
    arguments = parser(__doc__, "import_int8")
    arguments.add_argument("files", type=Path, nargs="+", help="ONNX files of import_torch.py")
    arguments.add_argument("--data", required=True, help="the folder of their photos that it wrote")
    arguments.add_argument("--work", type=Path, required=True)
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--input-range", default="imagenet")
    given = arguments.parse_args()
    rows = [
        row for file in given.files for row in rows_of(file, given.data, given.work, given.epochs, given.input_range)
    ]
    report = {**about("import_int8", data=Path(given.data).name, epochs=given.epochs), "results": rows}
    headings = ("network", "how", "model", "n", "accuracy", "drop", "agreement", "bytes", "ms")
    shown = [
        (row["network"], row["how"], row["model"], f"{row['n']:,}", f"{row['accuracy']:.2%}", f"{row['drop']:.2f}",
         f"{row['agreement']:.2%}", f"{row['bytes']:,}", f"{row['ms']:.3f}")
        for row in rows
    ]  # fmt: skip
    finish(given.out, report, headings, shown)


if __name__ == "__main__":
    main()
