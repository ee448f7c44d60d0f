"""Time a run's ONNX int8 graph in ONNX Runtime, its float32 graph, and two other ways to an int8 graph.

One image, one thread, interleaved (A, B, A, B, …) after warm-up rounds; the figures are medians of a session's run alone,
its input already in the type that it reads. The answers are compared with those of the int8 TFLite file on the
validation images.

    float32           the run's float32 export
    edgecnn           the run's int8 export: edgecnn.export.onnx.int8
    tf2onnx           tf2onnx.convert.from_tflite of the int8 TFLite file, unmodified
    quantize_static   ONNX Runtime's own quantizer on the float32 export: QDQ, uint8 activations, per-channel weights

    python tools/bench/onnx_int8.py runs/latest --n 500
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from resume import about

from edgecnn import files
from edgecnn.data import open_dataset
from edgecnn.errors import EdgeCNNError
from edgecnn.export import convert
from edgecnn.export import onnx as onnx_export
from edgecnn.files import canonical_json, quiet_stderr, write_atomic
from edgecnn.pixels import to_codes, to_real
from edgecnn.report.table import text_table
from edgecnn.runs import Run, open_run
from edgecnn.runtime.engines import Engine, open_engine
from edgecnn.runtime.timing import measure_interleaved
from edgecnn.verify.answers import input_contract

CALIBRATION = 500
"""Training images that quantize_static sees."""


def main() -> None:
    """Measure, print a table and, with --json-out, write the figures."""
    files.stderr_is_ours = True
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a trained run (default: the last one)")
    parser.add_argument("--n", type=int, default=500, help="rounds that count, at least 300 (default: 500)")
    parser.add_argument("--warmup", type=int, default=50, help="rounds before (default: 50)")
    parser.add_argument("--json-out", type=Path, help="write the figures here (default: nowhere)")
    arguments = parser.parse_args()
    if arguments.n < 300:
        parser.error(f"--n must be at least 300, received {arguments.n}")
    try:
        report = measure(open_run(arguments.run), arguments.n, arguments.warmup)
    except EdgeCNNError as error:
        parser.exit(error.exit_code, f"{error}\n")
    versions = " ".join(f"{name} {report['versions'][name]}" for name in ("onnxruntime", "onnx", "tf2onnx"))
    print(f"{report['machine']}; {versions}; one thread, n = {report['n']}; {report['network']} {report['input']}")
    print(
        text_table(
            ("model", "bytes", "p50 us", "p90 us", "x float32", "accuracy", "agreement", "LSB", "equal rows"),
            rows(report),
        )
    )
    if arguments.json_out:
        write_atomic(arguments.json_out, canonical_json(report))


def measure(run: Run, n: int, warmup: int) -> dict[str, Any]:
    """Return the bench's figures of a run."""
    contract = input_contract(run)
    splits = open_dataset(run.recipe.data).load(("train", "validation"), **vars(run.info.input), stage="bench")
    images, classes = splits["validation"].images, splits["validation"].classes
    chosen = np.random.default_rng(0).permutation(len(splits["train"].images))[:CALIBRATION]
    tflite, float32 = convert(run, "tflite", "int8"), convert(run, "onnx", "float32")
    calibration = to_real(splits["train"].images[chosen], contract.scale, contract.zero_point)
    files = {
        "float32": float32,
        "edgecnn": onnx_export.int8(tflite),
        "tf2onnx": from_tflite(tflite),
        "quantize_static": quantize_static(float32, calibration),
    }
    engines = {"TFLite int8": open_engine("litert", tflite, "tflite")}
    engines |= {name: open_engine("onnxruntime", data, "onnx") for name, data in files.items()}

    def read(engine: Engine, pixels: np.ndarray) -> np.ndarray:
        if engine.input.dtype == np.float32:
            return to_real(pixels, contract.scale, contract.zero_point)
        return pixels if engine.input.dtype == np.uint8 else to_codes(pixels)

    outputs = {name: engine.run(read(engine, images)) for name, engine in engines.items()}
    calls = {
        name: lambda engine=engine, one=read(engine, images[:1]): engine.run(one) for name, engine in engines.items()
    }
    timings = measure_interleaved(calls, warmup=warmup, repeats=n)
    figures = {}
    for name, timing in timings.items():
        figures[name] = {
            "bytes": len(files.get(name, tflite)),
            "p50_ms": timing.p50_ms,
            "p90_ms": timing.p90_ms,
            "of_float32": timing.p50_ms / timings["float32"].p50_ms,
            "accuracy": float(np.mean(np.argmax(outputs[name], axis=1) == classes)),
        } | against(outputs["TFLite int8"], outputs[name])
    return {
        **about("onnx_int8"),
        "n": n,
        "network": run.recipe.network.name,
        "input": "x".join(map(str, vars(run.info.input).values())),
        "data": run.info.data.title,
        "validation_images": len(images),
        "models": figures,
    }


def against(tflite: np.ndarray, outputs: np.ndarray) -> dict[str, Any]:
    """Compare with the int8 TFLite file's codes; the codes only where both are on the same grid, so not floats."""
    result: dict[str, Any] = {"agreement": float(np.mean(np.argmax(outputs, axis=1) == np.argmax(tflite, axis=1)))}
    if outputs.dtype == np.float32:
        return result | {"largest_lsb": None, "equal_rows": None}
    offset = 128 if outputs.dtype == np.uint8 else 0
    difference = np.abs(outputs.astype(int) - offset - tflite.astype(int)).max(axis=1)
    return result | {"largest_lsb": int(difference.max()), "equal_rows": float(np.mean(difference == 0))}


def from_tflite(tflite: bytes) -> bytes:
    """Convert an int8 TFLite file by tf2onnx."""
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        import tf2onnx

        logging.getLogger("tf2onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.tflite"
        path.write_bytes(tflite)
        return tf2onnx.convert.from_tflite(str(path), opset=onnx_export.onnx_int8.OPSET)[0].SerializeToString()


def quantize_static(float32: bytes, calibration: np.ndarray) -> bytes:
    """Quantize a float32 ONNX file by ONNX Runtime's own tool, which leaves its input and output float32."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"pixels": image[np.newaxis]}

    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        logging.getLogger().setLevel(logging.ERROR)  # it recommends quant_pre_process, which needs sympy
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(float32)
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
        return target.read_bytes()


def rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the models' figures as text."""
    return [
        (
            name,
            f"{item['bytes']:,}",
            f"{item['p50_ms'] * 1000:.1f}",
            f"{item['p90_ms'] * 1000:.1f}",
            f"{item['of_float32']:.2f}",
            f"{item['accuracy']:.2%}",
            f"{item['agreement']:.2%}",
            "-" if item["largest_lsb"] is None else str(item["largest_lsb"]),
            "-" if item["equal_rows"] is None else f"{item['equal_rows']:.2%}",
        )
        for name, item in report["models"].items()
    ]


if __name__ == "__main__":
    main()
