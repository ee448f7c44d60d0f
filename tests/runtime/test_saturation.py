from functools import partial

import pytest

pytest.importorskip("onnxruntime", reason="it is the engine under test")

from edgecnn.cpu import read_cpu
from edgecnn.runtime.engines import onnxruntime

CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 avx2 {}\nbugs\t\t: none\n"


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx512f avx512_vnni", False),
        ("x86_64", "avx_vnni", False),
        ("x86_64", "avx512f", True),
        ("x86_64", "avx512_4vnniw", True),
        ("AMD64", "fma", True),
        ("aarch64", "", False),
    ],
)
def test_sums_saturate_on_x86_without_vnni(machine, flags, expected, tmp_path, monkeypatch):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(CPUINFO.format(flags))
    monkeypatch.setattr(onnxruntime, "read_cpu", partial(read_cpu, tmp_path))
    monkeypatch.setattr(onnxruntime.platform, "machine", lambda: machine)
    assert onnxruntime.sums_saturate() is expected


def test_an_unknown_x86_is_assumed_to_saturate(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "read_cpu", partial(read_cpu, tmp_path))
    monkeypatch.setattr(onnxruntime.platform, "machine", lambda: "x86_64")
    assert onnxruntime.sums_saturate()


def test_sessions_without_saturation_give_the_same_codes(finished_run, monkeypatch):
    """This forces the slower form, which processors without VNNI run. It must open edgecnn's own graphs."""
    import numpy as np

    from edgecnn.export import export_path
    from edgecnn.runtime.engines import open_engine

    if onnxruntime.sums_saturate():
        pytest.skip("on this processor only the slower form gives the right codes")
    data = export_path(finished_run, "onnx", "int8").read_bytes()
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 1), np.uint8)
    monkeypatch.setattr(onnxruntime, "sums_saturate", lambda: False)
    fast = open_engine("onnxruntime", data, "onnx").run(images)
    monkeypatch.setattr(onnxruntime, "sums_saturate", lambda: True)
    np.testing.assert_array_equal(open_engine("onnxruntime", data, "onnx").run(images), fast)
