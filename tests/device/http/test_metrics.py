"""What Prometheus reads, from the server and from a file, and what promtool says of it."""

import json
import os
import re
import shutil
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

CAMERA = "synthetic:64x48?fps=30&pattern=noise"


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text, sample_name, **labels):
    (found,) = [
        sample.value for family in families(text).values() for sample in family.samples
        if sample.name == sample_name and labels.items() <= sample.labels.items()
    ]  # fmt: skip
    return found


def test_the_metrics_are_those_of_the_state(serve, tmp_path):
    state_home = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    serving = serve(CAMERA, "--metrics-file", str(tmp_path / "edgecnn.prom"), environment=state_home).ready()
    serving.until(lambda: serving.state()["counts"]["frames"] > 40)
    before = serving.state()
    status, headers, body = serving.ask("/metrics")
    after = serving.state()
    text = body.decode()
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    assert before["counts"]["frames"] <= value(text, "edgecnn_frames_total") <= after["counts"]["frames"]
    decided = families(text)["edgecnn_decisions"].samples
    assert {sample.labels["decision"] for sample in decided} == set(after["model"]["labels"])
    assert sum(sample.value for sample in decided) == value(text, "edgecnn_frames_total")
    for name in ("edgecnn_inference_seconds", "edgecnn_frame_age_seconds", "edgecnn_best_score"):
        seen = value(text, f"{name}_count")
        assert 0 < seen <= value(text, "edgecnn_frames_total") and value(text, f"{name}_bucket", le="+Inf") == seen
    assert value(text, "edgecnn_best_score_bucket", le="1.0") == value(text, "edgecnn_best_score_count")
    assert value(text, "edgecnn_model_info", sha256=after["model"]["sha256"], name="cifar10-resnet8") == 1
    assert value(text, "edgecnn_camera_up") == 1 and value(text, "edgecnn_drift_alarm") == 0
    assert (
        time.time() - 60
        < value(text, "edgecnn_start_time_seconds")
        <= value(text, "edgecnn_last_frame_timestamp_seconds")
    )
    assert value(text, "edgecnn_drift_frames", of="today") == pytest.approx(value(text, "edgecnn_frames_total"), abs=30)
    assert b"# EOF" in serving.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")[2]
    serving.until((tmp_path / "edgecnn.prom").exists)
    assert set(families((tmp_path / "edgecnn.prom").read_text())) >= set(families(text))
    if shutil.which("promtool"):
        checked = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")

    status, _, refused = serving.ask("/v1/drift/accept", b"")
    assert status == 409 and "after 7 days" in json.loads(refused)["error"]
    assert serving.close() == 143
    (kept,) = (tmp_path / "state" / "edgecnn" / "drift").iterdir()
    assert json.loads(kept.read_text())["hours"][-1]["frames"] >= before["counts"]["frames"] - 30


def test_a_file_without_a_server(edgecnn, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = edgecnn("classify", CAMERA, "--duration", "1", "--metrics-file", "board.prom", "--model", bundle, "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    text = (tmp_path / "board.prom").read_text()
    assert value(text, "edgecnn_frames_total") == lines[-1]["frames"] > 10
    assert value(text, "edgecnn_inference_seconds_count") == lines[-1]["frames"]
    assert not re.search(r"page: http", result.err)


def test_a_file_that_cannot_be_written_is_said_and_the_camera_goes_on(edgecnn, bundle, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    result = edgecnn(
        "classify", CAMERA, "--duration", "1", "--metrics-file", file / "x.prom", "--model", bundle, "--json"
    )
    lines = [json.loads(line) for line in result.out.splitlines()]
    (problem,) = [line for line in lines if line.get("event") == "problem"]
    assert problem["about"] == "metrics" and "cannot write" in problem["message"] and lines[-1]["frames"] > 10
