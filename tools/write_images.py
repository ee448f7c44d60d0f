"""Write validation images of a dataset as PNG files named after their class, to try `edgecnn classify` on."""

import argparse
from pathlib import Path

from PIL import Image

from edgecnn.data import open_dataset
from edgecnn.recipe import DataRecipe


def write_images(source: str, out: Path, count: int) -> list[Path]:
    """Write the first `count` validation images of a dataset, at their native size, as `OUT/NUMBER-LABEL.png`."""
    dataset = open_dataset(DataRecipe(source=source))
    height, width, channels = dataset.shape
    split = dataset.load(("validation",), height=height, width=width, channels=channels, stage="demo")["validation"]
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, (pixels, index_of_class) in enumerate(zip(split.images[:count], split.classes[:count], strict=True)):
        path = out / f"{index:02d}-{dataset.labels[index_of_class].replace('/', '_')}.png"
        Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(path)
        paths.append(path)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="a dataset's name, or a folder or zip of images")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--count", type=int, default=10, help="how many images")
    arguments = parser.parse_args()
    for written in write_images(arguments.data, arguments.out, arguments.count):
        print(written)
