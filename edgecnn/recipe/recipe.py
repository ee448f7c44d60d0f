"""The dataclasses of a recipe: a field's metadata holds its meaning and its limits."""

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from edgecnn.region import EXPECTED, FITS, WHOLE, Region, is_region
from edgecnn.tables import Struct, key

INPUT_RANGES = {"centred": (1 / 128, 0), "unit": (1 / 255, -128), "raw": (1.0, -128)}
"""The network's real input per pixel, as (scale, zero_point) of the code pixel - 128: (pixel - 128) / 128, pixel / 255, or the pixel."""


RANDOM = "random"  # what `init.source` says for random weights

SOURCE_KINDS: Mapping[str, Mapping[str, Any]] = {
    # Frigate stretches what it classifies to 224x224 RGB, whatever the network
    "frigate": {"data": {"fit": "stretch"}, "network": {"height": 224, "width": 224, "channels": 3}},
}
"""Kinds that `data.source` may name before a path, as in "frigate:PATH", and the defaults that a recipe with such a source has."""


def left_open(meaning: str, formerly: Any, **limits: Any) -> Any:
    """Return the field of a key that a recipe may leave out, and is None then; if `edgecnn.train.settle` fills it, its type says so.

    Formerly a value meant this: see `edgecnn.recipe.former`. The others as of `edgecnn.tables.key`; the meaning ends with what is chosen.
    """
    return key(None, meaning, left_out=True, formerly=formerly, **limits)


class DataRecipe(Struct):
    """Where the images come from and how they are divided."""

    source: str = key(
        "cifar10",
        "A dataset's name, a folder or zip of images, or frigate:PATH; paths may be below $EDGECNN_DATA.",
    )
    title: str | None = left_open("What cards and reports call the data; else the dataset's own title.", "")
    validation_fraction: float = key(
        0.1, "Share of the training images for validation, where the data have no such split.", low=0.01, high=0.5
    )
    test_fraction: float = key(
        0.2, "Share of the training images for test, where the data have no such split.", low=0.01, high=0.5
    )
    fit: str = key(
        "crop", "How an image of another aspect is fitted: centre crop, grey bars, or stretched.", choices=FITS
    )
    region: Region = key(
        WHOLE,
        "The part of each image that is seen: [x, y, width, height] as fractions of the upright image.",
        valid=is_region,
        expected=EXPECTED,
    )


class NetworkRecipe(Struct):
    """Which network, for which input."""

    name: str = left_open("A network's name, or FILE.py:FUNCTION for one of your own; else the images choose.", "auto")
    height: int = left_open(
        "Rows of the input; else as the images choose, 160 from ImageNet, the images' own up to 224, or 96.",
        0,
        low=1,
        high=1024,
    )
    width: int = left_open("Columns of the input; else as for height.", 0, low=1, high=1024)
    channels: int = left_open("1 for grey, 3 for RGB; else what the images have.", 0, choices=(1, 3))
    input_range: str = key(
        "centred",
        "What the network reads of a pixel: (pixel - 128) / 128, or the pixel itself.",
        choices=tuple(INPUT_RANGES),
    )
    input_scale: float | None = left_open(
        "With Z = input_zero_point, the network reads input_scale * (pixel - 128 - Z); else input_range.",
        0,
        low=1e-6,
        high=1e6,
    )
    input_zero_point: int = key(0, "See input_scale; it counts only where that is set.", low=-128, high=127)
    max_kb: float | None = key(
        None, "Most kB, of 1,000 bytes, of the int8 file that the images may choose.", left_out=True, low=1.0, high=1e6
    )
    max_macs: float | None = key(
        None, "Most multiply-accumulates of an answer that they may choose.", left_out=True, low=1e3, high=1e12
    )
    max_ms: float | None = key(
        None,
        "Most milliseconds of an answer, on this machine, that they may choose.",
        left_out=True,
        low=0.001,
        high=1e6,
    )
    options: Mapping[str, str] = field(
        default_factory=dict, metadata={"meaning": "The network's own options, such as pooling of article."}
    )


class InitRecipe(Struct):
    """A trained network to start from, for few images: its body is kept, and its head is fitted to the images anew."""

    source: str | None = left_open(
        "Run folder to start from, or random for random weights; else ImageNet's where the network has them.", ""
    )


class TrainRecipe(Struct):
    """The float phase."""

    epochs: int = left_open("Epochs of the float phase; else by the number of images.", 0, low=1, high=10_000)
    batch_size: int = left_open("Images in a batch; else 32, 64 or 128 by the number of images.", 0, low=1, high=65_536)
    optimizer: str = key("adam", "Adam with decoupled weight decay, or SGD with momentum.", choices=("adam", "sgd"))
    learning_rate: float = left_open(
        "Peak learning rate; else 0.003, or 0.0005 or 0.001 where trained weights are the start.",
        0,
        low=1e-12,
        high=100.0,
    )
    schedule: str = left_open(
        "The rate rises, then falls; falls; stays; or stays, and weights are averaged; else by the images.",
        "auto",
        choices=("one-cycle", "cosine", "constant", "averaged"),
    )
    weight_decay: float = key(
        0.01, "Weight decay: each step takes this times the learning rate off a weight.", low=0.0, high=1.0
    )
    label_smoothing: float = left_open(
        "Share of each label that is spread over all classes; else 0.05, or 0.1 from ImageNet.",
        -1,
        low=0.0,
        high=0.5,
    )
    flip: str = left_open(
        "Mirror half of the images: always, never, or each half alternately; else if the data allow it.",
        "auto",
        choices=("yes", "no", "alternating"),
    )
    augment: str = left_open(
        "Changes to training images: shifts, or a photo's crops, turns and light; else by the images.",
        "auto",
        choices=("shift", "photo"),
    )
    shift: int = key(1, "Largest random shift of an image, in pixels.", low=0, high=64)
    folds: int | None = key(
        None,
        "Number of models that each lack a part of the images, which tests them; one more learns from all.",
        left_out=True,
        low=2,
        high=20,
    )
    precision: str = key("float32", "Arithmetic of the float phase.", choices=("float32", "bfloat16"))
    cutout: int | None = left_open(
        "Side, in pixels, of a grey square at a random place of each image; else none.", 0, low=1, high=512
    )
    robust: bool = key(
        False, "Mix corruptions into a third of the training images, against what cameras do; see edgecnn stress."
    )


class TeacherRecipe(Struct):
    """A trained network to learn from in the float phase, in addition to the labels."""

    run: str = key(meaning="Run folder of the trained network.", formerly="")
    temperature: float = key(2.0, "Divides the logits of both networks in their loss.", low=0.1, high=100.0)
    weight: float = key(0.5, "The teacher's share of the loss; the rest is the labels'.", low=0.0, high=1.0)
    views: int | None = left_open(
        "Epochs whose images the teacher labels; later epochs repeat them. Else it labels every epoch anew.",
        0,
        low=1,
        high=10_000,
    )


class QatRecipe(Struct):
    """The quantization-aware phase."""

    epochs: int = left_open(
        "Epochs of the quantization-aware phase, 0 only calibrates ranges; else by the number of images.",
        -1,
        low=0,
        high=10_000,
    )
    batch_size: int = left_open("Images in a batch; else 32, 64 or 128 by the number of images.", 0, low=1, high=65_536)
    learning_rate: float | None = left_open(
        "Peak learning rate of SGD with momentum; else Adam at 0.00005, which suits every network.",
        0,
        low=1e-12,
        high=10.0,
    )
    method: str | None = left_open(
        "How int8 models are made: quantization-aware, or after training; else what validates better.",
        "auto",
        choices=("qat", "ptq"),
    )
    rounding: str | None = left_open(
        "How weights become codes: the nearest; else by GPTQ where that validates better.",
        "auto",
        choices=("nearest", "gptq"),
    )
    keep: int | None = key(
        None,
        "Epoch after which training ends, 0 for calibrated ranges; else the one that validates best is kept.",
        left_out=True,
        low=0,
        high=10_000,
    )


class StrangerRecipe(Struct):
    """The decision that an image shows none of the classes."""

    rate: float = left_open(
        "Share of known images that may be refused as strangers, 0 for none; else 0.05 on photos.",
        -1,
        low=0.0,
        high=0.5,
    )
    decide: bool | None = left_open(
        "Whether a device makes the decision without --strangers; else if the recipe sets the rate.", "auto"
    )


class Recipe(Struct):
    """A whole recipe."""

    name: str | None = left_open("Names the run folder and the bundle; else DATA-NETWORK.", "")
    seed: int = key(1, "Seed of weights and batches.", low=0, high=2**31 - 1)
    data: DataRecipe = field(default_factory=DataRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    init: InitRecipe = field(default_factory=InitRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    teacher: TeacherRecipe | None = key(None, left_out=True)
    qat: QatRecipe = field(default_factory=QatRecipe)
    stranger: StrangerRecipe = field(default_factory=StrangerRecipe)

    @property
    def input_scale(self) -> float:
        """Scale of the model's input code."""
        return self.network.input_scale or INPUT_RANGES[self.network.input_range][0]

    @property
    def input_zero_point(self) -> int:
        """Zero point of the model's input code."""
        network = self.network
        return network.input_zero_point if network.input_scale else INPUT_RANGES[network.input_range][1]
