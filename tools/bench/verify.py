"""Time `edgecnn verify --matrix` on 10,000 images and five engines, and its peak memory; is it flat in the images?

A run of resnet8 is made without training (random weights, BatchNorm and ranges calibrated on a few batches): speed and
memory do not depend on the weights. The validation images of the data stand in for a test split, repeated to n. Each
measurement is a process of its own; the peak is its largest resident set (of its child for tflite-runtime too), beside
that of a process that imports TensorFlow and runs one operation.

    python tools/bench/verify.py --data cifar10 --n 10000 --tflite-python .venv-tflite-3.11/bin/python
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

SECONDS, MEBIBYTES = 120, 300
"""The goal: at most this long, and at most this much above what importing TensorFlow costs."""


def main() -> None:
    """Measure, print a table and, with --json-out, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="the images (default: cifar10)")
    parser.add_argument("--n", type=int, default=10_000, help="images (default: 10000)")
    parser.add_argument(
        "--tflite-python", type=Path, help="Python of an environment with tflite-runtime (default: none)"
    )
    parser.add_argument("--json-out", type=Path, help="write the figures here (default: nowhere)")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](arguments)))
        return
    from resume import about

    from edgecnn.files import canonical_json, write_atomic
    from edgecnn.report.table import text_table

    with tempfile.TemporaryDirectory() as name:
        arguments.folder = Path(name) / "resnet8"
        child("make", arguments)
        few = child("verify", arguments, arguments.n // 4)
        first = child("verify", arguments)
        again = child("verify", arguments)
        tensorflow = child("tensorflow", arguments)
    report: dict[str, Any] = {
        **about("verify"),
        "n": arguments.n,
        "engines": first["engines"],
        "import_tensorflow": tensorflow,
        "quarter_of_n": few,
        "first": first,
        "again": again,
        "pixels_mib": arguments.n * first["image_bytes"] / 2**20,
        "goal": {"seconds": SECONDS, "mib_above_tensorflow": MEBIBYTES},
    }
    above = first["peak_mib"] - tensorflow["peak_mib"]
    report["passed"] = len(first["engines"]) >= 5 and first["seconds"] <= SECONDS and above <= MEBIBYTES
    print(f"{report['machine']}; n = {arguments.n:,}; {len(first['engines'])} engines: {', '.join(first['engines'])}")
    rows = [
        (
            label,
            f"{item['seconds']:.1f}",
            f"{item['peak_mib']:.0f}",
            f"{item['peak_mib'] - tensorflow['peak_mib']:+.0f}",
            "",
        )
        for label, item in (
            ("import tensorflow", tensorflow),
            (f"verify, n = {arguments.n // 4:,}", few),
            (f"verify, n = {arguments.n:,}", first),
            ("verify again", again),
        )
    ]
    print(text_table(("", "seconds", "peak MiB", "above TensorFlow", ""), rows))
    print(
        f"pixels: {report['pixels_mib']:.0f} MiB; goal: {SECONDS} s and {MEBIBYTES} MiB above TensorFlow: "
        f"{'met' if report['passed'] else 'NOT MET'}"
    )
    if arguments.json_out:
        write_atomic(arguments.json_out, canonical_json(report))


def child(part: str, arguments: argparse.Namespace, n: int | None = None) -> dict[str, Any]:
    """Do a part in a process of its own, timed from its start."""
    command = [
        sys.executable, __file__, "--part", part, "--folder", str(arguments.folder), "--data", arguments.data,
        "--n", str(n or arguments.n),
        *(["--tflite-python", str(arguments.tflite_python)] if arguments.tflite_python else []),
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


def make(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the run: an untrained resnet8, its exports, and what verification reads of a run."""
    from edgecnn.data import open_dataset
    from edgecnn.export import export
    from edgecnn.files import write_atomic
    from edgecnn.networks import build_network
    from edgecnn.networks.predict import model_bytes, real_input
    from edgecnn.recipe import build_recipe
    from edgecnn.run_info import InputSize, RunInfo
    from edgecnn.runs import FLOAT_MODEL, QAT_MODEL, create_run
    from edgecnn.train.loop import Batches
    from edgecnn.train.qat_phase import fake_quantize, set_batch_norm
    from edgecnn.train.ranges import calibrate
    from edgecnn.versions import library_versions

    tables = {"data": {"source": arguments.data}, "network": {"name": "resnet8"}, "qat": {"calibration_batches": 4}}
    recipe = build_recipe(tables, "the bench")
    dataset = open_dataset(recipe.data)
    height, width, channels = dataset.shape
    validation = dataset.load(("validation",), height=height, width=width, channels=channels, stage="bench")[
        "validation"
    ]
    images = np.resize(validation.images, (max(arguments.n, 512), *dataset.shape))
    model = build_network("resnet8", *dataset.shape, len(dataset.labels))
    for start in range(0, 512, 128):  # so that BatchNorm knows the activations
        model(real_input(images[start : start + 128], recipe.input_scale, recipe.input_zero_point), training=True)
    run = create_run(recipe, arguments.folder)
    quantized = fake_quantize(model, recipe.input_scale, recipe.input_zero_point)
    batches = Batches(
        images=images[:512], classes=np.resize(validation.classes, 512), batch_size=128, seed=1, flip=False, shift=0
    )
    calibrate(quantized, recipe, batches)
    set_batch_norm(quantized, trainable=True)
    write_atomic(run.file(FLOAT_MODEL), model_bytes(model))
    write_atomic(run.file(QAT_MODEL), model_bytes(quantized))
    run.write_info(
        RunInfo(
            state="trained",
            data=dataset.info({}),
            input=InputSize(height=height, width=width, channels=channels),
            parameters=model.count_params(),
            versions=library_versions(),
        )
    )
    for format_ in ("tflite", "onnx"):
        export(run, format_, "int8")
    np.save(arguments.folder.with_suffix(".images.npy"), validation.images)
    np.save(arguments.folder.with_suffix(".classes.npy"), validation.classes)
    return {}


class Repeated:
    """The bench's data: the validation images, and the same repeated to n in the test split's place."""

    name = "validation images, repeated"

    def __init__(self, folder: Path, n: int, hashes: Mapping[str, str]) -> None:
        self.folder, self.n, self.hashes = folder, n, hashes

    def load(self, wanted: Any, **_: Any) -> dict[str, Any]:
        """Return the images, repeated for "test" alone."""
        from edgecnn.data import Split

        images = np.load(self.folder.with_suffix(".images.npy"))
        classes = np.load(self.folder.with_suffix(".classes.npy"))

        def repeated(count: int) -> Split:
            return Split(
                images=np.resize(images, (count, *images.shape[1:])),
                classes=np.resize(classes, count),
                sources=tuple(f"validation[{index}]" for index in range(count)),
            )

        return {name: repeated(self.n if name == "test" else len(images)) for name in wanted}


def verify(arguments: argparse.Namespace) -> dict[str, Any]:
    """Verify the run with the matrix."""
    from edgecnn.cli.progress import ProgressReporter
    from edgecnn.runs import Run
    from edgecnn.verify import verify as verify_run

    run = Run(arguments.folder)
    data: Any = Repeated(arguments.folder, arguments.n, run.info.data.split_hashes)
    with ProgressReporter() as reporter:
        report = verify_run(run, data, matrix=True, tflite_python=arguments.tflite_python, progress=reporter.working)
    size = run.info.input
    return {
        "engines": [row.name for row in report.matrix if row.accuracy is not None],
        "image_bytes": size.height * size.width * size.channels,
        **peak(),
    }


def import_tensorflow(arguments: argparse.Namespace) -> dict[str, Any]:
    """Import TensorFlow as the workstation's rooms do, and compute something."""
    from edgecnn.networks.keras import tf

    tf.constant(1.0) + 1
    return peak()


def peak() -> dict[str, float]:
    """Return the largest resident set of this process or, if larger, of a child, in MiB."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return {"peak_mib": max(resource.getrusage(who).ru_maxrss for who in whose) / 1024}


PARTS = {"make": make, "verify": verify, "tensorflow": import_tensorflow}

if __name__ == "__main__":
    main()
