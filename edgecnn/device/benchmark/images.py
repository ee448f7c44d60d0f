"""The images that a benchmark classifies: given ones, else those in the bundle. They are read before anything is timed."""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgecnn.bundle.read import Bundle
from edgecnn.device.stream.sources import expand
from edgecnn.errors import ImageError
from edgecnn.images import decode, probe, read_file

MOST_BYTES = 64 * 2**20
"""The most that encoded images may take in memory; the first one is always used."""


class BenchImages(NamedTuple):
    """Images in memory: encoded bytes, or arrays where a bundle has nothing encoded.

    `about` says which they are; `names` are paths or bundle entries, `sizes` (width, height); `largest` is the path of the one with
    the most pixels, "" for the bundle's.
    """

    about: str
    items: tuple[bytes | np.ndarray, ...]
    names: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    largest: str

    def at(self, index: int) -> bytes | np.ndarray:
        """Return the image of a call: the calls cycle through the images."""
        return self.items[index % len(self.items)]


def bench_images(
    bundle: Bundle, sources: Sequence[str] = (), most: int = 1000, note: Callable[[str], object] = lambda text: None
) -> BenchImages:
    """Read the images that SOURCE arguments stand for, or use the bundle's golden photos (its golden inputs, if it has none).

    Args:
        bundle: as read.
        sources: as `edgecnn.device.stream.sources.expand` takes them.
        most: the most images to use.
        note: called with each image that is left out, and why.

    Raises:
        ImageError: if sources were given and none of them is an image.
    """
    if sources:
        return _given(bundle, sources, most, note)
    encoded = [(golden.file, bundle.files[golden.file]) for golden in bundle.manifest.golden_images]
    if encoded:
        sizes = tuple(probe(data)[1::-1] for _, data in encoded)
        names, items = zip(*encoded, strict=True)
        return BenchImages(f"the bundle's golden photos, {_sizes(sizes)}", items, names, sizes, "")
    inputs = bundle.golden_inputs()[:most]
    size = (bundle.manifest.input.width, bundle.manifest.input.height)
    about = f"the bundle's golden inputs, {_sizes((size,) * len(inputs))}: there is nothing to decode or resize"
    return BenchImages(about, tuple(inputs), (bundle.manifest.golden_inputs,), (size,) * len(inputs), "")


def _given(bundle: Bundle, sources: Sequence[str], most: int, note: Callable[[str], object]) -> BenchImages:
    items: list[bytes] = []
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    total = 0
    for source, error in expand(sources, sys.stdin.buffer, note):
        if len(items) == most or total > MOST_BYTES:
            note(
                f"using only the first {len(items)} images, {total / 2**20:.1f} MiB; the limits are {most} images and 64 MiB"
            )
            break
        try:
            if error is not None:
                raise error
            data = read_file(source)
            size = decode(data, bundle.manifest.input.channels).size
        except ImageError as caught:
            note(f"{source}: {caught}")
            continue
        total += len(data)
        items.append(data)
        names.append(source)
        sizes.append(size)
    if not items:
        raise ImageError(
            f"none of {', '.join(map(repr, sources))} is a readable image. Give other images, or none, to use those in the bundle."
        )
    largest = max(range(len(items)), key=lambda index: sizes[index][0] * sizes[index][1])
    return BenchImages(f"given, {_sizes(tuple(sizes))}", tuple(items), tuple(names), tuple(sizes), names[largest])


def _sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Return how many images, and the smallest and largest size."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    shown = "{}x{}".format(*ordered[0])
    if ordered[0] != ordered[-1]:
        shown += " to {}x{}".format(*ordered[-1])
    return f"{len(ordered)} image{'s' if len(ordered) > 1 else ''} of {shown} pixels"
