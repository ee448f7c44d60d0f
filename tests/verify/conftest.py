"""Runs for other programs, their images, and faults in a run's int8 file."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

COLOURS = np.array(((40, 60, 200), (50, 190, 60), (210, 50, 40)))
"""RGB of the classes in Frigate's dataset."""

SIZES = ((224, 224), (300, 260), (97, 211))
"""(height, width) of the images in Frigate's dataset, used in rotation; every fourth image comes from `aliased`."""


def aliased(colour, at_centres, at_corners):
    """Return an image three times the model's input size that a mean over blocks sees in one colour, and sampling in two others."""
    pixels = np.full((672, 672, 3), colour, np.uint8)
    pixels[1::3, 1::3], pixels[::3, ::3] = at_centres, at_corners
    return pixels


@pytest.fixture(scope="session")
def frigate_media(tmp_path_factory):
    """Frigate's media folder with a dataset of three classes, including none. The colour determines the class."""
    folder = tmp_path_factory.mktemp("frigate") / "media"
    random = np.random.default_rng(7)
    for index, name in enumerate(("closed", "none", "open")):
        place = folder / "clips" / "front door" / "dataset" / name
        place.mkdir(parents=True)
        for number in range(40):
            mix = random.uniform(0.5, 0.9)
            own, *others = (128 + mix * (COLOURS[(index + other) % 3] - 128) for other in range(3))
            if number % 4 == 3:
                pixels = aliased(own, *others)
            else:
                pixels = np.clip(own + random.normal(0, 25, (*SIZES[number % 4], 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png", compress_level=0)
    return folder


@pytest.fixture(scope="session")
def frigate_run(tmp_path_factory, frigate_media):
    """A run of that dataset with its files for Frigate and MediaPipe, shared: do not change it. Its model names the nearest colour."""
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.calibrate.input_range import Stated
    from edgecnn.interop import export_program
    from edgecnn.networks.keras import keras
    from edgecnn.recipe import build_recipe
    from edgecnn.runs import PROGRAMS
    from edgecnn.stages import Silent
    from edgecnn.stages.import_ import import_stage

    inputs = keras.Input((224, 224, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(inputs)))
    real = COLOURS / 128 - 1
    model.set_weights([4 * real.T, -2 * (real**2).sum(axis=1)])
    folder = tmp_path_factory.mktemp("runs")
    model.save(folder / "door.keras")
    recipe = build_recipe({"data": {"source": f"frigate:{frigate_media}"}})
    stated = Stated(input_range="centred")
    run = import_stage(folder / "door.keras", recipe, folder / "door", Silent(), images=30, stated=stated)
    for program in PROGRAMS:
        export_program(run, program)
    return run


@pytest.fixture(scope="session")
def plant():
    """Plant a fault in a run's int8 TFLite file, next to the right Keras models.

    `change` gets a layer's weights and bias, outputs first, each with its int8 or int32 `codes` to change and their `scale`.
    """
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    from edgecnn.export import export_path
    from edgecnn.export.flatbuffer import packed, read, unpacked

    def plant(run, layer, change, precision="int8"):
        path = export_path(run, "tflite", precision)
        data = path.read_bytes()
        operators = [item for item in read(data).operators if item.name in ("CONV_2D", "FULLY_CONNECTED")]
        tensors = operators[layer].inputs[1:]
        weights, bias = (SimpleNamespace(codes=tensor.data.copy(), scale=tensor.scale) for tensor in tensors)
        change(weights, bias)
        model = unpacked(data)
        for tensor, changed in zip(tensors, (weights, bias), strict=True):
            held = model.subgraphs[0].tensors[tensor.index]
            held.quantization.scale = changed.scale
            model.buffers[held.buffer].data = np.frombuffer(changed.codes.tobytes(), np.uint8)
        path.write_bytes(packed(model))

    return plant
