"""A small bundle whose models are meaningless bytes: reading a bundle does not open them."""

import io

import numpy as np
import pytest

from edgecnn.bundle.manifest import InputContract, Manifest, ModelEntry


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def small_content():
    """Return a manifest and the files of a bundle of about 2 kB."""
    pixels = (np.arange(2 * 4 * 5 * 3) * 37 % 256).astype(np.uint8).reshape(2, 4, 5, 3)
    contract = InputContract(height=4, width=5, channels=3, fit="crop", scale=1 / 128, zero_point=0)
    models, files = [], {"golden/inputs.npy": npy(pixels), "recipe.toml": b"seed = 1\n"}
    for precision, outputs in (
        ("int8", np.array([[-128, 127], [0, 5]], np.int8)),
        ("float32", np.array([[-1.5, 2.5], [0, 1]], np.float32)),
    ):
        entry = ModelEntry(
            file=f"models/{precision}.tflite",
            format="tflite",
            precision=precision,
            golden=f"golden/{precision}.tflite.npy",
            tolerance=1.0,
            tolerance_unit="LSB" if precision == "int8" else "logit",
            tolerance_reason="rounding",
            golden_engine="none 0.0 (none)",
        )
        models.append(entry)
        files |= {entry.file: precision.encode() * 20, entry.golden: npy(outputs)}
    manifest = Manifest(
        name="small",
        title="Small",
        labels=("cat", "dög"),
        input=contract,
        models=tuple(models),
        defaults={"tflite": "models/int8.tflite"},
        provenance={"data": {"fingerprint": "0"}},
    )
    return manifest, files


@pytest.fixture
def content():
    """The manifest (without `files`) and the files of a small bundle."""
    return small_content()


@pytest.fixture
def bundle_path(tmp_path, content):
    """The small bundle as a file."""
    from edgecnn.bundle.file import write_bundle

    path = tmp_path / "small.edgecnn"
    write_bundle(path, *content)
    return path
