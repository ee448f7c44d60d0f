"""Metrics for Prometheus, from the server and from a file, and promtool's verdict on them."""

import json
import os
import re
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgecnn.device.http.board import Board
from edgecnn.device.http.drift import shown_validation
from edgecnn.device.http.link import RESULT, Opening
from edgecnn.device.http.upkeep import Upkeep
from edgecnn.device.stream.results import rfc3339

CAMERA = "synthetic:64x48?fps=100&pattern=noise"

FRAMES = "synthetic:64x48?frames=100&pattern=noise"  # not live, so none is dropped


def families(text):
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(text, sample_name, **labels):
    (found,) = [
        sample.value for family in families(text).values() for sample in family.samples
        if sample.name == sample_name and labels.items() <= sample.labels.items()
    ]  # fmt: skip
    return found


def test_the_metrics_match_the_state(serve, tmp_path):
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

    status, _, refused = serving.ask("/v1/drift/accept", b"")
    assert status == 409 and json.loads(refused)["code"] == "Conflict"
    assert serving.close() == 143
    (kept,) = (tmp_path / "state" / "edgecnn" / "drift").iterdir()
    assert json.loads(kept.read_text())["hours"][-1]["frames"] >= before["counts"]["frames"] - 30


def test_a_file_without_a_server(edgecnn, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = edgecnn("classify", FRAMES, "--metrics-file", "board.prom", "--model", bundle, "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    text = (tmp_path / "board.prom").read_text()
    assert value(text, "edgecnn_frames_total") == lines[-1]["frames"] == 100
    assert value(text, "edgecnn_inference_seconds_count") == lines[-1]["frames"]
    assert not re.search(r"page: http", result.err)


def test_a_file_that_cannot_be_written_is_reported_and_the_camera_continues(edgecnn, bundle, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    result = edgecnn("classify", FRAMES, "--metrics-file", file / "x.prom", "--model", bundle, "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    (problem,) = [line for line in lines if line.get("event") == "problem"]
    assert problem["about"] == "metrics" and str(file / "x.prom") in problem["message"] and lines[-1]["frames"] == 100


@pytest.fixture
def whole():
    """The metrics of a board with every value known."""
    labels = ["cat", "dog"]
    facts = {"name": "m", "serial": 3, "sha256": "0" * 64, "engine": "litert 2", "precision": "int8", "accuracy": 0.9}
    drift = {"key": "k", "file": "/nowhere", "validation": shown_validation(None, 0.0, True)}
    opening = Opening(port=0, model={**facts, "labels": labels}, drift=drift)
    board = Board(opening)
    upkeep = Upkeep(board, opening)
    board.machine.update(temperature_c=61.5, throttled=["under-voltage"], memory_mib=100.0)
    board.machine.update(update={"reason": "the server is gone", "last_good": "2026-11-28T00:00:00Z"})
    top = [{"label": "cat", "score": 0.995}, {"label": "dog", "score": 0.005}]
    line = {
        "ts": rfc3339(time.time()), "age_ms": 20.0, "seq": 1, "source": "camera", "top": top, "decision": "stranger",
        "latency_ms": {"infer": 2.5}, "dropped": 7,
    }  # fmt: skip
    board.receive(
        RESULT + json.dumps([[64, 48], {"cat": 2, "stranger": 1}]).encode() + b"\n" + json.dumps(line).encode()
    )
    return upkeep.metrics.text().decode()


def test_numbers_use_prometheus_units(whole):
    assert value(whole, "edgecnn_temperature_celsius") == 61.5
    assert value(whole, "edgecnn_resident_memory_bytes") == 100 * 2**20
    assert value(whole, "edgecnn_update_failed") == 1
    assert value(whole, "edgecnn_update_last_good_timestamp_seconds") == 1795824000
    assert value(whole, "edgecnn_throttled", reason="under-voltage") == 1
    assert value(whole, "edgecnn_throttled", reason="throttled") == 0
    assert (
        value(whole, "edgecnn_decisions_total", decision="stranger") == 1 and value(whole, "edgecnn_frames_total") == 3
    )
    assert value(whole, "edgecnn_frames_dropped_total") == 7
    assert (
        value(whole, "edgecnn_inference_seconds_sum") == 0.0025
        and value(whole, "edgecnn_frame_age_seconds_sum") == 0.02
    )
    assert value(whole, "edgecnn_inference_seconds_bucket", le="0.0025") == 1, "a bound is part of its bucket"
    assert (
        value(whole, "edgecnn_best_score_bucket", le="0.99")
        == 0
        == value(whole, "edgecnn_drift_score_ratio", bound="0.99")
    )
    assert (
        value(whole, "edgecnn_best_score_bucket", le="0.995")
        == 1
        == value(whole, "edgecnn_drift_score_ratio", bound="0.995")
    )
    assert value(whole, "edgecnn_drift_decision_ratio", of="today", decision="stranger") == 1


def test_each_metric_is_documented(whole, root):
    page = (root / "docs" / "prometheus.md").read_text()
    names = [f"{name}_total" if family.type == "counter" else name for name, family in families(whole).items()]
    assert len(names) > 20 and [name for name in names if not re.search(rf"`{name}[`{{]", page)] == []


@pytest.mark.needs("promtool", package="prometheus")
def test_promtool_accepts_metrics_alerts_and_the_queries_of_the_dashboard(whole, root, tmp_path):
    def promtool(*arguments, text=""):
        done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert promtool("check", "metrics", text=whole) == ""
    alerts = root / "docs" / "monitoring" / "alerts.yml"
    assert "5 rules" in promtool("check", "rules", "--lint-fatal", str(alerts))
    cases = (root / "tests" / "device" / "http" / "alerts.yml").read_text()
    (tmp_path / "test.yml").write_text(cases.replace("ALERTS", json.dumps(str(alerts))))
    promtool("test", "rules", str(tmp_path / "test.yml"))

    dashboard = json.loads((root / "docs" / "monitoring" / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [note["expr"] for note in dashboard["annotations"]["list"]]
    queries = [query.replace("$__rate_interval", "5m").replace("$board", ".*") for query in queries]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules" in promtool("check", "rules", str(tmp_path / "queries.yml"))
    samples = {sample.name for family in families(whole).values() for sample in family.samples}
    asked = set(re.findall(r"edgecnn_\w+", alerts.read_text() + " ".join(queries)))
    assert len(queries) > 15 and asked <= samples, "every queried metric exists"
