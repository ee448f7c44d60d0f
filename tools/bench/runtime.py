"""Time the device runtime and loops written by hand for the one model, and say what its resize is worth.

All figures of a table are medians of interleaved calls, in random orders, after warm-up rounds, one thread, int8 TFLite in LiteRT:

    frame   a 640x480 RGB array to a label: edgecnn; a hand-written loop of the same resize and `invoke`; the plain way, Pillow's
            bilinear filter over the whole frame, then `invoke`; MediaPipe's ImageClassifier, where --mediapipe-python is given
    photo   a 12-megapixel JPEG to a label: edgecnn; full decoding, then edgecnn's resize; full decoding, then the plain resize
    folder  `edgecnn classify DIR` on small JPEGs, in a process of its own, and a hand-written script
    batch   64 frames of 640x480: one at a time; `classify_batch`; on LiteRT, and on ONNX Runtime where it is installed
    accuracy, with --data: the test images, enlarged to 640x480 frames, by the chosen resize and by the plain one

    python tools/bench/runtime.py --model run.edgecnn --data cifar10
    python tools/bench/runtime.py --parts batch
    edgecnn export RUN --format tflite --int8 --io uint8    # MediaPipe refuses int8 input
    python tools/bench/runtime.py --model run.edgecnn --mediapipe-python venv/bin/python --mediapipe-model model-int8-uint8.tflite
"""

import argparse
import functools
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image
from resume import about

from edgecnn import images
from edgecnn.errors import EdgeCNNError
from edgecnn.files import canonical_json, write_atomic
from edgecnn.pixels import resize
from edgecnn.report.table import text_table
from edgecnn.runtime import Classifier
from edgecnn.runtime.classifier import BATCH
from edgecnn.runtime.engines import is_installed
from edgecnn.runtime.timing import Timing, measure_interleaved, percentile

FRAME = (640, 480)
PHOTO = (4000, 3000)
WARMUP = 50
"""Rounds of a frame that do not count."""

PARTS = {
    "frame": "a 640x480 frame",
    "photo": "a 12-megapixel JPEG",
    "folder": "a folder",
    "batch": "64 frames of 640x480",
}
"""The tables, and what each times."""

FOLDER_SCRIPT = """\
import os
import sys

import numpy as np
from PIL import Image
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter(model_path=sys.argv[1], num_threads=1)
interpreter.allocate_tensors()
read, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
_, height, width, channels = read["shape"]
mode = "L" if channels == 1 else "RGB"
labels = open(sys.argv[3]).read().split("\\n")
scale, zero_point = answer["quantization"]
for name in sorted(os.listdir(sys.argv[2])):
    image = Image.open(os.path.join(sys.argv[2], name)).convert(mode)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    interpreter.set_tensor(read["index"], (np.asarray(image) ^ 128).view(np.int8).reshape(read["shape"]))
    interpreter.invoke()
    logits = (interpreter.get_tensor(answer["index"])[0].astype(np.float32) - zero_point) * scale
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    best = np.argsort(-scores)[:3]
    print(f"{name}: " + ", ".join(f"{labels[index]} {scores[index]:.2%}" for index in best))
"""

MEDIAPIPE_SCRIPT = """\
import sys, time

import mediapipe as mp
import numpy as np
from mediapipe.tasks.python import BaseOptions
from mediapipe.tasks.python.vision import ImageClassifier, ImageClassifierOptions

options = ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]), max_results=3)
classifier = ImageClassifier.create_from_options(options)
frame = np.load(sys.argv[2])
print(mp.__version__, flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    classifier.classify(mp.Image(image_format=mp.ImageFormat.SRGB, data=frame))
    print(time.perf_counter() - start, flush=True)
"""


def main() -> None:
    """Measure, print tables and, with --json-out, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a bundle with an int8 .tflite model (default: as edgecnn chooses)")
    parser.add_argument("--data", help="dataset, folder or zip whose test split gives the accuracies (default: none)")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="default: all")
    parser.add_argument("--n", type=int, default=500, help="rounds that count, at least 100 (default: 500)")
    parser.add_argument("--photos", type=int, default=5000, help="small JPEGs in the folder (default: 5000)")
    parser.add_argument("--folder-n", type=int, default=7, help="rounds of the folder (default: 7)")
    parser.add_argument("--mediapipe-python", help="the Python of an environment with mediapipe (default: none)")
    parser.add_argument("--mediapipe-model", type=Path, help="the same model as a .tflite with uint8 input")
    parser.add_argument("--json-out", type=Path, help="write the figures here (default: nowhere)")
    arguments = parser.parse_args()
    if arguments.n < 100:
        parser.error(f"--n must be at least 100, received {arguments.n}")
    if bool(arguments.mediapipe_python) != bool(arguments.mediapipe_model):
        parser.error("--mediapipe-python and --mediapipe-model go together")
    try:
        report = measure(arguments)
    except EdgeCNNError as error:
        parser.exit(error.exit_code, f"{error}\n")
    versions = " ".join(
        f"{name} {report['versions'][name]}" for name in ("python", "numpy", "pillow", "ai-edge-litert")
    )
    print(f"{report['machine']}; {versions}; {report['model']}")
    for part in arguments.parts:
        what = PARTS[part]
        rows = [
            (name, f"{item['p50_ms']:.3f}", f"{item['p90_ms']:.3f}", f"{item['ratio']:.3f}")
            for name, item in report[part]["ways"].items()
        ]
        print(f"\n{what}, n = {report[part]['n']}")
        print(text_table(("", "p50 ms", "p90 ms", "of edgecnn"), rows))
    for name, value in report["accuracy"].items():
        print(f"{name}: {value:.2%} of {report['test_images']:,} test images")
    if arguments.json_out:
        write_atomic(arguments.json_out, canonical_json(report))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all parts and return the report."""
    classifier = Classifier.load(arguments.model, engine="litert", precision="int8")
    ways = {
        "frame": lambda: frame(classifier, arguments),
        "photo": lambda: photo(classifier, max(20, arguments.n // 20)),
        "folder": lambda: folder(classifier, arguments.photos, arguments.folder_n),
        "batch": lambda: batch(classifier, max(20, arguments.n // 10)),
    }
    tables = {part: ways[part]() for part in arguments.parts}
    accuracies, count = accuracy(classifier, arguments.data) if arguments.data else ({}, 0)
    return {
        **about("runtime"),
        "model": classifier.about,
        "bundle_sha256": classifier.bundle.sha256,
        **tables,
        "accuracy": accuracies,
        "test_images": count,
    }


def table(times: dict[str, Timing], n: int) -> dict[str, Any]:
    """Return timings as JSON, each with edgecnn's share of it."""
    ours = times["edgecnn"].p50_ms
    return {
        "n": n,
        "ways": {
            name: {"p50_ms": item.p50_ms, "p90_ms": item.p90_ms, "ratio": ours / item.p50_ms}
            for name, item in times.items()
        },
    }


def by_hand(classifier: Classifier) -> Callable[[Image.Image | np.ndarray], int]:
    """Return a function from the model's input pixels to a class, by the interpreter's own calls."""
    interpreter = classifier.model.engine._interpreter
    read, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    index, shape = read["index"], tuple(read["shape"])

    def label(small: Image.Image | np.ndarray) -> int:
        interpreter.set_tensor(index, (np.asarray(small) ^ 128).view(np.int8).reshape(shape))
        interpreter.invoke()
        return int(np.argmax(interpreter.get_tensor(answer)[0]))

    return label


def plain(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the whole image by Pillow's bilinear filter."""
    return image.resize(size, Image.Resampling.BILINEAR)


def frame(classifier: Classifier, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time a camera's frame, an array in the model's channels, to a label."""
    contract = classifier.model.contract
    height, width = contract.height, contract.width
    pixels = np.asarray(images.to_mode(drawing(FRAME), contract.channels))
    small = resize(pixels, height, width)
    label = by_hand(classifier)
    ways: dict[str, Callable[[], Any]] = {
        "edgecnn": lambda: classifier.classify(pixels),
        "by hand, same resize": lambda: label(resize(pixels, height, width, contract.fit)),
        "plain": lambda: label(plain(Image.fromarray(pixels), (width, height))),
        "edgecnn, whole frame": lambda: classifier.classify(pixels, fit="stretch"),
        "network alone": lambda: label(small),
    }
    if not arguments.mediapipe_python:
        return table(measure_interleaved(ways, warmup=WARMUP, repeats=arguments.n), arguments.n)
    with tempfile.TemporaryDirectory() as name:
        script, array = Path(name, "mediapipe_.py"), Path(name, "frame.npy")
        script.write_text(MEDIAPIPE_SCRIPT)
        np.save(array, pixels)
        command = [arguments.mediapipe_python, str(script), str(arguments.mediapipe_model), str(array)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as other:
            requests, replies = other.stdin, other.stdout
            assert requests and replies
            version = replies.readline().strip()
            if not version:
                raise EdgeCNNError(f"{' '.join(command)} did not start: run it to see why.")
            theirs: list[float] = []

            def ask() -> None:
                """Have MediaPipe classify the frame, and note the time that it took itself."""
                requests.write("\n")
                requests.flush()
                theirs.append(float(replies.readline()) * 1000)
                classifier.classify(
                    pixels
                )  # so that the next in turn does not pay for what this process forgot meanwhile

            times = measure_interleaved(ways | {"": ask}, warmup=WARMUP, repeats=arguments.n)
            requests.close()
    del times[""]  # it has the pipe's time in it
    kept = theirs[WARMUP:]
    times[f"MediaPipe {version}"] = Timing(percentile(kept, 50), percentile(kept, 90), len(kept))
    return table(times, arguments.n)


def photo(classifier: Classifier, n: int) -> dict[str, Any]:
    """Time a large JPEG's bytes to a label."""
    contract = classifier.model.contract
    height, width = contract.height, contract.width
    data = jpeg(drawing(PHOTO, 1), quality=90)
    label = by_hand(classifier)

    def whole() -> Image.Image:
        return images.decode(data, contract.channels)

    ways = {
        "edgecnn": lambda: classifier.classify(data),
        "whole decoding, same resize": lambda: label(resize(whole(), height, width, contract.fit)),
        "whole decoding, plain": lambda: label(plain(whole(), (width, height))),
    }
    return table(measure_interleaved(ways, warmup=3, repeats=n), n)


def batch(classifier: Classifier, n: int) -> dict[str, Any]:
    """Time 64 frames to labels, one at a time and as a batch."""
    classifiers = {"": classifier}
    if is_installed("onnxruntime"):
        path = classifier.bundle.path
        classifiers[", ONNX Runtime"] = Classifier.load(path, engine="onnxruntime", precision="int8")
    channels = classifier.model.contract.channels
    frames = [np.asarray(images.to_mode(drawing(FRAME, seed), channels)) for seed in range(BATCH)]
    ways: dict[str, Callable[[], Any]] = {}
    for suffix, one in classifiers.items():
        ways[f"edgecnn{suffix}"] = functools.partial(lambda one: [one.classify(item) for item in frames], one)
        ways[f"classify_batch{suffix}"] = functools.partial(one.classify_batch, frames)
    return table(measure_interleaved(ways, warmup=3, repeats=n), n)


def folder(classifier: Classifier, count: int, n: int) -> dict[str, Any]:
    """Time `edgecnn classify DIR` and a hand-written script, both cold, over small JPEGs of the model's size."""
    contract = classifier.model.contract
    with tempfile.TemporaryDirectory() as name:
        photos, model, labels, script = (Path(name, part) for part in ("photos", "m.tflite", "labels.txt", "script.py"))
        photos.mkdir()
        large = np.asarray(drawing((512, 512), 2))
        random = np.random.default_rng(3)
        for index in range(count):
            top, left = random.integers(0, 512 - contract.height), random.integers(0, 512 - contract.width)
            part = Image.fromarray(large[top : top + contract.height, left : left + contract.width])
            (photos / f"{index:05}.jpg").write_bytes(jpeg(part, quality=75))
        entry = next(
            item for item in classifier.bundle.manifest.models if item.precision == "int8" and item.format == "tflite"
        )
        model.write_bytes(classifier.bundle.files[entry.file])
        labels.write_text("\n".join(classifier.labels))
        script.write_text(FOLDER_SCRIPT)
        command = Path(sys.executable).parent / "edgecnn"
        start = [str(command)] if command.exists() else [sys.executable, "-m", "edgecnn"]
        settings = ["--engine", "litert", "--precision", "int8", "--model", str(classifier.bundle.path.resolve())]
        commands = {
            "edgecnn": [*start, "classify", str(photos), *settings],
            "by hand": [sys.executable, str(script), str(model), str(photos), str(labels)],
        }
        ways = {key: (lambda line=line: quietly(line)) for key, line in commands.items()}
        return table(measure_interleaved(ways, warmup=1, repeats=n), n) | {"photos": count}


def quietly(command: list[str]) -> None:
    """Run a command to its end, its output thrown away."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def accuracy(classifier: Classifier, data: str) -> tuple[dict[str, float], int]:
    """Return the test accuracy of each resize on test images that are enlarged to frames, and how many they are."""
    from edgecnn.data import open_dataset
    from edgecnn.recipe import build_recipe

    contract = classifier.model.contract
    height, width = contract.height, contract.width
    dataset = open_dataset(build_recipe({"data": {"source": data}}).data)
    size = {"height": height, "width": width, "channels": contract.channels}
    split = dataset.load(("test",), **size, stage="verify")["test"]
    ways: dict[str, Callable[[Image.Image], Any]] = {
        "the images themselves": lambda image: resize(image, height, width),
        "edgecnn, 640x480 frame": lambda image: resize(enlarged(image), height, width, "stretch"),
        "plain, 640x480 frame": lambda image: plain(enlarged(image), (width, height)),
        "edgecnn, 640x480 JPEG": lambda image: images.load(
            jpeg(enlarged(image), quality=90), height, width, contract.channels, "stretch"
        ),
        "whole decoding, 640x480 JPEG": lambda image: resize(
            images.decode(jpeg(enlarged(image), quality=90), contract.channels), height, width, "stretch"
        ),
    }
    right = dict.fromkeys(ways, 0)
    for pixels, label in zip(split.images, split.classes, strict=True):
        image = Image.fromarray(pixels if contract.channels == 3 else pixels[:, :, 0])
        for name, way in ways.items():
            small = np.asarray(way(image)).reshape(1, height, width, contract.channels)
            right[name] += int(np.argmax(classifier.model.logits(small)[0]) == label)
    return {name: count / len(split.classes) for name, count in right.items()}, len(split.classes)


def enlarged(image: Image.Image) -> Image.Image:
    """Return a test image as a camera's frame would show it: smooth, the whole of it."""
    return image.resize(FRAME, Image.Resampling.BICUBIC)


def drawing(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Return a drawn RGB picture of blotches and a little noise, which a JPEG holds about as a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = random.normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Return an image as a JPEG's bytes, colour at half the resolution."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
