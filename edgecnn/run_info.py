"""The content of a run's `run.json`, as frozen dataclasses; `edgecnn.tables` reads and writes them, `edgecnn.runs` has the paths."""

from collections.abc import Mapping
from typing import Annotated, Literal

from edgecnn.tables import Count, Fraction, Limits, NonNegative, Positive, Sha256, Struct, absent, described, key

Asked = Literal["auto", "qat", "ptq"]
Method = Literal["qat", "ptq"]
Rounding = Literal["nearest", "gptq"]
Decisive = Literal["agreement", "accuracy", "divergence"]
TuningFigure = Literal["accuracy", "all photos", "log loss"]


class Duplicate(Struct):
    """An image kept out of `split`, because at the model's size its pixels equal those of `of_source` in `of_split`."""

    source: str
    split: str
    of_source: str
    of_split: str


class Conflict(Struct):
    """A file whose content also has another label: one of the two labels is wrong."""

    source: str
    label: str
    other_source: str
    other_label: str


class Unreadable(Struct):
    """An image that is left out because it cannot be read, and why; `split` is None if not even its bytes could be read."""

    source: str
    split: str | None
    reason: str


class GroupInfo(Struct):
    """How a user groups photos, "folder" or a pattern, and the number of groups in each split, single photos included."""

    by: str
    splits: Mapping[str, int]


class DataInfo(Struct):
    """A run's data: enough to detect whether they have changed.

    `split_sizes` and `split_hashes` are from before duplicates and undecodable images were kept out, `used` from after. `sides` is the
    SHA-256 of the list of splits and groups, if the images have one; `groups` is set if a user knows which photos belong together.
    """

    name: str
    title: str
    native_shape: tuple[int, int, int]
    labels: tuple[str, ...]
    fingerprint: str
    split_hashes: Mapping[str, str]
    split_sizes: Mapping[str, int]
    used: Mapping[str, int]
    duplicates: tuple[Duplicate, ...]
    conflicts: tuple[Conflict, ...]
    unreadable: tuple[Unreadable, ...] = key((), left_out=True)
    sides: str | None = key(None, left_out=True)
    groups: GroupInfo | None = key(None, left_out=True)


class InputSize(Struct):
    """The network's input, in pixels and channels."""

    height: int
    width: int
    channels: int


class OwnFile(Struct):
    """A user's own network: its file and function, and the SHA-256 of the file."""

    file: str
    sha256: str


class StartedFrom(Struct):
    """The run that training started from, or the title of pretrained weights and their licence; the SHA-256 of the file."""

    run: str
    sha256: str
    licence: str | None = key(None, left_out=True)


class TaughtBy(Struct):
    """The run whose network was the teacher, and the SHA-256 of its float model."""

    name: str
    sha256: str


class ImportedFrom(Struct):
    """The file that a model was imported from, its format, whether a softmax was cut off its end, and the range of pixels that it reads.

    `ships` is whether the file itself ships, so that nothing is exported; `reference` is the float model that it must answer like.
    `float_layers` stay in float in its int8 file.
    """

    file: str
    format: str
    softmax_cut: bool
    range: str
    ships: bool = key(False, left_out=True)
    reference: str | None = key(None, left_out=True)
    float_layers: tuple[str, ...] = key((), left_out=True)


class RepresentativeInfo(Struct):
    """The representative dataset: number of images and seed; once drawn, also its split, the number drawn and their SHA-256."""

    images: int
    seed: int
    split: str | None = key(None, left_out=True)
    drawn: int | None = key(None, left_out=True)
    sha256: str | None = key(None, left_out=True)


class Candidate(Struct):
    """A network and an input that may be chosen."""

    network: str
    height: Positive
    width: Positive
    whole: bool = described("Whether the network has all of its blocks and the head.")
    macs: Count
    int8_bytes: Count = described("Expected.")
    fits: bool = described("Whether it is within the budget; true without one.")
    ms: NonNegative | None = described(
        "Median milliseconds of its int8 file on this machine; null if it was not measured.", default=None
    )
    accuracy: Fraction = described(
        "Accuracy of the frozen network with a fitted last layer on held-out photos; the mean over classes if `balanced`.",
        default=0.0,
    )
    log_loss: NonNegative | None = described("Its mean log loss on the same photos, in nats.", default=None)
    behind: Annotated[float, Limits(minimum=-1, maximum=1)] = described(
        "How far its accuracy is behind that of the lowest log loss, on the same photos.", default=0.0
    )
    behind_error: NonNegative = described("The paired standard error of `behind`.", default=0.0)
    close: bool = described(
        "Whether log loss and accuracy are nearly as good as those of the lowest log loss.", default=False
    )


class NetworkChoice(Struct):
    """The network and input chosen by held-out photos, never by test images, and the figures for it: `choice.json`."""

    schema: Literal["edgecnn.choice/2"] = "edgecnn.choice/2"
    key: Sha256 = described("Hash of the images, the recipe and the limits of the choice.")
    images: Positive
    balanced: bool = described("Whether every class counts the same, because the classes are unbalanced.")
    budget: str = described("Limits of the network; empty without a limit.")
    candidates: tuple[Candidate, ...]
    network: str
    height: Positive
    width: Positive
    why: str
    seconds: NonNegative


class Validated(Struct):
    """A model on validation images, compared with the float model."""

    accuracy: Fraction
    agreement: Fraction = described("Agreement with the float model.")
    lost: Count = described("Images that only the float model classifies correctly.")
    gained: Count = described("Images that only this model classifies correctly.")
    standard_error: NonNegative = described("Paired standard error of the difference in accuracy from the float model.")
    divergence: NonNegative | None = described(
        "Mean Kullback-Leibler divergence from the float model's softmax, in nats; null if it was not measured.",
        default=None,
    )


class Validation(Struct):
    """The figures by which the int8 method and its epoch were chosen."""

    n: Positive
    float: Validated
    qat: Validated | None
    calibrated: Validated | None = described(
        "Epoch 0 of the quantization-aware phase: ranges calibrated, no weight trained; null if it was not measured.",
        default=None,
    )
    qat_nearest: Validated | None = described(
        "`qat` with every weight rounded to the nearest code; null if it was not measured.", default=None
    )
    ptq: Validated | None
    ptq_nearest: Validated | None = absent(
        "`ptq` with every weight rounded to the nearest code; absent unless both were measured."
    )


class Int8Method(Struct):
    """How the int8 models were made, and the figures behind the choice."""

    asked: Asked = described("The recipe's qat.method.")
    method: Method = described("Quantization-aware training, or quantization after training.")
    decided_by: Decisive | None = described(
        "The figure of validation images that decided between the two; null if there was no choice or no figure differed enough.",
        default=None,
    )
    epoch: Count | None = described(
        "The kept epoch of the quantization-aware phase; 0 is the calibrated model, null without that phase."
    )
    rounding: Rounding | None = described("How the weights became codes; null if nothing was chosen.", default=None)
    learning_rate: NonNegative | None = described(
        "The peak of the quantization-aware phase's learning rate; null without that phase.", default=None
    )
    validation: Validation = described("The figures behind the choice.")

    @property
    def skipped(self) -> bool:
        """Whether quantization-aware training was skipped because post-training quantization already agreed with the float model."""
        return self.asked == "auto" and self.validation.qat is None


class Tuning(Struct):
    """The fine-tuned model and the head that it has to beat, both in float on photos that taught neither, which decided between them."""

    n: Positive
    balanced: bool = described("Whether every class counts the same, because the classes are unbalanced.")
    epochs: Count = described(
        "Epochs of fine-tuning, which ended when the log loss no longer improved; by folds, the median of their models."
    )
    head_accuracy: Fraction
    tuned_accuracy: Fraction
    head_log_loss: NonNegative = described("In nats, at the best temperature.")
    tuned_log_loss: NonNegative = described("In nats, at the best temperature.")
    decided_by: TuningFigure | None = described("The figure that differed beyond noise; null if none did.")
    ships: Literal["head", "fine-tuned"]
    folds: bool = described("Whether these are all photos, by folds; otherwise the validation photos.", default=False)


class FoldInfo(Struct):
    """A model that was trained without one fold of the images, and its accuracy on that fold."""

    network: str
    height: Positive
    width: Positive
    images: Positive = described("Images of the fold, which it was never trained on.")
    epochs: Count = described("Epochs of the float phase.")
    method: Method
    rounding: Rounding | None
    epoch: Count | None = described("The kept epoch of the quantization-aware phase; null without that phase.")
    qat_epochs: Count
    float_accuracy: Fraction
    int8_accuracy: Fraction
    seconds: NonNegative = described("Time of all its epochs.")


class RunInfo(Struct):
    """The state of a run when it began and, once it is trained, the results. The keys after `versions` are only written if they are set.

    `flip` is whether images were mirrored, `seconds` the time of all epochs, `validation_accuracy` the int8 model's, a fraction. If the
    model learnt from all images, with `folds` trained without a part of them, it is the accuracy on images that the model saw.
    """

    state: Literal["training", "trained", "imported"]
    data: DataInfo
    input: InputSize
    parameters: int
    versions: Mapping[str, str]
    network: OwnFile | None = key(None, left_out=True)
    init: StartedFrom | None = key(None, left_out=True)
    teacher: TaughtBy | None = key(None, left_out=True)
    flip: bool | None = key(None, left_out=True)
    seconds: float | None = key(None, left_out=True)
    validation_accuracy: float | None = key(None, left_out=True)
    tuning: Tuning | None = key(None, left_out=True)
    int8: Int8Method | None = key(None, left_out=True)
    imported: ImportedFrom | None = key(None, left_out=True)
    folds: tuple[FoldInfo, ...] = key((), left_out=True)
    representative_dataset: RepresentativeInfo | None = key(None, left_out=True)

    @property
    def head_ships(self) -> bool:
        """Whether fine-tuning has lost: the model is the head, which learnt from the validation photos too."""
        return self.tuning is not None and self.tuning.ships == "head"
