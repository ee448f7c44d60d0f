"""Measure what the maps of `edgecnn explain` are worth, on test images, and what they cost.

    rank correlation   of the int8 model's occlusion map with Grad-CAM of the float model: a run only
    random weights     the same of a map with that of the same network with weights drawn at random: a map that stays the same shows the
                       image, not the model (Adebayo et al. 2018, arXiv:1810.03292). A run only
    deletion           area under the deletion curve (Petsiuk et al. 2018, arXiv:1806.07421): the mean score of the answer while pixels
                       become mid-grey, those first that a map puts first. Lower is better. Random maps are of two kinds: values drawn at
                       random under the patches, so that the map is as smooth as an occlusion map; and pixels in random order
    ms, peak MB        of one map, one thread; of the process `edgecnn explain IMAGE`, its interpreter and imports included

    EDGECNN_DATA=<folder of cifar10-jpeg.zip> python tools/bench/explain.py \\
        --model models/cifar10-resnet8/cifar10-resnet8.edgecnn --data cifar10-jpeg.zip --runs runs/digits runs/trash
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from edgecnn import files
from edgecnn.data import open_dataset
from edgecnn.files import canonical_json, write_atomic
from edgecnn.pixels import PAD
from edgecnn.recipe import build_recipe
from edgecnn.report.table import text_table
from edgecnn.runs import FLOAT_MODEL, Run, open_run
from edgecnn.runtime import Classifier
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.model import Model
from edgecnn.runtime.occlusion import Occlusion, mean_over_patches, occlusion, places
from edgecnn.runtime.timing import measure_interleaved
from edgecnn.tables import to_json
from edgecnn.verify.statistics import rank_correlation
from edgecnn.versions import library_versions, processor

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "explain.json"
STEPS = 32
"""Of a deletion curve: each makes another 1/32 of the pixels grey."""

RANDOM = 5
"""Random maps of each kind for an image."""

MAPS = ("model", "data", "input", "n", "of the two maps", "occlusion, random weights", "Grad-CAM, random weights")
AREAS = {
    "occlusion": "occlusion", "gradcam": "Grad-CAM", "random_patches": "random, smooth", "random_pixels": "random pixels",
}  # fmt: skip
COSTS = ("model", *AREAS.values(), "ms a map", "peak MB")
"""Headings of the two tables: rank correlations; areas under deletion curves, and costs."""

PEAK = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
PEAK += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def main() -> None:
    """Measure, print a table and write the figures."""
    files.stderr_is_ours = True
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a bundle (default: none)")
    parser.add_argument("--data", help="a dataset, folder or zip with the bundle's classes, whose test split is taken")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="verified and bundled runs (default: none)")
    parser.add_argument("--images", type=int, default=200, help="test images of each (default: 200)")
    parser.add_argument("--n", type=int, default=100, help="maps that are timed (default: 100)")
    parser.add_argument("--python", default=sys.executable, help="of the process whose memory is measured")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    random = np.random.default_rng(1)
    models = []
    if arguments.model:
        if not arguments.data:
            parser.error("--model goes with --data")
        models.append(of_bundle(arguments, random))
    models += [of_run(open_run(path), arguments, random) for path in arguments.runs]
    report = {
        "bench": "explain",
        "machine": f"{processor()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "versions": library_versions(),
        "models": models,
    }
    print(report["machine"])
    print(text_table(MAPS, [maps_row(model) for model in models]))
    print(text_table(COSTS, [costs_row(model) for model in models]))
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def of_bundle(arguments: argparse.Namespace, random: np.random.Generator) -> dict[str, Any]:
    """Return the figures of a bundle's default model."""
    classifier = Classifier.load(arguments.model)
    contract = classifier.model.contract
    dataset = open_dataset(build_recipe({"data": {"source": arguments.data, "fit": contract.fit}}).data)
    if tuple(dataset.labels) != classifier.labels:
        raise SystemExit(f"{arguments.data} has other classes than {arguments.model}")
    size = {"height": contract.height, "width": contract.width, "channels": contract.channels}
    images = drawn(dataset.load(("test",), **size, stage="verify")["test"].images, arguments.images)
    explained = [occlusion(classifier.model, image, classifier.labels) for image in images]
    orders = {"occlusion": [item.map for item in explained], **random_maps(explained, random)}
    return {
        "name": classifier.name,
        "data": classifier.bundle.manifest.title,
        **common(classifier.model, explained, orders, arguments.n),
        "peak_mb": peak_mb(images[0], arguments.model, arguments.python),
    }


def of_run(run: Run, arguments: argparse.Namespace, random: np.random.Generator) -> dict[str, Any]:
    """Return the figures of a run: of its int8 TFLite export and its float model."""
    from edgecnn.verify.answers import load_test
    from edgecnn.verify.gradcam import gradcam, int8_model, run_gradcam, summarized

    dataset = open_dataset(run.recipe.data)
    images = drawn(load_test(run, dataset).images, arguments.images)
    model, labels = int8_model(run), run.info.data.labels
    explained = [occlusion(model, image, labels) for image in images]
    classes = np.array([item.index for item in explained])
    cams = run_gradcam(run)(images, classes)
    other, other_int8 = with_random_weights(run, images)
    contract = model.contract
    other_cams = gradcam(other, contract.scale, contract.zero_point)(images, classes)
    other_maps = [occlusion(other_int8, image, labels).map for image in images]
    maps = [item.map for item in explained]
    pairs: dict[str, tuple[Sequence[np.ndarray] | np.ndarray, ...]] = {
        "gradcam": (maps, cams),
        "occlusion_random": (maps, other_maps),
        "gradcam_random": (cams, other_cams),
    }
    found = {
        name: to_json(summarized([rank_correlation(*pair) for pair in zip(one, another, strict=True)]))
        for name, (one, another) in pairs.items()
    }
    orders = {"occlusion": maps, "gradcam": list(cams), **random_maps(explained, random)}
    return {
        "name": run.name,
        "data": run.info.data.title,
        **common(model, explained, orders, arguments.n),
        "rank_correlation": found,
        "peak_mb": peak_mb(images[0], run.file(f"{run.name}.edgecnn"), arguments.python),
    }


def drawn(images: np.ndarray, count: int) -> np.ndarray:
    """Draw images, always the same ones."""
    return images[np.sort(np.random.default_rng(1).permutation(len(images))[:count])]


def with_random_weights(run: Run, images: np.ndarray) -> tuple[Any, Model]:
    """Return a run's network with new random weights, and the same quantized after training, by the images, as a device's model."""
    from edgecnn.export.tflite import RepresentativeDataset, int8_post_training
    from edgecnn.files import quiet_stderr
    from edgecnn.networks.keras import keras
    from edgecnn.networks.predict import model_from_bytes
    from edgecnn.runtime.engines import open_engine
    from edgecnn.verify.answers import input_contract

    contract = input_contract(run)
    keras.utils.set_random_seed(1)
    other = keras.models.clone_model(model_from_bytes(run.read(FLOAT_MODEL, "train")))
    with quiet_stderr():
        data = int8_post_training(other, RepresentativeDataset(images, contract.scale, contract.zero_point))
    return other, Model(open_engine(None, data, "tflite", num_threads=1), contract)


def random_maps(explained: Sequence[Occlusion], random: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Return random maps of both kinds, RANDOM for each image one after the other."""
    height, width = explained[0].map.shape
    grid = len(places(height)[1]), len(places(width)[1])
    count = RANDOM * len(explained)
    return {
        "random_patches": [
            mean_over_patches(random.random(grid, dtype=np.float32), (height, width)) for _ in range(count)
        ],
        "random_pixels": [random.random((height, width)) for _ in range(count)],
    }


def common(model: Model, explained: Sequence[Occlusion], orders: dict[str, list[np.ndarray]], n: int) -> dict[str, Any]:
    """Return the figures that need no float model: areas under deletion curves, and times."""
    areas = {}
    for name, maps in orders.items():
        each = len(maps) // len(explained)
        owners = [item for item in explained for _ in range(each)]
        found = np.array([deletion_area(model, item, map_) for item, map_ in zip(owners, maps, strict=True)])
        areas[name] = found.reshape(len(explained), each).mean(axis=1)
    contract = model.contract
    timing = timed(lambda: occlusion(model, explained[0].pixels, explained_labels(explained)), n)
    return {
        "input": [contract.height, contract.width, contract.channels],
        "images": len(explained),
        "deletion_area": {name: float(found.mean()) for name, found in areas.items()},
        "better_than_random_patches": float((areas["occlusion"] < areas["random_patches"]).mean()),
        "ms": timing,
    }


def explained_labels(explained: Sequence[Occlusion]) -> list[str]:
    """Return labels for every class that was answered: their names cost no time."""
    return [""] * (max(item.index for item in explained) + 1)


def deletion_area(model: Model, item: Occlusion, order: np.ndarray) -> float:
    """Return the area under an image's deletion curve.

    Pixels become mid-grey, 1/STEPS of them at a time, those with the largest values of the map first; the curve is the score of
    the answer over the share that is grey, from 0 to 1, and the area is by the trapezoidal rule.

    Args:
        model: behind its contract.
        item: the image and its answer.
        order: a map of it, shape (height, width).

    Returns:
        In [0, 1].

    Source: Petsiuk et al. 2018, "RISE" (arXiv:1806.07421), section 4.2.
    """
    ranks = np.empty(order.size, np.int64)
    ranks[np.argsort(-order, axis=None, kind="stable")] = np.arange(order.size)
    deleted = ranks.reshape(1, *order.shape, 1) < (np.linspace(0, order.size, STEPS + 1)[:, None, None, None])
    scores = softmax(model.logits(np.where(deleted, np.uint8(PAD), item.pixels)))[:, item.index]
    return float((scores[:-1] + scores[1:]).mean() / 2)


def timed(call: Callable[[], object], n: int) -> dict[str, float]:
    """Return the median and the least of n calls, in ms."""
    timing = measure_interleaved({"map": call}, warmup=5, repeats=n)["map"]
    return {"n": n, "p50": timing.p50_ms, "p90": timing.p90_ms}


def peak_mb(pixels: np.ndarray, bundle: Path, python: str) -> float:
    """Return the peak resident memory of `edgecnn explain` on one image of the input's size, in 10^6 bytes: the median of 5."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.png"
        Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[:, :, 0]).save(image)
        command = [
            python,
            "-m",
            "edgecnn",
            "explain",
            str(image),
            "--model",
            str(bundle.resolve()),
            "--json",
            "--force",
        ]
        peaks = []
        for _ in range(5):
            done = subprocess.run(
                [sys.executable, "-c", PEAK, *command],
                check=True, capture_output=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            peaks.append(int(done.stdout) * 1024 / 1e6)
    return float(np.median(peaks))


def maps_row(model: dict[str, Any]) -> tuple[str, ...]:
    """Return a model's rank correlations as text, under MAPS."""
    height, width, channels = model["input"]
    found = model.get("rank_correlation")
    cells = [middle(found[name]) if found else "-" for name in ("gradcam", "occlusion_random", "gradcam_random")]
    return (model["name"], model["data"], f"{height}x{width}x{channels}", f"{model['images']:,}", *cells)


def costs_row(model: dict[str, Any]) -> tuple[str, ...]:
    """Return a model's areas under deletion curves and costs as text, under COSTS."""
    areas = model["deletion_area"]
    cells = [f"{areas[name]:.3f}" if name in areas else "-" for name in AREAS]
    return (model["name"], *cells, f"{model['ms']['p50']:.1f}", f"{model['peak_mb']:.1f}")


def middle(found: dict[str, Any]) -> str:
    """Return the median of a correlation, with its quartiles."""
    if found["median"] is None:
        return "-"
    return f"{found['median']:.2f} ({found['lower_quartile']:.2f} to {found['upper_quartile']:.2f})"


if __name__ == "__main__":
    main()
