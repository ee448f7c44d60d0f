import os
import sys
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.errors import EngineError
from edgecnn.export import export_path
from edgecnn.report.table import matrix_table
from edgecnn.runtime.engines import open_engine
from edgecnn.stages.verify import Matrix, verify
from edgecnn.tables import to_json
from edgecnn.verify.matrix import find_python


@pytest.fixture(scope="module")
def report(finished_run, tmp_path_factory):
    import shutil

    from edgecnn.runs import Run

    path = tmp_path_factory.mktemp("matrix") / "tiny"
    shutil.copytree(finished_run.path, path)
    run = Run(path)
    return verify(run, open_dataset(run.recipe.data), matrix=Matrix())


def test_every_engine_is_compared_with_every_other(report, schema_of):
    jsonschema.validate(to_json(report), schema_of("parity"))
    ran = [item for item in report.matrix if item.accuracy is not None]
    assert [item.name.split()[0] for item in ran] == ["Keras", "litert", "onnxruntime", "litert"]
    assert ["XNNPACK" in ran[1].name, "reference kernels" in ran[3].name] == [True, True]
    pairs = {(item.name, other.name): other for item in ran for other in item.against}
    assert len(pairs) == len(ran) * (len(ran) - 1)
    for (one, other), found in pairs.items():
        back = pairs[other, one]
        assert (found.agreement, found.largest_lsb) == (back.agreement, back.largest_lsb)
        assert found.agreement >= 0.98 and found.largest_lsb <= 5
    printed = matrix_table(report.matrix)
    assert all(item.name in printed for item in report.matrix)


def test_a_missing_engine_is_named_with_its_reason(report):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here, so it ran")
    (note,) = [item.note for item in report.matrix if item.accuracy is None]
    assert "CUDAExecutionProvider" in note


def test_reference_kernels_are_not_a_delegate(finished_run):
    data = export_path(finished_run, "tflite", "int8").read_bytes()
    assert open_engine("litert", data, "tflite", provider="reference").provider == "reference kernels"


def test_an_invalid_tflite_python(own_run, tmp_path):
    dataset = open_dataset(own_run.recipe.data)
    with pytest.raises(EngineError, match="program not found"):
        verify(own_run, dataset, matrix=Matrix(tflite_python=tmp_path / "python"))
    broken = tmp_path / "python"
    broken.write_bytes(b"\x7fELF")
    broken.chmod(0o755)
    with pytest.raises(EngineError, match="cannot be run: "):
        verify(own_run, dataset, matrix=Matrix(tflite_python=broken))
    with pytest.raises(EngineError, match=r"did not run the model: .*tflite_runtime"):
        verify(own_run, dataset, matrix=Matrix(tflite_python=Path(sys.executable)))


def test_a_python_is_given_by_relative_path_or_by_name_on_path(tmp_path, monkeypatch):
    """A virtual environment's link is not resolved: its target knows nothing about the environment."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    link = tmp_path / "venv" / "bin" / "python"
    link.symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert find_python(Path("venv/bin/python")) == find_python(link) == link
    monkeypatch.setenv("PATH", "venv/bin")
    assert find_python(Path("python")) == link


def test_tflite_runtime_in_its_own_environment(own_run, root):
    python = root / ".venv-tflite-3.11" / "bin" / "python"
    if not python.exists():
        pytest.skip(
            f"no virtual environment {python.parents[1].name}: make test makes it where its Python is installed"
        )
    python = Path(os.path.relpath(python))
    report = verify(own_run, open_dataset(own_run.recipe.data), matrix=Matrix(tflite_python=python))
    (there,) = [item for item in report.matrix if item.name.startswith("tflite_runtime ")]
    assert all(other.agreement >= 0.98 for other in there.against)
