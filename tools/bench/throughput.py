"""Time training: the float phase and a bare `model.fit`, a quantization-aware epoch and a float32 one.

    float32, bfloat16          the float phase as `edgecnn train` runs it: seeded batches of uint8 images, flipped and shifted
    fit float32, fit bfloat16  `model.fit` of the same network, optimizer and loss on float32 arrays in memory, without augmentation or
                               deterministic operations
    qat                        the quantization-aware phase, its float teacher included, and what validation and the int8 file cost

Each is a process of its own that waits for its turn; epochs are interleaved (A, B, C, A, B, C, …) after one of warm-up, and the figures are
medians. `outside` is the share of an epoch that is not spent in the compiled train step. Pixels are drawn: speed does not depend on them.

    python tools/bench/throughput.py --images 12800 --rounds 7
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "tools" / "bench" / "results" / "throughput.json"
ARMS = ("float32", "fit float32", "bfloat16", "fit bfloat16", "qat")
SHAPE, CLASSES, BATCH = (32, 32, 3), 10, 128
SHARE, TIMES = 0.9, 1.4
"""The goals: images/s of the float phase, of bare fit's; the time of a quantization-aware epoch, of a float32 one's."""


def main() -> None:
    """Measure, print a table and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet8", help="the network (default: resnet8)")
    parser.add_argument("--images", type=int, default=12_800, help="images in an epoch (default: 12800)")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each that count (default: 7)")
    parser.add_argument("--json-out", type=Path, default=RESULT, help="where the figures go (default: results/)")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        answer_turns(arm(arguments.arm, arguments.network, arguments.images))
        return
    from resume import about

    from edgecnn.files import canonical_json, write_atomic
    from edgecnn.report.table import text_table

    figures = summary(measure(arguments))
    report = {
        **about("throughput"),
        "network": arguments.network,
        "input": list(SHAPE),
        "images": arguments.images,
        "rounds": arguments.rounds,
        "load_average": os.getloadavg()[0],
        **figures,
    }
    print(
        f"{report['machine']}, load average {report['load_average']:.1f}; {arguments.network}, {arguments.images:,} images an epoch"
    )
    rows = [
        (
            name,
            f"{item['images_per_s']:,.0f}",
            f"{item['seconds']:.2f}",
            percentage(item["outside"]),
            seconds(item["after"]),
            "",
        )
        for name, item in figures["arms"].items()
    ]
    print(text_table(("", "images/s", "epoch s", "outside", "after an epoch s", ""), rows))
    for precision, share in figures["of_fit"].items():
        print(f"{precision}: {share:.2f} of bare fit's images/s (goal: at least {SHARE})")
    print(f"a QAT epoch takes {figures['qat_of_float32']:.2f} times a float32 one (goal: at most {TIMES})")
    write_atomic(arguments.json_out, canonical_json(report))


def percentage(share: float | None) -> str:
    """Return a share as text, a dash for None."""
    return "-" if share is None else f"{share:.1%}"


def seconds(value: float | None) -> str:
    """Return seconds as text, a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def measure(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Start a process for each arm, and let each train an epoch in turn; return what each epoch took."""
    command = [sys.executable, __file__, "--network", arguments.network, "--images", str(arguments.images)]
    processes = {
        name: subprocess.Popen(
            [*command, "--arm", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for name in ARMS
    }
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
    try:
        for turn in range(arguments.rounds + 1):
            for name, process in processes.items():
                assert process.stdin and process.stdout
                process.stdin.write("epoch\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"the process of {name!r} ended with code {process.wait()}")
                if turn:
                    found[name].append(json.loads(line))
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    return found


def summary(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians of each arm, and how they compare."""

    def medians(items: list[dict[str, Any]]) -> dict[str, Any]:
        given = {key: [item[key] for item in items] for key in items[0]}
        return {key: None if None in values else statistics.median(values) for key, values in given.items()}

    arms = {name: medians(items) for name, items in found.items()}
    of_fit = {
        name: arms[name]["images_per_s"] / arms[f"fit {name}"]["images_per_s"] for name in ("float32", "bfloat16")
    }
    times = arms["qat"]["seconds"] / arms["float32"]["seconds"]
    return {
        "arms": arms,
        "epochs": found,
        "of_fit": of_fit,
        "qat_of_float32": times,
        "goal": {"of_fit": SHARE, "qat_of_float32": TIMES},
        "passed": min(of_fit.values()) >= SHARE and times <= TIMES,
    }


def answer_turns(epoch: Callable[[], dict[str, Any]]) -> None:
    """Train an epoch for each line on standard input, and print what it took."""
    for _ in sys.stdin:
        print(json.dumps(epoch()), flush=True)


def arm(name: str, network: str, count: int) -> Callable[[], dict[str, Any]]:
    """Return a function that trains an epoch: seconds, images/s, the share outside the train step, and the seconds of what follows it."""
    from edgecnn.recipe import build_recipe

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, *SHAPE), np.uint8)
    classes = random.integers(0, CLASSES, count)
    precision = "bfloat16" if name.endswith("bfloat16") else "float32"
    train = {
        "epochs": 10_000, "batch_size": BATCH, "learning_rate": 0.01, "schedule": "one-cycle", "label_smoothing": 0.05,
        "precision": precision, "augment": "shift", "shift": 4,
    }  # fmt: skip
    qat = {"epochs": 10_000, "batch_size": BATCH}
    recipe = build_recipe({"network": {"name": network}, "train": train, "qat": qat})
    if name.startswith("fit "):
        return fit(recipe, images, classes)
    return phase_epochs(recipe, images, classes, name == "qat")


def phase_epochs(recipe: Any, images: np.ndarray, classes: np.ndarray, qat: bool) -> Callable[[], dict[str, Any]]:
    """Return a function that trains an epoch of a phase as `edgecnn.train.train` does."""
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import predictor
    from edgecnn.train.float_phase import float_phase
    from edgecnn.train.loop import Batches, run_epoch
    from edgecnn.train.qat_phase import Qat
    from edgecnn.verify.int8 import Int8Files

    tf.config.experimental.enable_op_determinism()
    held_out = images[: len(images) // 10], classes[: len(images) // 10]
    batches = Batches(
        images=images, classes=classes, batch_size=recipe.train.batch_size, seed=1, flip=True, shift=recipe.train.shift
    )
    model, phase = float_phase(recipe, SHAPE, CLASSES, held_out)
    if qat:
        wanted = predictor(model, recipe.input_scale, recipe.input_zero_point)(held_out[0])
        job = Qat(recipe, model, held_out, wanted, batches, Int8Files(recipe))
        job.begin()
        phase = job.phase
    inside = 0.0
    done = 0

    def step(*arguments: Any) -> Any:
        nonlocal inside
        started = time.perf_counter()
        result = phase.step(*arguments)
        inside += time.perf_counter() - started
        return result

    timed = replace(phase, step=step)

    def epoch() -> dict[str, Any]:
        nonlocal inside, done
        inside = 0.0
        started = time.perf_counter()
        row = run_epoch(timed, batches, done, lambda progress: None)
        whole = time.perf_counter() - started
        done += 1
        return {
            "images_per_s": row["images_per_s"],
            "seconds": row["seconds"],
            "outside": 1 - inside / row["seconds"],
            "after": whole - row["seconds"],
        }

    return epoch


def fit(recipe: Any, images: np.ndarray, classes: np.ndarray) -> Callable[[], dict[str, Any]]:
    """Return a function that trains an epoch by `model.fit`, on arrays that are ready for it."""
    from edgecnn.networks import build_network
    from edgecnn.networks.keras import keras
    from edgecnn.pixels import to_real
    from edgecnn.train.float_phase import build_optimizer, precision

    keras.utils.set_random_seed(recipe.seed)
    with precision(recipe.train.precision):
        model = build_network(recipe.network.name, *SHAPE, CLASSES)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.train.label_smoothing)
    model.compile(build_optimizer(recipe.train), loss, metrics=["accuracy"])
    inputs = to_real(images, recipe.input_scale, recipe.input_zero_point)
    wanted = np.eye(CLASSES, dtype=np.float32)[classes]

    def epoch() -> dict[str, Any]:
        started = time.perf_counter()
        model.fit(inputs, wanted, batch_size=recipe.train.batch_size, epochs=1, verbose=0)
        taken = time.perf_counter() - started
        return {"images_per_s": len(images) / taken, "seconds": taken, "outside": None, "after": None}

    return epoch


if __name__ == "__main__":
    main()
