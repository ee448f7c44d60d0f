"""Cold starts: `edgecnn classify` on one image, from a fresh process to its end."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgecnn.bundle.read import Bundle
from edgecnn.device.benchmark.configurations import Configuration
from edgecnn.device.benchmark.figures import Percentiles, percentiles
from edgecnn.device.benchmark.images import BenchImages
from edgecnn.modes import as_image
from edgecnn.runtime.child import Finished


def cold_starts(
    bundle: Bundle,
    images: BenchImages,
    chosen: Sequence[Configuration],
    n: int,
    failed: dict[Configuration, str],
    progress: Callable[[str, int, int], object],
) -> dict[Configuration, Percentiles]:
    """Time `edgecnn classify` on one image from a fresh process to its end, interleaved. The first round does not count.

    The process is fresh, the files are not: they come from the page cache, as in all starts but the first. A configuration that fails has
    no figures; the reason is put into `failed`.
    """
    if not n:
        return {}
    times: dict[Configuration, list[float]] = {item: [] for item in chosen}
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder) / "photo"
        write_photo(images.at(0), photo)
        for turn in range(n + 1):
            progress("starting", turn, n + 1)
            for item in [item for item in chosen if item not in failed]:
                start = time.perf_counter()
                done = subprocess.run(
                    classify_command(bundle, item, photo), stdin=subprocess.DEVNULL, capture_output=True
                )
                elapsed = (time.perf_counter() - start) * 1000
                if done.returncode:
                    ended = Finished(done.returncode, "", done.stderr.decode(errors="replace"))
                    failed[item] = f"edgecnn classify fails from a fresh process: {ended.failure}"
                elif turn:
                    times[item].append(elapsed)
        progress("starting", n + 1, n + 1)
    return {item: percentiles(values) for item, values in times.items() if values}


def write_photo(image: bytes | np.ndarray, path: Path) -> None:
    """Write an encoded image as it is, an array as PNG."""
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        as_image(image).save(path, "PNG")


def classify_command(bundle: Bundle, item: Configuration, photo: Path) -> list[str]:
    """Return the command that classifies one photo with a configuration."""
    command = [sys.executable, "-m", "edgecnn", "classify", str(photo), "--json", "--model", str(bundle.path)]
    command += ["--engine", item.engine, "--precision", item.precision, "--threads", str(item.threads)]
    return command + (["--provider", item.provider] if item.provider else [])
