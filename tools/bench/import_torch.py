"""Train small networks in PyTorch and write them as ONNX files, for import_int8.py to quantize. Runs in an environment with torch and timm.

Writes WORK/NAME.onnx and the photos as WORK/DATA/{train,validation,test}/CLASS/, so that edgecnn never calibrates on what it judges.

    python tools/bench/import_torch.py signs.zip --work work --networks resnet18 mobilenet_v2
"""

import argparse
import random
import time
import zipfile
from pathlib import Path

import numpy as np
import timm
import torch
import torchvision
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PARTS = {"test": 0.4, "validation": 0.1, "train": 0.5}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("data", type=Path, help="a zip of CLASS/NAME.jpg, or of {train,test}/CLASS/NAME.jpg")
parser.add_argument("--work", type=Path, required=True)
parser.add_argument("--networks", nargs="+", required=True, help="torchvision's and timm's names")
parser.add_argument("--weights", type=Path, help="a .pth file of the body, for the one network that has it")
parser.add_argument("--side", type=int, default=96)
parser.add_argument("--epochs", type=int, default=60)
parser.add_argument("--rate", type=float, default=2e-3)
parser.add_argument("--most", type=int, help="photos of each part")
given = parser.parse_args()


def unpacked() -> Path:
    """Return the folder of the photos, divided into PARTS class by class, or as the zip divides them."""
    folder: Path = given.work / given.data.stem
    if folder.exists():
        return folder
    drawn = random.Random(1)
    with zipfile.ZipFile(given.data) as archive:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        classes: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            *_, part, label, _ = ("", *name.split("/"))
            own = part if part in ("train", "test") else ""
            classes.setdefault((own, label), []).append(name)
        for (own, label), members in sorted(classes.items()):
            drawn.shuffle(members)
            if own:
                members = members[: (given.most or len(members)) // len({key[1] for key in classes})]
            start = 0
            parts = {"": PARTS, "train": {"validation": 0.1, "train": 0.9}, "test": {"test": 1.0}}[own]
            for part, share in parts.items():
                stop = start + round(share * len(members))
                for name in members[start:stop]:
                    path = folder / part / label / Path(name).name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
                start = stop
    return folder


def loaded(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    labels = sorted(path.name for path in folder.iterdir())
    pairs = [(path, labels.index(path.parent.name)) for path in sorted(folder.glob("*/*"))]
    pictures = [
        np.asarray(Image.open(path).convert("RGB").resize((given.side, given.side), Image.Resampling.BILINEAR))
        for path, _ in pairs
    ]
    return torch.tensor(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor([label for _, label in pairs])


def read(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def moved(pixels: torch.Tensor) -> torch.Tensor:
    """Return a batch turned, scaled and shifted a little, each picture by its own amount."""
    n = len(pixels)
    turn, scale = (torch.rand(n) - 0.5) * 0.5, 1 + (torch.rand(n) - 0.5) * 0.3
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = torch.cos(turn) * scale
    matrix[:, 0, 1], matrix[:, 1, 0] = -torch.sin(turn) * scale, torch.sin(turn) * scale
    matrix[:, :, 2] = (torch.rand(n, 2) - 0.5) * 0.25
    grid = torch.nn.functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    light = 1 + (torch.rand(n, 1, 1, 1) - 0.5) * 0.4
    return torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False) * light


def accuracy(model: torch.nn.Module, pixels: torch.Tensor, classes: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad():
        answers = torch.cat([model(read(part)).argmax(1) for part in pixels.split(100)])
    return float((answers == classes).float().mean())


def network(name: str, classes: int) -> torch.nn.Module:
    if hasattr(torchvision.models, name):
        found: torch.nn.Module = getattr(torchvision.models, name)(num_classes=classes)
        return found
    model = timm.create_model(name, num_classes=classes)
    if given.weights:
        state = torch.load(given.weights, weights_only=True)
        body = list(model.state_dict())
        held = dict(zip(body, state.values(), strict=True))  # the same definition, with other names
        model.load_state_dict({**model.state_dict(), **{key: held[key] for key in body if "classifier" not in key}})
    return model


def main() -> None:
    folder = unpacked()
    pixels, classes = loaded(folder / "train")
    tested = loaded(folder / "test")
    for name in given.networks:
        torch.manual_seed(1)
        model, started = network(name, int(classes.max()) + 1), time.time()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
        batch = min(32, len(pixels))
        steps = given.epochs * (len(pixels) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, given.rate, total_steps=steps)
        for _ in range(given.epochs):
            model.train()
            order = torch.randperm(len(pixels))
            for part in order[: len(pixels) // batch * batch].split(batch):
                loss = torch.nn.functional.cross_entropy(
                    model(moved(read(pixels[part]))), classes[part], label_smoothing=0.05
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        path = given.work / f"{folder.name}-{name}.onnx"
        found = accuracy(model, *tested)
        torch.onnx.export(model, (torch.zeros(1, 3, given.side, given.side),), path, dynamo=False, opset_version=17)
        print(f"{path}: {found:.2%} of {len(tested[1])} test photos, {time.time() - started:.0f} s", flush=True)


main()
