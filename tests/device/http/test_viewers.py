"""The viewers bench for a minute: what viewers cost the camera loop, and whether memory grows."""

import importlib
import os

import pytest


@pytest.mark.slow
def test_viewers_cost_the_camera_loop_nothing(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    bench = importlib.import_module("viewers")
    report = bench.measure(**bench.QUICK)
    cases = report["cases"]
    spread = [*cases["without"]["p99_ms_each"], *cases["without again"]["p99_ms_each"]]
    said = (bench.sentence(report), cases, os.getloadavg())
    assert report["later_ms"] <= 5 or cases["with viewers"]["p99_ms"] <= max(spread), said
    assert cases["with viewers"]["dropped"] <= max(2, cases["without"]["dropped"], cases["without again"]["dropped"]), (
        said
    )
    assert report["served"]["frames_per_viewer_s"] > 2 and report["long"]["served"]["connections"] > 200, said
    assert report["long"]["mib"]["last quarter"] < report["long"]["mib"]["second quarter"] + 2, said
