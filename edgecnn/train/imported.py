"""The int8 model of a network that edgecnn did not train: its weights rounded better, and trained to answer as the float model does."""

from collections.abc import Mapping

import numpy as np

from edgecnn.data import Split
from edgecnn.data.decoding import some
from edgecnn.files import write_atomic
from edgecnn.networks.fold import folded
from edgecnn.networks.keras import keras
from edgecnn.networks.predict import model_bytes, model_from_bytes, predictor
from edgecnn.recipe import Recipe
from edgecnn.run_info import Int8Method, Validation
from edgecnn.runs import FLOAT_MODEL, QAT_MODEL, ROUNDED_MODEL, Run
from edgecnn.train.best import Int8, score
from edgecnn.train.loop import Batches, Report, run_phase
from edgecnn.train.qat_phase import Qat
from edgecnn.train.rounding import plain_kernels, round_kernels
from edgecnn.train.train import SEEN, choice


class Photos:
    """A run's training photos, and those to choose by: validation photos, or without them training photos."""

    def __init__(self, splits: Mapping[str, Split], seed: int) -> None:
        self.train = splits["train"]
        validation = splits["validation"] if len(splits["validation"].classes) else some(self.train, SEEN, seed)
        self.images, self.classes = validation.images, validation.classes


def distil(run: Run, recipe: Recipe, photos: Photos, int8: Int8, report: Report) -> Int8Method:
    """Train the quantization-aware phase of a run's float model to its end, and choose how its int8 models are made.

    `recipe` is settled. Only the choice looks at labels: the loss compares the two networks' answers.
    """
    teacher = model_from_bytes(run.read(FLOAT_MODEL, "import"))
    reference, logits = answers(teacher, recipe, photos, int8)
    ptq = None if logits is None else score(logits, reference, photos.classes)
    batches = Batches(
        images=photos.train.images,
        classes=photos.train.classes,
        batch_size=recipe.qat.batch_size,
        seed=recipe.seed,
        flip=recipe.train.flip != "no",
        shift=recipe.train.shift,
    )
    qat = Qat(recipe, teacher, (photos.images, photos.classes), reference, batches, int8)
    qat.begin()
    run_phase(qat.phase, batches, run, (), None, report)
    write_atomic(run.file(QAT_MODEL), model_bytes(qat.finish()))
    return choice("auto", qat, ptq, score(reference, reference, photos.classes))


def round_weights(run: Run, recipe: Recipe, photos: Photos, int8: Int8) -> Int8Method:
    """Round the kernels of a run's float model for its int8 file, which is quantized after training, if that validates better."""
    model = model_from_bytes(run.read(FLOAT_MODEL, "import"))
    reference, logits = answers(model, recipe, photos, int8)
    assert logits is not None  # the recipe has no other method, so a failure is an error
    nearest = best = score(logits, reference, photos.classes)
    rounded = folded(model)
    numbers = recipe.input_scale, recipe.input_zero_point
    round_kernels(rounded, photos.train.images, *numbers, recipe.seed, plain_kernels(rounded))
    _, after = answers(rounded, recipe, photos, int8)
    assert after is not None
    found = score(after, reference, photos.classes)
    if found.better_than(nearest):
        best = found
        write_atomic(run.file(ROUNDED_MODEL), model_bytes(rounded))
    return Int8Method(
        asked="ptq",
        method="ptq",
        decided_by=None,
        epoch=None,
        rounding="nearest" if best is nearest else "gptq",
        validation=Validation(
            n=nearest.n,
            float=score(reference, reference, photos.classes).figures(),
            qat=None,
            ptq=best.figures(),
            ptq_nearest=nearest.figures(),
        ),
    )


def answers(model: "keras.Model", recipe: Recipe, photos: Photos, int8: Int8) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the logits of a float model, and of its int8 file by post-training quantization, on the photos to choose by."""
    predict = predictor(model, recipe.input_scale, recipe.input_zero_point)
    return predict(photos.images), int8.post_training(model, photos.train, photos.images)
