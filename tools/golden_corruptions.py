"""Make tests/stress/golden.npz: images corrupted by `imagecorruptions` 1.1.2, the reference for edgecnn's corruptions.

The package is old and needs its own environment: Python 3.11, `pip install imagecorruptions==1.1.2 "numpy>=2" "setuptools<81"`.

The package contains only the strengths of ImageNet-C. For small images its functions are recompiled with the constants of CIFAR-10-C
(`make_cifar_c.py` by Hendrycks and Dietterich) instead of their own. Motion uses numpy's legacy generator with SEED, and so does the test.

    venv/bin/python tools/golden_corruptions.py tests/stress/golden.npz
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SEED = 7

SMALL: dict[str, list[Any]] = {
    "motion_blur": [(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
    "brightness": [0.05, 0.1, 0.15, 0.2, 0.3],
    "jpeg_compression": [80, 65, 58, 50, 40],
}
"""The corruptions that edgecnn shares, with their constants in CIFAR-10-C."""


def drawn(height: int, width: int) -> np.ndarray:
    """Draw an image with all kinds of content: gradients, edges, texture, black, white and strong colours; uint8 (height, width, 3)."""
    random = np.random.default_rng(SEED)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    half = height // 2, width // 2
    pixels[: half[0] // 2, : half[1] // 2] = 0
    pixels[-half[0] // 2 :, -half[1] // 2 :] = 255
    pixels[half[0] : half[0] + 6, : half[1]] = random.integers(0, 256, (6, half[1], 3), np.uint8)
    pixels[3:9, -9:-3] = (230, 20, 40)
    return pixels


def with_constants(corruptions: Any, name: str, values: list[Any]) -> Callable[..., Any]:
    """Return a function of the package with different constants."""
    source = inspect.getsource(getattr(corruptions, name))
    changed, count = re.subn(r"(?s)c = \[.*?\]\[\s*severity - 1\]", f"c = {values!r}[severity - 1]", source, count=1)
    assert count == 1, f"the constants of {name} are not in the expected place"
    space = dict(vars(corruptions))
    exec(compile(changed, name, "exec"), space)
    function: Callable[..., Any] = space[name]
    return function


def main() -> None:
    """Write the arrays: each image, and each of its corruptions at five strengths."""
    corruptions = importlib.import_module("imagecorruptions.corruptions")
    arrays: dict[str, np.ndarray] = {}
    for size_class, image in (("photo", drawn(40, 56)), ("small", drawn(32, 32))):
        arrays[size_class] = image
        for name, values in SMALL.items():
            own = getattr(corruptions, name)
            function = with_constants(corruptions, name, values) if size_class == "small" else own
            results = []
            for severity in range(1, 6):
                np.random.seed(SEED)
                results.append(np.uint8(function(Image.fromarray(image), severity)))
            arrays[f"{size_class}/{name}"] = np.stack(results)
    np.savez_compressed(Path(sys.argv[1]), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
