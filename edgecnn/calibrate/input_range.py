"""Finding a model's input range, the real value that it reads for each pixel, by trying candidates on labelled images."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np

from edgecnn.errors import EngineError
from edgecnn.evaluate.statistics import is_scores, mcnemar_exact, nll
from edgecnn.recipe import INPUT_RANGES
from edgecnn.runtime.decision import softmax
from edgecnn.runtime.engines import Tensor
from edgecnn.tables import Limits, Struct, absent, described

AUTO = "auto"
RangeName = Annotated[str, Limits(enum=("centred", "unit", "raw", "imagenet", "given", "codes"))]
FAR, P = 0.1, 0.001
"""Another range is far better if it classifies at least this fraction more images correctly and one-sided McNemar's p is below P."""

MUCH = 0.04
"""Another order of the outputs, or of the channels, is named if it gains at least this fraction, and p is below P."""

CLOSE = 0.05
"""A range is as good as the one with the most right answers if one-sided McNemar's p is at least this."""


class PixelRange(Struct):
    """The real value that a model reads for a pixel."""

    name: RangeName
    scale: Annotated[float, Limits(exclusiveMinimum=0)] = described(
        "The real value of a pixel is scale * (pixel - 128 - zero_point), or with a mean, (that - mean) / std."
    )
    zero_point: int
    mean: tuple[float, ...] | None = absent("Per channel; absent without one.")
    std: tuple[float, ...] | None = absent("Per channel; absent without one.")

    @property
    def numbers(self) -> tuple[Any, Any]:
        """S and Z, single values or one per channel: the model reads S * (pixel - 128 - Z)."""
        if self.mean is None or self.std is None:
            return self.scale, self.zero_point
        return tuple(self.scale / std for std in self.std), tuple(
            self.zero_point + mean / self.scale for mean in self.mean
        )


class InputRange(PixelRange):
    """A model's input range, and the reason for it."""

    text: str = described("Why this range.")
    warning: str | None = described("A usual range that is far better than the given one, or null.")


def per_channel(mean: Sequence[float], std: Sequence[float], name: str = "given") -> PixelRange:
    """Return the range of a model that reads (pixel / 255 - mean) / std, with one mean and deviation per channel."""
    scale, zero_point = INPUT_RANGES["unit"]
    return PixelRange(name=name, scale=scale, zero_point=zero_point, mean=tuple(mean), std=tuple(std))


USUAL = tuple(PixelRange(name=name, scale=scale, zero_point=zero) for name, (scale, zero) in INPUT_RANGES.items())

IMAGENET = per_channel((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "imagenet")

RANGES = tuple(item.name for item in (*USUAL, IMAGENET))

Call = Callable[[np.ndarray, Any, Any], np.ndarray]
SHOWN = 4  # outputs that a doubt names

Given = str | tuple[float, int] | PixelRange


class Stated(Struct):
    """The user's information about models that edgecnn did not train. Without labels the classes are in alphabetical order.

    `fit` and `resampling` are one of FITS and of RESAMPLINGS.
    """

    input_range: Given = AUTO
    labels: tuple[str, ...] = ()
    fit: str = "crop"
    resampling: str = "bilinear"


class Trial(Struct):
    """A model's result under one input range: which answers are right, and the mean negative log-likelihood in nats."""

    range: PixelRange
    right: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.right))


class Labelled(Struct):
    images: np.ndarray
    classes: np.ndarray
    name: str
    labels: tuple[str, ...] = ()


def find_range(
    call: Call,
    entry: Tensor | None,
    images: Labelled,
    given: Given = AUTO,
) -> InputRange:
    """Choose a model's input range, or check the given one against the usual ones.

    For "auto", a quantized input's own range is used if it declares one. Otherwise the candidates are the ranges of INPUT_RANGES whose
    right answers match the best's, within chance; the one with the smallest negative log-likelihood wins. IMAGENET wins instead if it has
    more right answers than chance explains. Right answers cannot decide by themselves: a ReLU network with small biases answers the same
    for 0 to 1 and 0 to 255.

    Args:
        call: takes pixels, scale and zero point, each a number or one per channel, and returns logits or scores, float32 (n, num_classes).
        entry: the input of a model file; None if it is float.
    Raises EngineError if the mean has a different number of channels.
    """
    if entry is not None and np.issubdtype(entry.dtype, np.integer) and not entry.scale:
        zero_point = -128 if entry.dtype == np.uint8 else 0  # `ModelFile.outputs` gives it codes
        text = f"because its input is {entry.dtype} without a scale"
        return InputRange(name="codes", scale=1.0, zero_point=zero_point, text=text, warning=None)
    if given == AUTO and (name := declared(entry)):
        said = next(item for item in USUAL if item.name == name)
        return InputRange(**vars(said), text="as its input's quantization declares", warning=None)

    channels = images.images.shape[3]
    if isinstance(given, PixelRange) and len(given.mean or ()) not in (0, 1, channels):
        raise EngineError(f"the model reads {channels} channels, but the mean has {len(given.mean or ())} numbers.")

    own = stated_range(given)
    ranges = [*USUAL, *([IMAGENET] if channels == 3 else [])]
    if own is not None and own not in ranges:
        ranges.append(own)
    values = [call(images.images, *item.numbers) for item in ranges]
    trials, others = (
        [trial(item, found, images.classes) for item, found in zip(ranges, outputs, strict=True)]
        for outputs in (values, [reordered(found, images.classes) for found in values])
    )
    doubts = []
    before, after = (max(found, key=lambda one: one.accuracy) for found in (trials, others))
    if after.accuracy - before.accuracy >= MUCH and better(after, before) < P:
        trials = others
        doubts.append(
            f"in another order its outputs would classify {after.accuracy:.1%} of {images.name} correctly, not {before.accuracy:.1%}: "
            f"they are probably not in the order of the classes ({misplaced(values[others.index(after)], images)}). "
            "Set their order with --labels FILE."
        )
    usual = [one for one in trials if one.range in USUAL]
    top = max(usual, key=lambda one: one.accuracy)
    best = min((one for one in usual if better(top, one) >= CLOSE), key=lambda one: one.loss)
    best = next((one for one in trials if one.range == IMAGENET and better(one, top) < CLOSE), best)
    read = best if own is None else next(one for one in trials if one.range == own)
    if channels == 3:
        doubts += blue_first(call, images, read, labels_ordered=trials is not others)
    if own is None:
        found = ", ".join(f"{one.range.name} {one.accuracy:.1%} right (loss {one.loss:.2f})" for one in trials)
        text = f"the best of the usual ones on {images.name}: {found}"
        return InputRange(**vars(best.range), text=text, warning=" ".join(doubts) or None)
    mine = read
    if best.accuracy - mine.accuracy >= FAR and better(best, mine) < P:
        doubts.append(
            f"the input range is probably wrong: {mine.accuracy:.1%} of {images.name} right with {spelled(own)}, "
            f"{best.accuracy:.1%} with {spelled(best.range)}. Try --input-range {best.range.name}"
        )
    return InputRange(**vars(own), text="as given", warning=" ".join(doubts) or None)


def blue_first(call: Call, images: Labelled, read: Trial, labels_ordered: bool) -> list[str]:
    """Return a doubt about a model that answers better if it reads blue first, in the range that it reads; else an empty list."""
    values = call(np.ascontiguousarray(images.images[..., ::-1]), *read.range.numbers)
    blue = trial(read.range, values if labels_ordered else reordered(values, images.classes), images.classes)
    if blue.accuracy - read.accuracy < MUCH or better(blue, read) >= P:
        return []
    return [
        f"with red and blue swapped it would classify {blue.accuracy:.1%} of {images.name} correctly, not {read.accuracy:.1%}: it was "
        "probably trained on BGR images, as OpenCV reads them, and edgecnn gives RGB. Begin its forward() with x = x[:, [2, 1, 0]], and "
        "export it again."
    ]


def misplaced(values: np.ndarray, images: Labelled) -> str:
    """Name the outputs that answer for another class, by their numbers from 0, or by the images' labels if those are known."""
    names = images.labels or tuple(map(str, range(values.shape[1])))
    pairs = [(output, best) for output, best in enumerate(best_order(values, images.classes)) if output != best]
    shown = ", ".join(f"{names[output]!r} for {names[best]!r}" for output, best in pairs[:SHOWN])
    return f"it answers {shown}{', …' if len(pairs) > SHOWN else ''}"


def best_order(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the class for each output that makes the most answers right. Source: Kuhn 1955, the Hungarian method."""
    from scipy.optimize import linear_sum_assignment

    table = np.zeros((values.shape[1],) * 2, np.int64)
    np.add.at(table, (np.argmax(values, axis=1), classes), 1)
    # an output that no image has stays where it is
    order: np.ndarray = linear_sum_assignment(table + 1e-3 * np.eye(len(table)), maximize=True)[1]
    return order


def stated_range(given: Given) -> PixelRange | None:
    if isinstance(given, PixelRange):
        return given
    known = next((item for item in (*USUAL, IMAGENET) if given in (item.name, item.numbers)), None)
    if known is None and isinstance(given, tuple):
        return PixelRange(name="given", scale=given[0], zero_point=given[1])
    return known


def trial(given: PixelRange, values: np.ndarray, classes: np.ndarray) -> Trial:
    scores = values if is_scores(values, 0.0) else softmax(values)
    right = np.argmax(values, axis=1) == classes
    return Trial(range=given, right=right, loss=nll(np.log(np.clip(scores, 1e-7, 1)), classes))


def reordered(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return outputs (n, num_classes), reordered to the class order that makes the most answers right.

    The order for each half of the images is chosen on the other half, so chance cannot improve it.
    """
    result = np.empty_like(values)
    half = np.arange(len(classes)) % 2 == 0
    for chosen in (half, ~half):
        order = best_order(values[chosen], classes[chosen])
        result[np.ix_(~chosen, order)] = values[~chosen]
    return result


def better(one: Trial, other: Trial) -> float:
    """Return McNemar's one-sided p: small if one trial is right more often than the other."""
    return mcnemar_exact(int(np.sum(one.right & ~other.right)), int(np.sum(~one.right & other.right)), "greater")


def declared(entry: Tensor | None) -> str | None:
    """Return the usual range that exactly spans a quantized input; None if the input is float or spans another range."""
    if entry is None or not entry.scale or not np.issubdtype(entry.dtype, np.integer):
        return None
    limits = np.iinfo(entry.dtype)
    ends = entry.scale * (np.array([limits.min, limits.max], np.float64) - entry.zero_point)
    room = 0.05 * (ends[1] - ends[0])
    for name, (scale, zero_point) in INPUT_RANGES.items():
        if np.all(np.abs(scale * (np.array([-128.0, 127.0]) - zero_point) - ends) <= room):
            return name
    return None


def spelled(given: PixelRange) -> str:
    """Describe a range by the real values of a black and a white pixel, and the mean and deviation per channel."""
    low, high = (given.scale * (code - given.zero_point) for code in (-128, 127))
    text = f"{low:.4g} to {high:.4g}"
    if given.mean is None or given.std is None:
        return text
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (given.mean, given.std))
    return f"{text}, less the mean {mean}, over the deviation {std}"


def line(model: str, given: InputRange) -> str:
    return f"{model} reads pixels as {spelled(given)} ({given.name}), {given.text}"
