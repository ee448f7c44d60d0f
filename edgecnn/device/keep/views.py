"""Turns a frame into the kept picture: only the part that the model saw, in a file that `edgecnn train` reads the same way."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecnn.device.keep.folder import Facts, KeptModel, KeptPicture, KeptScore, Why, documents
from edgecnn.device.stream.pictures import encode, part
from edgecnn.device.stream.results import FrameResult
from edgecnn.files import sha256
from edgecnn.images import probe, suffix_of
from edgecnn.region import WHOLE, Region, pixel_box

if TYPE_CHECKING:
    from edgecnn.runtime.classifier import Classifier

GREY = 128


class View(NamedTuple):
    """The part of a stream's frames that a model sees.

    `rotation` turns a frame upright, clockwise. `seen` is the region that is classified, `own` the region that the model was trained with.
    """

    rotation: int
    seen: Region
    own: Region

    def jpeg(self, image: bytes | np.ndarray) -> tuple[bytes, int, int]:
        """Return a frame as JPEG bytes with its width and height: the model's own region with what it saw, and grey around it.

        Training cuts the region out of each photo, so the picture has to be a whole one. For a model without a region, the picture is just
        what the model saw. A JPEG that the model saw in full is not changed.
        """
        whole = not self.rotation and self.seen == self.own == WHOLE
        if whole and isinstance(image, bytes) and suffix_of(image) == ".jpg":
            height, width, _ = probe(image)
            return image, width, height
        pixels = part(image, self.rotation, WHOLE if self.seen == self.own else self.seen)
        if self.own != WHOLE:
            pixels = masked(pixels, self.own) if self.seen == self.own else placed(pixels, self.own)
        return encode(pixels)[0], pixels.shape[1], pixels.shape[0]


def masked(whole: np.ndarray, region: Region) -> np.ndarray:
    """Return an upright frame, uint8 (height, width, 3), with grey around a region."""
    left, top, right, bottom = pixel_box((whole.shape[1], whole.shape[0]), region)
    grey = np.full_like(whole, GREY)
    grey[top:bottom, left:right] = whole[top:bottom, left:right]
    return grey


def placed(pixels: np.ndarray, region: Region) -> np.ndarray:
    """Return a grey picture with these pixels, uint8 (height, width, 3), as a region, to within a row or column."""
    height, width = pixels.shape[:2]
    whole = np.full((round(height / region[3]), round(width / region[2]), pixels.shape[2]), GREY, np.uint8)
    left, top, right, bottom = pixel_box((whole.shape[1], whole.shape[0]), region)
    place = whole[top:bottom, left:right]
    place[:height, :width] = pixels[: place.shape[0], : place.shape[1]]
    return whole


def pictures_of(classifier: "Classifier", view: View) -> Callable[[FrameResult, Why], dict[str, bytes]]:
    """Return a function that makes a frame's JPEG and JSON."""
    model = KeptModel(name=classifier.name, sha256=classifier.model_sha256)
    region = None if view.own == WHOLE else view.own

    def make(result: FrameResult, why: Why) -> dict[str, bytes]:
        data, width, height = view.jpeg(result.image)
        facts = Facts(
            ts=result.ts, why=why, source=result.source, seq=result.seq, model=model,
            scores=tuple(KeptScore(label=score.label, score=round(float(score.score), 6)) for score in result.top),
            label=None if result.reason else result.decision, reason=result.reason,
            region=region, picture=KeptPicture(sha256=sha256(data), width=width, height=height),
        )  # fmt: skip
        return documents(facts, data)

    return make
