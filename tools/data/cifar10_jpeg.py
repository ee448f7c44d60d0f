"""Recreate cifar10-jpeg.zip: CIFAR-10 as JPEG files of quality 75, with all training images and every second test image of each class.

    python tools/data/cifar10_jpeg.py cifar10-jpeg.zip

CIFAR-10 comes from its official archive (a download, or $EDGECNN_DATA). An image's number is its position in its class and split.
"""

import argparse
import collections
import io
import zipfile
from pathlib import Path

from PIL import Image

from edgecnn.data.items import LabelledImages, held_pixels
from edgecnn.data.named import open_cifar10


def write_zip(images: LabelledImages, out: Path) -> int:
    """Write labelled images as `NAME/SPLIT/CLASS/NUMBER.jpg`, uncompressed, with NAME from the zip's name. Returns their number."""
    files: dict[str, bytes] = {}
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    for item in images.items:
        number = seen[item.split, item.label]
        seen[item.split, item.label] += 1
        if item.split == "test" and number % 2:
            continue
        jpeg = io.BytesIO()
        Image.fromarray(held_pixels(item)).save(jpeg, "JPEG", quality=75)
        files[f"{out.stem}/{item.split}/{images.labels[item.label]}/{number:04d}.jpg"] = jpeg.getvalue()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])  # without today's date
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the zip to write")
    out = parser.parse_args().out
    print(f"{out}: {write_zip(open_cifar10(), out):,} images")
