"""Time the device runtime against hand-written loops for one model: medians of interleaved calls, one thread, int8 TFLite in LiteRT.

frame   a 640x480 RGB array to a label: edgecnn; a hand-written loop with the same resize and `invoke`; Pillow's bilinear filter over the
        whole frame, then `invoke`; the network only
photo   a 12-megapixel JPEG to a label: edgecnn; full decoding, then edgecnn's resize
folder  `edgecnn classify DIR` on small JPEGs, in a separate process, and a hand-written script

python tools/bench/runtime.py --model run.edgecnn
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import about, by_hand, edgecnn_command, finish, parser, ran
from PIL import Image

from edgecnn import images
from edgecnn.pixels import resize
from edgecnn.runtime import Classifier
from edgecnn.runtime.model import Timing, measure_interleaved

FRAME, PHOTO = (640, 480), (4000, 3000)
WARMUP = 50
"""Untimed rounds of a frame."""


def main() -> None:
    """Measure, print a table and write the figures."""
    made = parser(__doc__, "runtime")
    made.add_argument("--model", type=Path, help="a bundle with an int8 .tflite model (default: edgecnn's own choice)")
    made.add_argument("--n", type=int, default=500, help="rounds of a frame (default: 500)")
    made.add_argument("--photos", type=int, default=5000, help="small JPEGs in the folder (default: 5000)")
    made.add_argument("--folder-n", type=int, default=7, help="rounds of the folder (default: 7)")
    arguments = made.parse_args()
    report = measure(arguments)
    rows = [
        (f"{part}, n = {found['n']}", name, f"{way['p50_ms']:.3f}", f"{way['p90_ms']:.3f}", f"{way['ratio']:.3f}")
        for part, found in report["parts"].items()
        for name, way in found["ways"].items()
    ]
    finish(arguments.out, report, ("", "", "p50 ms", "p90 ms", "edgecnn's share"), rows)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all parts and return the report."""
    classifier = Classifier.load(arguments.model, engine="litert", precision="int8")
    parts = {
        "frame": frame(classifier, arguments.n),
        "photo": photo(classifier, max(1, arguments.n // 20)),
        "folder": folder(classifier, arguments.photos, arguments.folder_n),
    }
    return {**about("runtime", model=classifier.about, bundle_sha256=classifier.bundle.sha256), "parts": parts}


def table(times: dict[str, Timing], n: int) -> dict[str, Any]:
    """Return timings as JSON, each with its ratio to edgecnn's."""
    ours = times["edgecnn"].p50_ms
    ways = {
        name: {"p50_ms": item.p50_ms, "p90_ms": item.p90_ms, "ratio": ours / item.p50_ms}
        for name, item in times.items()
    }
    return {"n": n, "ways": ways}


def loop(classifier: Classifier) -> Callable[[Image.Image | np.ndarray], int]:
    """Return a function from the model's input pixels to a class, using the interpreter directly."""
    interpreter = classifier.model.engine._interpreter
    read, answer = interpreter.get_input_details()[0], interpreter.get_output_details()[0]["index"]
    index, shape = read["index"], tuple(read["shape"])

    def label(small: Image.Image | np.ndarray) -> int:
        interpreter.set_tensor(index, (np.asarray(small) ^ 128).view(np.int8).reshape(shape))
        interpreter.invoke()
        return int(np.argmax(interpreter.get_tensor(answer)[0]))

    return label


def frame(classifier: Classifier, n: int) -> dict[str, Any]:
    """Time classification of a camera frame, an array in the model's channels."""
    contract = classifier.model.contract
    height, width = contract.height, contract.width
    pixels = np.asarray(images.to_mode(drawing(FRAME), contract.channels))
    small, label = resize(pixels, height, width), loop(classifier)

    def filtered() -> int:
        return label(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))

    ways: dict[str, Callable[[], Any]] = {
        "edgecnn": lambda: classifier.classify(pixels),
        "by hand, same resize": lambda: label(resize(pixels, height, width, contract.fit)),
        "by hand, bilinear filter": filtered,
        "network alone": lambda: label(small),
    }
    return table(measure_interleaved(ways, warmup=WARMUP, repeats=n), n)


def photo(classifier: Classifier, n: int) -> dict[str, Any]:
    """Time classification of a large JPEG's bytes."""
    contract = classifier.model.contract
    data, label = jpeg(drawing(PHOTO, 1), quality=90), loop(classifier)

    def whole() -> int:
        image = images.decode(data, contract.channels)
        return label(resize(image, contract.height, contract.width, contract.fit))

    ways = {"edgecnn": lambda: classifier.classify(data), "decoded whole, same resize": whole}
    return table(measure_interleaved(ways, warmup=3, repeats=n), n)


def folder(classifier: Classifier, count: int, n: int) -> dict[str, Any]:
    """Time `edgecnn classify DIR` and a hand-written script, both cold, over small JPEGs of the model's size."""
    contract = classifier.model.contract
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name, "photos")
        photos.mkdir()
        large, random = np.asarray(drawing((512, 512), 2)), np.random.default_rng(3)
        for index in range(count):
            top, left = random.integers(0, 512 - contract.height), random.integers(0, 512 - contract.width)
            part = Image.fromarray(large[top : top + contract.height, left : left + contract.width])
            (photos / f"{index:05}.jpg").write_bytes(jpeg(part, quality=75))
        settings = ["--engine", "litert", "--precision", "int8", "--model", str(classifier.bundle.path.resolve())]
        lines = {
            "edgecnn": [*edgecnn_command(), "classify", str(photos), *settings],
            "by hand": [*by_hand(Path(name), classifier.bundle), str(photos)],
        }
        ways = {key: partial(ran, line) for key, line in lines.items()}
        return table(measure_interleaved(ways, warmup=1, repeats=n), n) | {"photos": count}


def drawing(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Draw an RGB picture of blotches and a little noise, which compresses about like a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = random.normal(0, 4, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))


def jpeg(image: Image.Image, quality: int) -> bytes:
    """Return an image as a JPEG's bytes, with colour at half resolution."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
