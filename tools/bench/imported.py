"""Networks trained in PyTorch, as int8: edgecnn's files next to the float file, to ONNX Runtime's quantize_static, and to litert-torch
with ai-edge-quantizer.

All answer the same photos, which taught, calibrated and chose nothing. Times are medians of the processor's milliseconds of interleaved
calls, on one thread. Each command runs in an environment of its own: the first needs torch, torchvision, timm and onnx, the second
litert-torch and ai-edge-quantizer too, the third edgecnn.

    python tools/bench/imported.py train resnet18 --data signs.zip --side 96 --work WORK
    python tools/bench/imported.py convert --work WORK
    python tools/bench/imported.py measure --work WORK
"""

import argparse
import json
import random
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

READS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "centred": ((0.5,) * 3, (0.5,) * 3)}
SHARES = {"test": 0.4, "validation": 0.1, "train": 0.5}
CALIBRATION = 200  # training photos that calibrate the two others' files
CALLS, WARM_UP, BATCH = 200, 20, 32

HOW = {"after training": (), "trained": ("--qat-epochs", "8")}
"""How edgecnn makes an int8 file, and the options of `edgecnn import` for it."""

MOVES = (
    "Transpose",
    "Reshape",
    "Flatten",
    "MaxPool",
    "NhwcMaxPool",
    "Concat",
    "Slice",
    "Pad",
    "Clip",
    "Relu",
    "Identity",
)
"""ONNX operators that move or clip codes, or floats."""

HEADINGS = ("network", "how", "file", "n", "accuracy", "drop", "agreement", "bytes", "ms", "transposes", "floats")

Call = Callable[[np.ndarray], np.ndarray]


def write_photos(path: Path, folder: Path) -> None:
    """Divide the photos of a zip by SHARES, class by class, into PART/CLASS/."""
    drawn, classes = random.Random(1), dict[str, list[str]]()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if not name.endswith("/")):
            classes.setdefault(Path(name).parent.name, []).append(name)
        for label, members in sorted(classes.items()):
            drawn.shuffle(members)
            start = 0
            for part, share in SHARES.items():
                stop = start + round(share * len(members))
                (folder / part / label).mkdir(parents=True, exist_ok=True)
                for name in members[start:stop]:
                    (folder / part / label / Path(name).name).write_bytes(archive.read(name))
                start = stop


def photos_of(case: Path, part: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels, uint8 (n, side, side, 3), and the classes of a part's photos, or of `count` of them."""
    files, side = sorted((case / "photos" / part).glob("*/*")), about(case)["side"]
    files = random.Random(1).sample(files, count) if count else files
    labels = sorted(path.name for path in (case / "photos" / part).iterdir())
    opened = (ImageOps.fit(Image.open(file).convert("RGB"), (side, side), Image.Resampling.BILINEAR) for file in files)
    return np.stack([np.asarray(one) for one in opened]), np.array([labels.index(path.parent.name) for path in files])


def about(case: Path) -> Any:
    return json.loads((case / "case.json").read_text())


def real(pixels: np.ndarray, reads: str) -> np.ndarray:
    mean, deviation = (np.asarray(values, np.float32) for values in READS[reads])
    return ((pixels.astype(np.float32) / 255 - mean) / deviation).astype(np.float32)


def network(name: str, classes: int) -> Any:
    import timm
    import torchvision

    if hasattr(torchvision.models, name):
        return getattr(torchvision.models, name)(num_classes=classes)
    return timm.create_model(name, num_classes=classes)


def moved(pixels: Any) -> Any:
    """Return a batch turned, scaled, shifted and lit a little, each picture by its own amount."""
    import torch

    n = len(pixels)
    turn, scale = (torch.rand(n) - 0.5) * 0.5, 1 + (torch.rand(n) - 0.5) * 0.3
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.cos(turn) * scale
    matrix[:, 0, 1], matrix[:, 1, 0] = -torch.sin(turn) * scale, torch.sin(turn) * scale
    matrix[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.25
    grid = torch.nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    light = 1 + (torch.rand(n, 1, 1, 1) - 0.5) * 0.4
    return torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False) * light


def train(given: argparse.Namespace) -> None:
    """Train a network in PyTorch, and write its weights, its ONNX file and the photos that the other commands read."""
    import torch

    case = given.work / f"{given.data.stem}-{given.network}"
    write_photos(given.data, case / "photos")
    reads = "centred" if given.weights else "imagenet"
    settings = {"network": given.network, "data": given.data.stem, "side": given.side, "reads": reads}
    (case / "case.json").write_text(json.dumps(settings))
    images, numbers = photos_of(case, "train")
    pixels, classes = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(numbers)
    torch.manual_seed(1)
    model, started = network(given.network, int(classes.max()) + 1), time.time()
    if given.weights:
        state = torch.load(given.weights, weights_only=True, map_location="cpu")
        held = dict(zip(model.state_dict(), state.values(), strict=True))  # the same definition, with other names
        # the last layer
        own = {key: value for key, value in model.state_dict().items() if value.shape != held[key].shape}
        model.load_state_dict({**held, **own})
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in READS[reads])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = given.epochs * (len(pixels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.rate, total_steps=steps)
    model.train()
    for _ in range(given.epochs):
        for part in torch.randperm(len(pixels))[: len(pixels) // BATCH * BATCH].split(BATCH):
            answers = model(moved((pixels[part].float() / 255 - mean) / deviation))
            loss = torch.nn.functional.cross_entropy(answers, classes[part], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"{case.name}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    settle(model, (pixels, mean, deviation))
    write(model, case, given.side)


def settle(model: Any, images: tuple[Any, Any, Any]) -> None:
    """Set BatchNorm's statistics to those of the training photos under the final weights: timm's tf_ networks move theirs slowly."""
    import torch

    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the average of all batches
    pixels, mean, deviation = images
    with torch.no_grad():
        for part in torch.randperm(len(pixels)).split(BATCH):
            model((pixels[part].float() / 255 - mean) / deviation)


def write(model: Any, case: Path, side: int) -> None:
    import torch

    torch.save(model.eval().state_dict(), case / "model.pt")
    image, path = torch.zeros(1, 3, side, side), case / "model.onnx"
    torch.onnx.export(model, (image,), path, input_names=["pixels"], dynamo=False, opset_version=17)


def convert(given: argparse.Namespace) -> None:
    """Write each network as TFLite by litert-torch, in float and in int8 by ai-edge-quantizer, with 200 calibration photos."""
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    for case in cases(given.work):
        settings, state = about(case), torch.load(case / "model.pt", weights_only=True)
        model = network(settings["network"], len(list((case / "photos" / "train").iterdir())))
        model.load_state_dict(state)
        side, path = settings["side"], str(case / "litert-float.tflite")
        model = litert_torch.to_channel_last_io(model.eval(), args=[0])
        litert_torch.convert(model, (torch.zeros(1, side, side, 3),)).export(path)
        ((signature, ends),) = Interpreter(path).get_signature_list().items()
        images = real(photos_of(case, "train", CALIBRATION)[0], settings["reads"])
        made = quantizer.Quantizer(path)
        made.load_quantization_recipe(recipe.static_wi8_ai8())
        ranges = made.calibrate({signature: [{ends["inputs"][0]: image[None]} for image in images]})
        made.quantize(ranges).export_model(str(case / "litert-int8.tflite"), overwrite=True)
        names = ("litert-torch", "ai-edge-quantizer", "torch")
        (case / "litert.json").write_text(json.dumps({name: version(name) for name in names}))
        print(case, flush=True)


def cases(work: Path) -> list[Path]:
    return sorted(path.parent for path in work.glob("*/case.json"))


def quantize_static(source: Path, images: np.ndarray, path: Path) -> bytes:
    """Quantize as ONNX Runtime's documentation recommends for x86: QDQ, per channel, after its own preprocessing."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        left = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.left, None)
            return None if image is None else {"pixels": np.ascontiguousarray(image[None].transpose(0, 3, 1, 2))}

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(prepared, path, Reader(), per_channel=True)
    return path.read_bytes()


def files_of(case: Path) -> dict[tuple[str, str], tuple[bytes, Any]]:
    """Make every file of a network: (how, format) to its bytes, and the contract of edgecnn's own."""
    from harness import edgecnn

    from edgecnn.evaluate.answers import input_contract
    from edgecnn.export import export_path
    from edgecnn.runs import Run

    settings, source = about(case), case / "model.onnx"
    found: dict[tuple[str, str], tuple[bytes, Any]] = {("float", "onnx"): (source.read_bytes(), None)}
    for how, options in HOW.items():
        run = case / how.replace(" ", "-")
        start = ("import", source, "--calibrate", case / "photos", "--input-range", settings["reads"], "--out", run)
        edgecnn(*start, "--force", *options)
        for format_, precision in (("tflite", "int8"), ("onnx", "int8"), ("tflite", "float32"))[: 2 + (not options)]:
            edgecnn("export", run, "--format", format_, f"--{precision}", "--force")
            data = export_path(Run(run), format_, precision).read_bytes()
            found["float" if precision == "float32" else how, format_] = data, input_contract(Run(run))
    images = real(photos_of(case, "train", CALIBRATION)[0], settings["reads"])
    found["quantize_static", "onnx"] = quantize_static(source, images, case / "static.onnx"), None
    for how, name in (("litert-torch, float", "litert-float"), ("ai-edge-quantizer", "litert-int8")):
        if (path := case / f"{name}.tflite").exists():
            found[how, "tflite"] = path.read_bytes(), None
    return found


def opened(data: bytes, format_: str, contract: Any, reads: str) -> tuple[Call, Call]:
    """Return a function that turns pixels into a file's input, and one from that to logits. edgecnn's own files read pixels."""
    from edgecnn.runtime.engines import open_engine
    from edgecnn.runtime.model import Model, dequantized

    engine = open_engine(None, data, format_, num_threads=1)
    if contract:
        return np.asarray, Model(engine, contract).logits
    given, output = engine.input, engine.output

    def prepared(pixels: np.ndarray) -> np.ndarray:
        values = real(pixels, reads)
        if given.dtype != np.float32:
            ends = np.iinfo(given.dtype)
            values = np.clip(np.rint(values / given.scale) + given.zero_point, ends.min, ends.max).astype(given.dtype)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if format_ == "onnx" else values

    scale, zero_point = np.float32(output.scale), np.float32(output.zero_point)
    return prepared, lambda batch: dequantized(engine.run(batch), scale, zero_point)


def inside(data: bytes, format_: str) -> tuple[int, int]:
    """Count the Transposes that a file's engine executes, and the operators that compute in float: after ONNX Runtime has optimized the
    graph; of a TFLite file, its float tensors."""
    import onnx
    import onnxruntime

    from edgecnn.export.flatbuffer import read
    from edgecnn.export.tflite import float_tensors

    if format_ == "tflite":
        operators = [one.name for one in read(data).operators]
        return operators.count("TRANSPOSE"), len(float_tensors(data, "float32"))
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = f"{folder}/executed.onnx", 3
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    kept = ("QuantizeLinear", "DequantizeLinear", *MOVES)
    floats = [node for node in nodes if not node.op_type.startswith("Q") and node.op_type not in kept]
    return sum(node.op_type == "Transpose" for node in nodes), len(floats)


def rows_of(case: Path) -> list[dict[str, Any]]:
    from harness import interleaved
    from networks import milliseconds

    settings, (pixels, classes) = about(case), photos_of(case, "test")
    rows, calls, reference = [], {}, np.empty(0)
    for (how, format_), (data, contract) in files_of(case).items():
        prepare, logits = opened(data, format_, contract, settings["reads"])
        answers = np.concatenate([logits(prepare(one[None])) for one in pixels]).argmax(axis=1)
        reference = reference if len(reference) else answers
        calls[how, format_] = partial(milliseconds, logits, prepare(pixels[:1]))
        right, before = answers == classes, reference == classes
        row = {**settings, "how": how, "file": format_, "n": len(classes), "bytes": len(data)}
        counts = {"right": right, "agreed": answers == reference, "lost": before & ~right, "gained": right & ~before}
        row |= {key: int(np.sum(values)) for key, values in counts.items()}
        rows.append(row | dict(zip(("transposes", "floats"), inside(data, format_), strict=True)))
    times = interleaved({str(key): call for key, call in calls.items()}, CALLS, WARM_UP)
    return [row | {"ms": round(float(np.median(times[str((row["how"], row["file"]))])), 3)} for row in rows]


def cells(rows: list[dict[str, Any]], network: str) -> Iterator[tuple[str, ...]]:
    """Yield the table's rows for a network, or for all."""
    for how, file in dict.fromkeys((row["how"], row["file"]) for row in rows):
        same = [row for row in rows if (row["how"], row["file"]) == (how, file) and network in ("all", row["network"])]
        n, right, agreed, lost, gained, *counts = (
            sum(row[key] for row in same)
            for key in ("n", "right", "agreed", "lost", "gained", "bytes", "ms", "transposes", "floats")
        )
        figures = f"{n:,}", f"{right / n:.2%}", f"{100 * (lost - gained) / n:.2f}", f"{agreed / n:.2%}"
        yield (network, how, file, *figures, *(f"{count:,.6g}" for count in counts))


SUMMARY = ("network", "n", "float", "edgecnn", "edgecnn, trained", "`quantize_static`", "ai-edge-quantizer")
SPEEDS = ("network", "float ONNX", "edgecnn TFLite", "ai-edge-quantizer", "edgecnn ONNX", "`quantize_static`")
WAYS = (
    ("after training", "tflite"),
    ("trained", "tflite"),
    ("quantize_static", "onnx"),
    ("ai-edge-quantizer", "tflite"),
)


def summary(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each network, and one for all: accuracy in float, then the drop in points and the agreement of int8 files."""
    rows = []
    for name, files in [*named(results), ("all", [row for result in results for row in result["rows"]])]:
        found = []
        for way in (("float", "onnx"), *WAYS):
            same = [row for row in files if (row["how"], row["file"]) == way]
            n, right, agreed, lost, gained = (
                sum(row[key] for row in same) for key in ("n", "right", "agreed", "lost", "gained")
            )
            found.append(
                f"{right / n:.2%}" if way[0] == "float" else f"{100 * (lost - gained) / n:.2f}, {agreed / n:.2%}"
            )
        rows.append((name, f"{n:,}", *found))
    return rows


def speeds(results: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return a row for each network: milliseconds per image of its files."""
    order = ("float", "onnx"), ("trained", "tflite"), WAYS[3], ("trained", "onnx"), WAYS[2]
    rows = []
    for name, files in named(results):
        taken = {(row["how"], row["file"]): f"{row['ms']:.2f}" for row in files}
        rows.append((name, *(taken[one] for one in order)))
    return rows


def executed(results: list[dict[str, Any]]) -> str:
    """Say how many Transposes and float operators the engines execute in each way's int8 files, least and most over the networks."""
    kinds = {
        "edgecnn's TFLite": WAYS[1],
        "edgecnn's ONNX": ("trained", "onnx"),
        "ai-edge-quantizer's": WAYS[3],
        "`quantize_static`'s": WAYS[2],
    }
    texts = []
    for kind, way in kinds.items():
        rows = [row for result in results for row in result["rows"] if (row["how"], row["file"]) == way]
        ends = ((min(row[key] for row in rows), max(row[key] for row in rows)) for key in ("transposes", "floats"))
        least_most = [f"{low} to {high}" if high > low else str(low) for low, high in ends]
        texts.append(f"{kind} {' and '.join(least_most)}")
    return f"Transposes and float operators, as the engines execute the files: {'; '.join(texts)}."


def named(results: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return each network's name, with its photos, and its rows."""
    texts = []
    for result in results:
        first = result["rows"][0]
        texts.append((f"{first['network']}, {first['data']} at {first['side']}", result["rows"]))
    return texts


def measure(given: argparse.Namespace) -> None:
    """Make edgecnn's and quantize_static's files, and measure all of them."""
    from harness import Results, finish
    from harness import about as context

    found = {path.read_text() for path in given.work.glob("*/litert.json")}
    settings = context("imported", others=[json.loads(text) for text in sorted(found)])
    results = Results(given.out, settings)
    for missing in results.missing(case=[case.name for case in cases(given.work)]):
        results.add(**missing, rows=rows_of(given.work / missing["case"]))
    rows = [row for result in results.rows for row in result["rows"]]
    shown = [line for name in (*dict.fromkeys(row["network"] for row in rows), "all") for line in cells(rows, name)]
    finish(given.out, {**settings, "results": results.rows}, HEADINGS, shown)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(required=True)
    for command in (train, convert, measure):
        one = commands.add_parser(command.__name__, help=command.__doc__)
        one.add_argument("--work", type=Path, required=True)
        one.set_defaults(run=command)
        if command is train:
            one.add_argument("network", help="torchvision's or timm's name")
            one.add_argument("--data", type=Path, required=True, help="a zip with CLASS/NAME.jpg")
            one.add_argument("--weights", type=Path, help="a .pth file of the whole network, of these or other classes")
            for name, usual in (("side", 96), ("epochs", 60), ("rate", 2e-3)):
                one.add_argument(f"--{name}", type=type(usual), default=usual)
        if command is measure:
            one.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "imported.json")
    given = made.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
