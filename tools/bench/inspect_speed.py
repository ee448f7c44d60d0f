"""How long `edgecnn inspect` takes on 60,000 images by hashes, and its peak memory; what a run after Ctrl-C does again; features a second.

CIFAR-10's 55,000 JPEG files and 5,000 generated ones, in one zip, without a cache. Then once more, ended by Ctrl-C after a while, and begun
again. Features are those of the photos of a second zip, decoding included.

    EDGECNN_DATA=<folder of cifar10-jpeg.zip and trash-photos.zip> python tools/bench/inspect_speed.py
"""

import argparse
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image
from resume import about

from edgecnn.data import open_dataset
from edgecnn.data.items import Meter
from edgecnn.files import canonical_json, write_atomic
from edgecnn.inspect import features
from edgecnn.inspect.cache import Cache
from edgecnn.recipe import DataRecipe

RESULT = Path(__file__).resolve().parent / "results" / "inspect_speed.json"


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10-jpeg.zip", help="a zip of NAME/train/CLASS/*, below $EDGECNN_DATA")
    parser.add_argument("--photos", default="trash-photos.zip", help="photos whose features are computed")
    parser.add_argument("--generated", type=int, default=5000, help="generated images (default: 5000)")
    parser.add_argument("--interrupt-after", type=float, help="seconds (default: 0.4 of what the whole run takes)")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    home = Path(os.environ.get("EDGECNN_DATA", "."))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        data = with_generated(home / arguments.data, folder / "many.zip", arguments.generated)
        whole = inspected(data, folder / "whole")
        cut = inspected(data, folder / "cut", arguments.interrupt_after or 0.4 * whole["seconds"])
        again = inspected(data, folder / "cut")
        rate = features_a_second(home / arguments.photos, folder / "features")
    report = {
        **about("inspect_speed"),
        "data": f"{arguments.data} and {arguments.generated:,} generated images",
        "whole": whole,
        "interrupted": cut,
        "again": again,
        "features": rate,
    }
    print(json.dumps({key: report[key] for key in ("whole", "interrupted", "again", "features")}, indent=1))
    write_atomic(arguments.out, canonical_json(report))
    print(arguments.out)


def with_generated(archive: Path, path: Path, count: int) -> Path:
    """Write a copy of a zip with generated images in its training classes."""
    shutil.copyfile(archive, path)
    random = np.random.default_rng(1)
    with zipfile.ZipFile(path, "a") as file:
        classes = sorted({name.rpartition("/")[0] for name in file.namelist() if "/train/" in name and name[-1] != "/"})
        for number in range(count):
            coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
            buffer = io.BytesIO()
            coarse.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
            file.writestr(f"{classes[number % len(classes)]}/generated{number}.jpg", buffer.getvalue())
    return path


def inspected(data: Path, folder: Path, interrupt_after: float | None = None) -> dict[str, Any]:
    """Run the command in a process of its own, its cache in a folder, and return seconds, peak MiB and what it computed."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "edgecnn", "inspect", str(data), "--no-features", "--fail-on", "never", "--json"]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"XDG_CACHE_HOME": str(folder), "PYTHONPATH": root}
    out = folder / "out.json"
    started = time.monotonic()
    with out.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.DEVNULL)
        if interrupt_after is not None:
            time.sleep(interrupt_after)
            process.send_signal(signal.SIGINT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    result: dict[str, Any] = {
        "seconds": seconds,
        "peak_mib": usage.ru_maxrss / 1024,
        "exit_code": os.waitstatus_to_exitcode(status),
    }
    if interrupt_after is None:
        report = json.loads(out.read_text())
        kinds = {item["kind"]: item["images"] for item in report["findings"]}
        result |= {"images": report["images"], "computed": report["computed"]["hashes"], "findings": kinds}
    return result


def features_a_second(photos: Path, folder: Path) -> dict[str, Any]:
    """Return how many photos' features are computed in a second, decoding included; the network is built before."""
    folder.mkdir()
    dataset = open_dataset(DataRecipe(source=str(photos)), for_training=False)
    items = [item for part in dataset.items.values() for item in part]
    body = features.open_body()
    body(np.zeros((features.BATCH, features.SIDE, features.SIDE, 3), np.uint8))
    cache = Cache(path=folder / "cache.sqlite")
    started = time.monotonic()
    _, computed = features.compute(items, dataset.read, cache, lambda: body, Meter(None, "", len(items)))
    seconds = time.monotonic() - started
    cache.close()
    return {"images": computed, "seconds": seconds, "images_per_s": computed / seconds}


if __name__ == "__main__":
    main()
