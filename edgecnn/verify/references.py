"""The Keras models' logits on the test split."""

from dataclasses import replace

import numpy as np

from edgecnn.evaluate.answers import Answers, Progress, export_answers, in_chunks, milliseconds, timed
from edgecnn.files import sha256
from edgecnn.runs import QAT_MODEL, Run

PRECISIONS = {"float": "float32", "fake-quantized": "fake-quantized"}


def reference_answers(run: Run, name: str, images: np.ndarray, progress: Progress) -> Answers:
    """Return a reference's answers. `name` is one of PRECISIONS."""
    from edgecnn.networks.keras import tf
    from edgecnn.networks.predict import model_from_bytes, predictor

    if name == "float" and run.reference:
        path = run.file(run.reference)
        answers = export_answers(run, path, path.suffix[1:], PRECISIONS[name], images, progress)
        return timed([replace(answers, name=name)], images[:1])[0]
    data = run.read(run.float_model if name == "float" else QAT_MODEL, "train")
    predict = predictor(model_from_bytes(data), run.recipe.input_scale, run.recipe.input_zero_point)
    return Answers(
        name=name,
        format="keras",
        precision=PRECISIONS[name],
        engine=f"tensorflow {tf.__version__}",
        size_bytes=len(data),
        sha256=sha256(data),
        values=in_chunks(predict, images, name, progress),
        ms_per_image=milliseconds({name: predict}, images[:1])[name],
    )
