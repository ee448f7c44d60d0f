"""Cold starts of `edgecnn classify` on one image."""

import sys
import tempfile
import time
from pathlib import Path

from edgecnn.bundle.read import Bundle
from edgecnn.device.benchmark.configurations import Configuration, Progress
from edgecnn.device.benchmark.figures import Failed, Percentiles, percentiles
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.device.system import System
from edgecnn.modes import as_image


def cold_starts(
    bundle: Bundle, images: BenchImages, chosen: list[Configuration], n: int, failed: Failed, progress: Progress
) -> dict[Configuration, Percentiles]:
    """Time `edgecnn classify` in fresh processes, interleaved, with files in the page cache. The first round does not count."""
    if not n:
        return {}
    times: dict[Configuration, list[float]] = {item: [] for item in chosen}
    system = System(packages={})
    with tempfile.TemporaryDirectory() as folder:
        photo, image = Path(folder) / "photo", images.at(0)
        if isinstance(image, bytes):
            photo.write_bytes(image)
        else:
            as_image(image).save(photo, "PNG")
        shared = [sys.executable, "-m", "edgecnn", "classify", str(photo), "--json", "--model", str(bundle.path)]
        for turn in range(n + 1):
            progress("starting", turn, n + 1)
            for item in [item for item in chosen if item not in failed]:
                options = ["--engine", item.engine, "--precision", item.precision, "--threads", str(item.threads)]
                options += ["--provider", item.provider] if item.provider else []
                start = time.perf_counter()
                done = system.run(shared + options, timeout=None)
                elapsed = (time.perf_counter() - start) * 1000
                if done.code != 0:
                    failed[item] = f"edgecnn classify fails in a fresh process: {done.failure}"
                elif turn:
                    times[item].append(elapsed)
        progress("starting", n + 1, n + 1)
    return {item: percentiles(values) for item, values in times.items() if values}
