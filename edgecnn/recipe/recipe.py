"""The dataclasses of a recipe: a field's metadata holds its meaning and its limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecnn.pixels import FITS
from edgecnn.region import EXPECTED, WHOLE, Region, is_region
from edgecnn.tables import key

INPUT_RANGES = {"centred": (1 / 128, 0), "unit": (1 / 255, -128), "raw": (1.0, -128)}
"""The network's real input per pixel, as (scale, zero_point) of the code pixel - 128: (pixel - 128) / 128, pixel / 255, or the pixel."""


AUTO = "auto"
"""What a key says that leaves its value to the images: see `edgecnn.train.settle`."""

NO_START = "none"
"""What `init.source` says for random weights."""

SOURCE_KINDS: Mapping[str, Mapping[str, Any]] = {
    # Frigate stretches what it classifies to 224x224 RGB, whatever the network
    "frigate": {"data": {"fit": "stretch"}, "network": {"height": 224, "width": 224, "channels": 3}},
}
"""Kinds that `data.source` may name before a path, as in "frigate:PATH", and the defaults that a recipe with such a source has."""


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the images come from and how they are divided."""

    source: str = key(
        "cifar10",
        "A dataset's name, a folder or zip of images, or frigate:PATH; paths may be below $EDGECNN_DATA.",
    )
    title: str = key("", "What cards and reports call the data; empty for the dataset's own title.")
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


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """Which network, for which input."""

    name: str = key(AUTO, "A network's name, or FILE.py:FUNCTION for one of your own; auto chooses by the images.")
    height: int = key(
        0,
        "Rows of the input; 0 for 160 from ImageNet, else for the images' own up to 224, or 96.",
        low=0,
        high=1024,
    )
    width: int = key(0, "Columns of the input; 0 as for height.", low=0, high=1024)
    channels: int = key(0, "1 for grey, 3 for RGB; 0 for what the images have.", choices=(0, 1, 3))
    input_range: str = key(
        "centred",
        "What the network reads of a pixel: (pixel - 128) / 128, or the pixel itself.",
        choices=tuple(INPUT_RANGES),
    )
    input_scale: float = key(
        0.0,
        "With Z = input_zero_point, the network reads input_scale * (pixel - 128 - Z); 0 for input_range.",
        low=0.0,
        high=1e6,
    )
    input_zero_point: int = key(0, "See input_scale; it counts only where that is set.", low=-128, high=127)
    options: Mapping[str, str] = field(
        default_factory=dict, metadata={"meaning": "The network's own options, such as pooling of article."}
    )


@dataclass(frozen=True, kw_only=True)
class InitRecipe:
    """A trained network to start from, for few images: its body is kept, and its head is fitted to the images anew."""

    source: str = key(
        "",
        "Run folder to start from; none for random weights; empty for ImageNet's where the network has them.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """The float phase."""

    epochs: int = key(0, "Epochs of the float phase; 0 chooses by the number of images.", low=0, high=10_000)
    batch_size: int = key(0, "Images in a batch; 0 chooses 32, 64 or 128 by the number of images.", low=0, high=65_536)
    optimizer: str = key("adam", "Adam with decoupled weight decay, or SGD with momentum.", choices=("adam", "sgd"))
    learning_rate: float = key(
        0.0,
        "Peak learning rate; 0 for 0.003, or 0.0005 or 0.001 where trained weights are the start.",
        low=0.0,
        high=100.0,
    )
    schedule: str = key(
        AUTO,
        "The rate rises, then falls; falls; stays; or stays, and weights are averaged; auto chooses.",
        choices=(AUTO, "one-cycle", "cosine", "constant", "averaged"),
    )
    weight_decay: float = key(
        0.01, "Weight decay: each step takes this times the learning rate off a weight.", low=0.0, high=1.0
    )
    label_smoothing: float = key(
        -1.0,
        "Share of each label that is spread over all classes; -1 for 0.05, or 0.1 on few photos.",
        low=0.0,
        high=0.5,
        otherwise=-1.0,
    )
    flip: str = key(
        "auto", "Mirror half of the images: if the dataset allows it, always, never, or each half alternately.",
        choices=("auto", "yes", "no", "alternating"),
    )  # fmt: skip
    augment: str = key(
        "auto",
        "Changes to training images: shifts, or a photo's crops, turns and light; auto chooses by the images.",
        choices=("auto", "shift", "photo"),
    )
    shift: int = key(1, "Largest random shift of an image, in pixels.", low=0, high=64)
    precision: str = key("float32", "Arithmetic of the float phase.", choices=("float32", "bfloat16"))
    cutout: int = key(
        0, "Side, in pixels, of a grey square at a random place of each image; 0 for none.", low=0, high=512
    )
    robust: bool = key(
        False, "Mix corruptions into a third of the training images, against what cameras do; see edgecnn stress."
    )
    teacher: str = key("", "Run folder of a trained network to learn from as well; empty for none.")
    teacher_temperature: float = key(
        2.0, "Divides the logits of teacher and network in their loss.", low=0.1, high=100.0
    )
    teacher_weight: float = key(0.5, "The teacher's share of the loss; the rest is the labels'.", low=0.0, high=1.0)
    teacher_views: int = key(
        0,
        "Epochs whose images the teacher labels; later epochs repeat them. 0 labels every epoch anew.",
        low=0,
        high=10_000,
    )


@dataclass(frozen=True, kw_only=True)
class QatRecipe:
    """The quantization-aware phase."""

    epochs: int = key(
        -1,
        "Epochs of the quantization-aware phase; 0 only calibrates ranges, -1 leaves the choice to edgecnn.",
        low=-1,
        high=10_000,
    )
    batch_size: int = key(0, "Images in a batch; 0 chooses 32, 64 or 128 by the number of images.", low=0, high=65_536)
    learning_rate: float = key(
        0.0,
        "Peak learning rate of SGD with momentum; 0 for Adam at 0.00005, which suits every network.",
        low=0.0,
        high=10.0,
    )
    method: str = key(
        "auto", "How int8 models are made: whichever validates better, quantization-aware, or after training.",
        choices=("auto", "qat", "ptq"),
    )  # fmt: skip
    rounding: str = key(
        "auto",
        "How weights become codes: by GPTQ if that validates better, or the nearest code.",
        choices=("auto", "nearest"),
    )


@dataclass(frozen=True, kw_only=True)
class StrangerRecipe:
    """The decision that an image shows none of the classes."""

    rate: float = key(
        -1.0,
        "Share of known images that may be refused as strangers; 0 for none, -1 for 0.05 on photos.",
        low=0.0,
        high=0.5,
        otherwise=-1.0,
    )
    decide: str = key(
        "auto",
        "Whether a device makes the decision without --strangers; auto is yes if the recipe sets the rate.",
        choices=("auto", "yes", "no"),
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe."""

    name: str = key("", "Names the run folder and the bundle; empty for DATA-NETWORK.")
    seed: int = key(1, "Seed of weights and batches.", low=0, high=2**31 - 1)
    data: DataRecipe = field(default_factory=DataRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    init: InitRecipe = field(default_factory=InitRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
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
