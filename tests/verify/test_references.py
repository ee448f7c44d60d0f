import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data import open_dataset
from edgecnn.runs import PARITY, QAT_MODEL
from edgecnn.stages.verify import verify

WITHOUT_TENSORFLOW = """
import sys
from edgecnn.cli import main
from edgecnn.report import page

page.svg = lambda figure, name: "<svg></svg>"  # plots take most of a page's time
sys.argv = ["edgecnn", "verify", sys.argv[1], "--max-drop", "100", "--json"]
try:
    main()
except SystemExit as exit_:
    assert not exit_.code, exit_.code
for name in ("tensorflow", "tf_keras", "keras", "tensorflow_model_optimization"):
    assert name not in sys.modules, name
"""


def stores(run):
    return sorted(run.path.glob("logits-*.npz"))


def computed(run):
    """Verify a run; return the names of the computed references."""
    names = []
    verify(run, open_dataset(run.recipe.data), progress=lambda what, done, total: names.append(what))
    return [name for name in ("float", "fake-quantized") if name in names]


def test_a_second_verify_imports_no_tensorflow(own_run):
    before = json.loads(own_run.read(PARITY, "verify"))
    assert len(stores(own_run)) == 2
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, str(own_run.path)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    after = json.loads(result.stdout)
    assert after["comparisons"] == before["comparisons"]
    assert after["models"][:2] == before["models"][:2], "times of the Keras models are those stored"


def test_only_a_changed_model_is_computed_again(own_run):
    path = own_run.file(QAT_MODEL)
    path.write_bytes(path.read_bytes() + b"\0")
    assert computed(own_run) == ["fake-quantized"]
    assert len(stores(own_run)) == 3
    assert computed(own_run) == []


@pytest.mark.parametrize(
    "damage",
    ["truncated", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("empty", "no archive", "other rows"))],
)
def test_a_damaged_store_is_computed_again(own_run, damage):
    path = stores(own_run)[0]
    data = path.read_bytes()
    if damage == "other rows":
        with np.load(path) as file:
            found = dict(file)
        np.savez(path, **found | {"logits": found["logits"][:-1]})
    else:
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "no archive": b"\x80\x04K\x01."}[damage])
    assert len(computed(own_run)) == 1
    assert computed(own_run) == []


def test_another_input_range_is_computed_again(own_run):
    from edgecnn.runs import Run

    recipe = own_run.file("recipe.toml")
    recipe.write_text(recipe.read_text().replace('fit = "crop"', 'fit = "stretch"'))
    assert computed(Run(own_run.path)) == ["float", "fake-quantized"]
