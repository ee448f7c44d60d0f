"""Metrics, and the server of the service."""

import functools
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgecnn.cli.service import publishers
from edgecnn.device.http import board as machines
from edgecnn.device.http.board import Board, Upkeep
from edgecnn.device.http.link import EVENT, RESULT, Opening
from edgecnn.device.service.config import parse
from edgecnn.device.service.run import Surroundings
from edgecnn.device.slots.store import Store
from edgecnn.device.stream.events import RateLimiter, rfc3339
from edgecnn.runtime.classifier import Classifier
from edgecnn.runtime.engines import is_installed

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
    received = value(text, "edgecnn_best_score_count")  # a busy machine's loop leaves out frames for the server
    assert value(text, "edgecnn_drift_frames", of="today") == received
    assert b"# EOF" in serving.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")[2]
    serving.until((tmp_path / "edgecnn.prom").exists)
    assert set(families((tmp_path / "edgecnn.prom").read_text())) >= set(families(text))

    status, _, refused = serving.ask("/v1/drift/accept", b"")
    assert status == 409 and json.loads(refused)["code"] == "Conflict"
    assert serving.close() == 143
    (kept,) = (tmp_path / "state" / "edgecnn" / "drift").iterdir()
    assert json.loads(kept.read_text())["hours"][-1]["frames"] >= received


def test_a_file_without_a_server(edgecnn, bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--metrics-file", "board.prom", "--threshold", "0.5")
    result = edgecnn("classify", FRAMES, *options, "--model", bundle, "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    text = (tmp_path / "board.prom").read_text()
    assert value(text, "edgecnn_frames_total") == lines[-1]["frames"] == 100
    assert value(text, "edgecnn_inference_seconds_count") == lines[-1]["frames"]
    results = [line for line in lines if "decision" in line]
    decided = {sample.labels["decision"]: sample.value for sample in families(text)["edgecnn_decisions"].samples}
    assert {name: count for name, count in decided.items() if count} == Counter(line["decision"] for line in results)
    assert 0 < decided["abstain"] < 100
    best = [line["top"][0]["score"] for line in results]
    for bound in (0.5, 0.9):
        expected = sum(score <= bound for score in best)
        assert value(text, "edgecnn_best_score_bucket", le=str(bound)) == expected
    total_s = sum(line["latency_ms"]["infer"] for line in results) / 1000
    assert value(text, "edgecnn_inference_seconds_sum") == pytest.approx(total_s, rel=0.01)
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
    shares = [0.25, 0.125, *[0.0] * 12, 0.375, 0.25]
    validation = {"n": 400, "histogram": shares, "abstain": 0.03, "stranger": 0.07, "since": None}
    drift = {"key": "k", "file": "/nowhere", "validation": validation, "strangers": True}
    opening = Opening(port=0, model={**facts, "labels": labels}, drift=drift, started=1_800_000_000.5)
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
    events = [{"event": "frame_damaged", "count": count} for count in (3, 2)]
    events += [{"event": "camera_back", "about": "x"}, {"event": "camera_lost", "message": "gone"}]
    for event in events:
        board.receive(EVENT + json.dumps({"ts": rfc3339(time.time()), "source": "camera", **event}).encode())
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
        == value(whole, "edgecnn_drift_score_ratio", bound="0.99", of="today")
    )
    assert (
        value(whole, "edgecnn_best_score_bucket", le="0.995")
        == 1
        == value(whole, "edgecnn_drift_score_ratio", bound="0.995", of="today")
    )
    assert value(whole, "edgecnn_drift_decision_ratio", of="today", decision="stranger") == 1
    assert value(whole, "edgecnn_frames_damaged_total") == 5 and value(whole, "edgecnn_camera_reconnects_total") == 1
    assert value(whole, "edgecnn_camera_up") == 0 and value(whole, "edgecnn_model_accuracy_ratio") == 0.9
    assert value(whole, "edgecnn_start_time_seconds") == 1_800_000_000.5
    assert value(whole, "edgecnn_model_info", serial="3", engine="litert 2", precision="int8") == 1
    of = {"of": "validation"}
    shown = [value(whole, "edgecnn_drift_decision_ratio", decision=name, **of) for name in ("abstain", "stranger")]
    assert shown == [0.03, 0.07] and value(whole, "edgecnn_drift_frames", **of) == 400
    bounds = ("0.1", "0.2", "0.998", "0.999", "1.0")
    shown = [value(whole, "edgecnn_drift_score_ratio", bound=bound, **of) for bound in bounds]
    assert shown == [0.25, 0.375, 0.375, 0.75, 1.0], "each bin and all below"


def test_an_alarm_and_a_successful_check_are_metrics_too():
    facts = {"name": "m", "serial": 3, "sha256": "", "engine": "", "precision": "", "accuracy": None, "labels": ["cat"]}
    board = Board(Opening(port=0, model=facts, camera=False))
    upkeep = Upkeep(board, Opening(port=0, model=facts))
    board.machine.update(update={"reason": None, "last_good": None})
    week = {"n": 70, "histogram": [0.0] * 15 + [1.0], "abstain": None, "stranger": 0.2, "since": 1}
    drift = {"bins": [0.0, *[0.1] * 15, 1.0], "today": None, "validation": None, "accepted": week}
    board.drift = lambda: {**drift, "alarm": {"since": 1, "message": "x"}, "can_accept": True}
    text = upkeep.metrics.text().decode()
    assert value(text, "edgecnn_update_failed") == 0 and "last_good" not in text and "accuracy" not in text
    assert value(text, "edgecnn_drift_alarm") == value(text, "edgecnn_drift_can_accept") == 1
    assert value(text, "edgecnn_drift_frames", of="accepted") == 70 and "edgecnn_camera_up" not in text
    assert value(text, "edgecnn_drift_decision_ratio", of="accepted", decision="stranger") == 0.2


def test_the_metrics_are_written_every_15_s_the_counts_every_quarter_of_an_hour_and_both_at_the_end(
    tmp_path, monkeypatch
):
    """A file that cannot be written is reported once an hour, and the other one is still written."""
    now = [0.0]
    monkeypatch.setattr("edgecnn.device.http.board.RateLimiter", functools.partial(RateLimiter, clock=lambda: now[0]))
    facts = {"name": "m", "serial": 3, "sha256": "", "engine": "", "precision": "", "accuracy": None, "labels": ["cat"]}
    drift = {"key": "k", "file": str(tmp_path / "state" / "counts"), "validation": None, "strangers": True}
    opening = Opening(port=0, model=facts, drift=drift, metrics_file=str(tmp_path / "m.prom"))
    upkeep = Upkeep(Board(opening), opening)
    names = {}
    for now[0] in (0.0, 14.9, 15.0, 899.9, 900.0, 914.9):
        names[now[0]] = [path.name for path, _ in upkeep.due()]
    both = ["m.prom", "counts"]
    assert names == {0.0: both[:1], 14.9: [], 15.0: both[:1], 899.9: both[:1], 900.0: both[1:], 914.9: both[:1]}
    files = upkeep.due(end=True)
    assert [path.name for path, _ in files] == both and upkeep.write(files) is None
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {*both}
    (tmp_path / "m.prom").unlink()
    (tmp_path / "m.prom").mkdir()
    (tmp_path / "state" / "counts").unlink()
    said = []
    for now[0] in (5000.0, 8599.0, 8600.0):
        said.append(upkeep.write(files))
    assert [bool(text) for text in said] == [True, False, True] and "m.prom" in said[0]
    assert (tmp_path / "state" / "counts").exists()


def test_the_boards_memory_is_that_of_both_processes_and_its_uptime_that_of_the_camera_loop(machine, monkeypatch):
    """/proc/PID/statm counts pages, the resident ones second; /proc/PID/stat has the start in clock ticks as field 22."""
    pages, ticks = resource.getpagesize(), os.sysconf("SC_CLK_TCK")
    files = {
        "proc/70/statm": f"9000000 {(30 << 20) // pages} 900 1 0 800 0\n", "proc/71/statm": f"8000000 {(12 << 20) // pages} 90 1 0 80 0\n",
        "proc/70/stat": f"70 (a b) c) S 1 {' '.join(['4'] * 17)} {500 * ticks} 6 7\n",
        "proc/71/stat": f"71 (x) S 1 {' '.join(['4'] * 17)} {200 * ticks} 6 7\n",
        "proc/uptime": "620.25 900.00\n", "sys/devices/platform/soc/soc:firmware/get_throttled": "40001\n",
        "sys/class/thermal/thermal_zone0/temp": "61342\n", "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    }  # fmt: skip
    check = {"reason": "gone", "last_good": None, "age_s": 7, "channel": "door"}
    monkeypatch.setattr(machines, "last_check", lambda: check)
    assert machines.machine_state(machine(files), (71, 70)) == {
        "temperature_c": 61.342, "throttled": ["under-voltage"], "memory_mib": 42.0, "uptime_s": 120.25,
        "update": {"reason": "gone", "last_good": None, "age_s": 7},
    }  # fmt: skip
    nothing = machines.machine_state(machine({}), (71, 70))
    assert (nothing["memory_mib"], nothing["uptime_s"], nothing["throttled"]) == (None, None, [])


def test_each_metric_is_documented(whole, root):
    page = (root / "docs" / "http.md").read_text()
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


@pytest.fixture
def consume(bundle):
    """Return the consumers that the service makes from options, and the problems that it reports."""

    def make(options):
        reported = []
        made = publishers(parse(options, "here"), Classifier.load(bundle), Surroundings(report=reported.append))
        for consumer in made:
            consumer.finish(0)
        return made, [problem.message for problem in reported]

    return make


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_an_open_page_is_reported_in_the_journal(consume):
    made, (problem,) = consume('http = "0.0.0.0:0"\nhttp_open = true\n')
    assert made and "who can reach this port" in problem


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_the_network_is_closed_unless_the_options_need_it(bundle, spawn, tmp_path):
    """A metrics file needs no network."""
    store, metrics, options = Store(tmp_path / "slots"), tmp_path / "board.prom", tmp_path / "service.toml"
    store.activate(store.add(bundle)[0])
    options.write_text(f'source = "synthetic:64x48?fps=30"\nmetrics_file = "{metrics}"\n')
    command = [sys.executable, "-m", "edgecnn", "service", "run", "--slots", store.root, "--config", options]
    process = spawn(command, stdout=subprocess.PIPE, text=True)

    def status():
        with open(f"/proc/{process.pid}/status", encoding="ascii") as file:
            return dict(line.split(":", 1) for line in file.read().splitlines())

    assert any('"camera_opened"' in line for line in process.stdout)
    assert status()["Seccomp"].strip() == "2"
    end = time.monotonic() + 20
    while not metrics.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "\nedgecnn_camera_up " in metrics.read_text()


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_a_port_that_is_taken_is_a_problem_without_a_page(consume):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        made, (problem,) = consume(f'http = "{taken.getsockname()[1]}"\n')
    assert not made and "no page and no metrics: 127.0.0.1:" in problem and "Address already in use" in problem


@pytest.mark.skipif(not is_installed("litert"), reason="LiteRT is not installed")
def test_a_folder_that_cannot_be_read_leaves_the_page(consume, tmp_path):
    (tmp_path / ".edgecnn-saved").write_bytes(b"\xff")
    made, (problem,) = consume(f'http = "0"\nkeep = "{tmp_path}"\nkeep_margin = 0.5\n')
    assert len(made) == 1 and "no frames are kept: cannot read" in problem
