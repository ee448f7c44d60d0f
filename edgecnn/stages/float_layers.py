"""The part of importing that keeps layers of the int8 TFLite file in float, and measures what that gains and costs."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from edgecnn.data import Dataset
from edgecnn.evaluate.answers import device_model, in_chunks, input_contract, milliseconds
from edgecnn.export import convert, export
from edgecnn.labels import plural
from edgecnn.networks.predict import model_from_bytes, predictor
from edgecnn.run_info import RunInfo
from edgecnn.runs import FLOAT_MODEL, INFO, Run
from edgecnn.stages.reporter import Reporter
from edgecnn.verify.layers import IMAGES, layer_errors

SPLIT = "validation"

SHOWN = 5  # layers that the note names


def keep_in_float(run: Run, info: RunInfo, asked: int | Sequence[str], dataset: Dataset, reporter: Reporter) -> RunInfo:
    """Return the record `info` of an imported run of layers, whose int8 TFLite file is to keep some of them in float.

    `asked` names them, or is the number of those that are furthest from the float model on validation images. The run has a record only
    meanwhile.

    Raises ExportError if a layer does not exist, or is not an operator of the file.
    """
    assert info.imported is not None
    progress = reporter.working
    try:
        run.write_info(info)
        plain = export(run, "tflite", "int8", force=True, dataset=dataset, progress=progress).path
        before = plain.read_bytes()
        if isinstance(asked, int):
            asked = [error.layer for error in layer_errors(run, dataset, progress).layers[:asked]]
        plain.unlink()
        info = dataclasses.replace(info, imported=dataclasses.replace(info.imported, float_layers=tuple(asked)))
        run.write_info(info)
        after = convert(run, "tflite", "int8", dataset=dataset, progress=progress)
        contract = input_contract(run)
    finally:
        run.file(INFO).unlink()
    images = dataset.load((SPLIT,), **vars(info.input), stage="import", progress=progress)[SPLIT].images[:IMAGES]
    calls = {name: device_model(data, "tflite", contract).logits for name, data in (("int8", before), ("mixed", after))}
    float_model = predictor(model_from_bytes(run.read(FLOAT_MODEL, "import")), contract.scale, contract.zero_point)
    reference = float_model(images).argmax(axis=1)
    agreed = {
        name: float(np.mean(in_chunks(call, images, "agreement", progress).argmax(axis=1) == reference))
        for name, call in calls.items()
    }
    times = milliseconds(calls, images[:1])
    reporter.note(
        f"{plural(len(asked), 'layer')} in float ({', '.join(asked[:SHOWN])}{', …' if len(asked) > SHOWN else ''}): the int8 TFLite file "
        f"agrees with the float model on {agreed['mixed']:.1%} of {plural(len(images), f'{SPLIT} image')}, not {agreed['int8']:.1%}; "
        f"{len(after):,} bytes, not {len(before):,}; {times['mixed']:.2f} ms per image on this machine, not {times['int8']:.2f}"
    )
    return info
