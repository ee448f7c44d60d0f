"""Code in model files: none of it runs, whichever command reads the file."""

import json

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.errors import NetworkError
from edgecnn.networks.keras import keras, tf
from edgecnn.networks.own import refuse_code
from edgecnn.runs import FLOAT_MODEL, QAT_MODEL


@pytest.fixture
def trap(tmp_path):
    """Return a Keras 2 .h5 file whose Lambda leaves a mark when it runs, and the mark's path."""
    mark = tmp_path / "mark"
    source = f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]"
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Lambda(eval(source), name="trap")(inputs)))
    keras.Model(inputs, outputs).save(tmp_path / "trap.h5")
    mark.unlink()
    return tmp_path / "trap.h5", mark


def test_a_lambda_is_refused_by_every_reader_of_models(edgecnn, own_run, trap):
    file, mark = trap
    for name in (FLOAT_MODEL, QAT_MODEL):
        own_run.file(name).write_bytes(file.read_bytes())
    for command in (
        ("compare", file, file, "--data", "digits"),
        ("import", file, "--calibrate", "digits"),
        ("export", own_run.path, "--force"),
        ("verify", own_run.path),
        ("train", "--data", "digits", "--init", own_run.path, "--out", "new"),
    ):
        result = edgecnn(*command)
        assert result.code == NetworkError.exit_code, (command, result.err)
        assert "'trap'" in result.err
        assert not mark.exists(), command


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"class_name": "Popen", "module": "subprocess", "config": {}}, "Popen of the module subprocess"),
        (
            {"class_name": "TFOpLambda", "config": {"name": "w", "function": "io.write_file"}},
            r"calls tf\.io\.write_file",
        ),
        ({"class_name": "TFOpLambda", "config": {"name": "w", "function": "py_function"}}, r"calls tf\.py_function"),
        ({"class_name": "ReLU", "config": {"max_value": {"class_name": "__lambda__", "config": {}}}}, "a lambda"),
    ],
)
def test_other_code_is_refused(tmp_path, layer, message):
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": [[layer]]}})
    with pytest.raises(
        NetworkError, match=rf"model\.h5 holds Python code \(.*{message}.*does not load it\.\nBuild the model without"
    ):
        refuse_code((tmp_path / "model.h5").read_bytes(), "model.h5")


def test_files_of_both_keras_versions_are_only_data(tmp_path):
    import keras as keras3

    for number, library in enumerate((keras, keras3)):
        inputs = library.Input((8, 8, 1))
        x = library.layers.Conv2D(4, 3, activation="relu")(tf.math.cos(inputs) if library is keras else inputs)
        model = library.Model(inputs, library.layers.Dense(3)(library.layers.GlobalAveragePooling2D()(x)))
        model(np.zeros((1, 8, 8, 1), np.float32))
        for suffix in (".keras", ".h5"):
            model.save(tmp_path / f"{number}{suffix}")
            refuse_code(tmp_path / f"{number}{suffix}", "model")
