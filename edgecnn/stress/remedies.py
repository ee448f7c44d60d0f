"""Which training option may help against a corruption."""

from collections.abc import Mapping
from typing import Any

from edgecnn.stress.stress_report import Remedy

REMEDIES: Mapping[str, Remedy] = {
    "jpeg": "train.robust",
    "pixelate": "more images",
    "defocus": "train.robust",
    "motion": "train.robust",
    "gaussian-noise": "train.robust",
    "shot-noise": "train.robust",
    "impulse-noise": "train.robust",
    "brightness": "more images",
    "contrast": "train.robust",
    "underexposure": "train.robust",
    "low-light": "train.robust",
    "white-balance": "train.robust",
    "swapped": "colour order",
    "rotation": "train.augment",
    "scale": "train.augment",
    "occlusion": "train.cutout",
}
"""By corruption. On photos, train.robust gained almost nothing against coarse pixels and too much light (docs/stress.md), so these have no
option. Swapped red and blue are a fault to fix at the source of the frames, not something to train for."""

TEXTS: Mapping[Remedy, str] = {
    "train.robust": "train with train.robust = true, which mixes corruptions into the training images",
    "train.augment": 'train with train.augment = "photo", which crops, turns and stretches the training images',
    "train.cutout": "train with train.cutout = {cutout}, which covers a part of each training image",
    "colour order": "make sure that the camera's frames are RGB, not BGR; training cannot help",
    "more images": "add such images to the training data; no unused training option is known to help",
}
"""By remedy; `{cutout}` is a third of the input's side."""

OPTIONS: Mapping[Remedy, str] = {
    "train.robust": "Train with --robust, or accept less with --at-least.",
    "train.augment": "Train with --set train.augment=photo, or accept less with --at-least.",
    "train.cutout": "Train with --set train.cutout=SIDE, about a third of the input's, or accept less with --at-least.",
    "colour order": "Make sure that the frames are RGB, or exclude this one with --corruptions.",
    "more images": "Add such images to the training data, or accept less with --at-least.",
}
"""By remedy: what to do about a result below the pass line."""


def remedy_for(corruption: str, train: Mapping[str, Any]) -> Remedy:
    """Return what may help against a corruption, given the recipe's table `train`: more images if the option is already on."""
    remedy = REMEDIES[corruption]
    on = {
        "train.robust": train["robust"],
        "train.augment": train["augment"] == "photo",
        "train.cutout": train["cutout"] is not None,
    }
    return "more images" if on.get(remedy, False) else remedy


def remedy_text(remedy: Remedy, side: int) -> str:
    """Return a remedy as a sentence without initial capital and full stop. `side` is the input's shorter side in pixels."""
    return TEXTS[remedy].format(cutout=max(1, side // 3))
