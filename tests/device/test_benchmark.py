"""The benchmark: what it measures, whether the speed holds, and what it prints."""

import dataclasses
import functools
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from edgecnn.bundle.file import read_bundle
from edgecnn.device import benchmark, probe
from edgecnn.device.benchmark import (
    PARTS,
    BenchmarkRow,
    Configuration,
    Percentiles,
    Probed,
    Sweep,
    configurations,
    gate,
    percentiles,
    ranked,
    run_probe,
    sweep,
    sweep_document,
    winner,
)
from edgecnn.device.probe import BenchImages, bench_images, peak_mib
from edgecnn.device.system import Sensors, System
from edgecnn.errors import EngineError, ImageError, ProviderError, UnknownNameError
from edgecnn.runtime.child import Finished
from edgecnn.runtime.engines import engines_for, first_installed, is_installed
from edgecnn.tables import to_json

pytestmark = pytest.mark.skipif(
    not any(map(is_installed, engines_for("tflite"))), reason="no TFLite engine is installed"
)


@pytest.fixture(scope="module")
def bundle(root):
    return read_bundle(root / "models" / "digits" / "digits.edgecnn")


@pytest.fixture
def only(monkeypatch):
    def set_(*names):
        for module in ("edgecnn.device.benchmark", "edgecnn.runtime.engines"):
            monkeypatch.setattr(f"{module}.is_installed", lambda name: name in names)
        monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})

    return set_


def test_configurations(bundle, only):
    only("litert", "onnxruntime")
    found = configurations(bundle.manifest)
    assert {(item.engine, item.precision, item.threads) for item in found} == {
        (engine, precision, threads)
        for engine in ("litert", "onnxruntime")
        for precision in ("int8", "float32")
        for threads in (1, 2)
    }
    (one,) = configurations(bundle.manifest, engines=["litert"], precisions=["int8"], threads=[8])
    assert one == ("litert", "models/int8.tflite", "int8", 8, None) and one.name == "litert int8, 8 threads"
    several = configurations(
        bundle.manifest, engines=["onnxruntime"], precisions=["int8"], threads=[8, 1, 8], provider="cpu"
    )
    assert [item.name for item in several] == ["onnxruntime cpu int8, 1 thread", "onnxruntime cpu int8, 8 threads"]
    assert {item.engine for item in configurations(bundle.manifest, provider="cuda")} == {"onnxruntime"}


def test_nonsense_is_refused(bundle, only):
    only("litert")
    with pytest.raises(UnknownNameError, match="Did you mean 'litert'"):
        configurations(bundle.manifest, engines=["litrt"])
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        configurations(bundle.manifest, precisions=["int9"])
    with pytest.raises(EngineError, match="pip install onnxruntime"):
        configurations(bundle.manifest, engines=["onnxruntime"])
    with pytest.raises(EngineError, match=r"no model to measure on litert; it has int8 \.tflite"):
        configurations(bundle.manifest, precisions=["float16"])
    with pytest.raises(ProviderError):
        configurations(bundle.manifest, engines=["litert"], provider="cuda")
    only()
    with pytest.raises(EngineError, match="pip install ai-edge-litert"):
        configurations(bundle.manifest)


def test_the_gate_comes_from_the_bundles_report_unless_it_has_megabytes(bundle, monkeypatch):
    verdicts = gate(bundle)
    assert verdicts == dict.fromkeys(
        ["models/int8.tflite", "models/float32.tflite", "models/int8.onnx", "models/float32.onnx"], True
    )
    report = json.loads(bundle.files["parity.json"])
    next(item for item in report["comparisons"] if item["candidate"] == "tflite-int8")["passed"] = False
    failing = dataclasses.replace(bundle, files={**bundle.files, "parity.json": json.dumps(report).encode()})
    assert gate(failing) == verdicts | {"models/int8.tflite": False}
    passing = {"candidate": "tflite-int8", "passed": True}
    for two in ([passing, {**passing, "passed": False}], [{**passing, "passed": False}, passing]):
        report = {"comparisons": [*two, {"candidate": "onnx-int8", "passed": True}]}
        twice = dataclasses.replace(bundle, files={"parity.json": json.dumps(report).encode()})
        assert gate(twice) == {"models/int8.tflite": False, "models/int8.onnx": True}, "each comparison counts"
    assert gate(dataclasses.replace(bundle, files={})) == {}
    for hostile in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"comparisons": [{"candidate": [], "passed": 1}]}'):
        assert gate(dataclasses.replace(bundle, files={"parity.json": hostile})) == {}

    monkeypatch.setattr("edgecnn.device.benchmark.json.loads", lambda text: pytest.fail("it was parsed"))
    large = b'{"comparisons": []' + b" " * 9_000_000 + b"}"
    assert gate(dataclasses.replace(bundle, files={"parity.json": large})) == {}


def row(p50, p90, threads=1, gate=True, golden="", engine="litert"):
    infer = Percentiles(p50, p90, 2 * p90, 100)
    return BenchmarkRow(
        configuration=Configuration(engine, "f", "int8", threads, None),
        probed=Probed("1", "XNNPACK", 40.0, golden),
        parts=dict.fromkeys(PARTS, infer),
        gate=gate,
    )


def test_winner():
    fast, slow = row(1.0, 2.0), row(1.1, 1.2)
    assert winner([slow, fast]) is fast
    near = row(1.019, 1.5, threads=4)
    assert winner([fast, near]) is near, "within 2 % the smaller p90 wins"
    assert winner([fast, row(1.02, 1.5)]).parts["infer"].p50_ms == 1.02, "2 % is within 2 %"
    assert winner([fast, row(1.021, 1.5)]) is fast
    assert winner([row(1.0, 2.0, threads=2), fast]) is fast, "then fewer threads"
    others = row(0.13, 0.12), row(0.12, 0.14), row(0.1015, 0.19), row(0.1, 0.2)
    assert [one.parts["infer"].p50_ms for one in ranked(others)] == [0.1015, 0.1, 0.12, 0.13], "the others by p50"
    assert winner([dataclasses.replace(fast, gate=False), slow]) is slow
    assert winner([dataclasses.replace(fast, gate=None), row(1, 1, golden="differs by 2 LSB")]) is None
    assert winner([]) is None


def test_the_fastest_is_what_the_report_names(bundle):
    fast = row(4.0, 6.0, threads=4, engine="onnxruntime")
    slow = row(5.0, 9.0, threads=1, gate=None, golden="it differs by 2 LSB; 1 is allowed")
    broken = Configuration("litert", "models/float32.tflite", "float32", 2, None)
    measured = Sweep((fast, slow), {broken: "exit code 3"}, interrupted=False, load_average=0.75)
    names = tuple(f"{number}.jpg" for number in range(21))
    written = sweep_document(
        bundle, BenchImages("given, 21 images of 12x9 pixels", (b"",) * 21, names, ""), measured, warmup=7
    )
    assert written["images"] == {"about": "given, 21 images of 12x9 pixels", "count": 21, "names": list(names[:20])}
    assert (written["load_average"], written["warmup"], written["interrupted"]) == (0.75, 7, False)
    assert written["failed"] == [{**broken._asdict(), "reason": "exit code 3"}]
    first, second = written["configurations"]
    assert written["winner"] == {key: first[key] for key in ("engine", "file", "precision", "threads", "provider")}
    assert first["infer"] == {"p50_ms": 4, "p90_ms": 6, "p99_ms": 12, "n": 100}
    assert [(one["gate"], one["eligible"], one["golden"]) for one in (first, second)] == [
        (True, True, ""), (None, False, "it differs by 2 LSB; 1 is allowed"),
    ]  # fmt: skip


def test_percentiles_and_peak_memory():
    assert percentiles([float(number) for number in range(100, -1, -1)]) == Percentiles(50, 90, 99, 101)
    highest_kib = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak_mib() == pytest.approx(highest_kib / 1024, rel=0.01)


@pytest.mark.parametrize(("system", "largest"), [("linux", 1536), ("darwin", 1536 * 1024)])
def test_peak_memory_without_proc_is_in_mib_whatever_the_system_counts_in(monkeypatch, system, largest):
    monkeypatch.setattr(probe, "open", lambda *arguments, **options: io.StringIO("Name:\tpython\n"), raising=False)
    monkeypatch.setattr(probe.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=largest))
    monkeypatch.setattr(probe.sys, "platform", system)
    assert probe.peak_mib() == 1.5


class Crashing(System):
    """A machine on which processes die of SIGILL."""

    def run(self, command, timeout=10.0):
        crash = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
        return super().run([sys.executable, "-c", crash], timeout)


def test_an_engine_that_crashes_is_a_reason(bundle, monkeypatch):
    configuration = Configuration("onnxruntime", "models/int8.onnx", "int8", 1, None)
    monkeypatch.setattr(benchmark, "System", Crashing)
    assert run_probe(bundle, configuration) == "illegal instruction (SIGILL)"
    with pytest.raises(EngineError, match=r"onnxruntime: illegal instruction \(SIGILL\)"):
        sweep(bundle, bench_images(bundle), [configuration], n=10, warmup=1, progress=lambda *_: None)


def test_how_a_process_ended():
    assert Finished(-9, "", "").how == "killed (SIGKILL)"
    assert Finished(-40, "", "").how == "real-time signal 6 (40)"
    system = System(packages={})
    assert system.run([sys.executable, "-c", "import sys; sys.exit(7)"]).how == "exit code 7"
    assert system.run(["/none/such"]).how.startswith("cannot be run: No such file")
    assert system.run([sys.executable, "-c", "input(); import time; time.sleep(60)"]).code == 1, (
        "standard input is empty"
    )
    assert system.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.05).how == "no answer in 0.05 s"


def test_sweep(bundle):
    engine = first_installed(engines_for("tflite"))
    wanted = configurations(bundle.manifest, engines=[engine], threads=[1])
    steps = []
    done = sweep(bundle, bench_images(bundle), wanted, n=13, warmup=1, progress=lambda *step: steps.append(step))
    assert {item.configuration for item in done.rows} == set(wanted) and not done.failed and not done.interrupted
    for item in done.rows:
        assert item.gate and item.eligible and item.probed.golden == "" and item.probed.peak_mib > 10
        assert set(item.parts) == set(PARTS)
        for figures in item.parts.values():
            assert figures.n == 13 and 0 <= figures.p50_ms <= figures.p90_ms <= figures.p99_ms
        assert item.parts["whole"].p50_ms > item.parts["infer"].p50_ms
        json.dumps(item.to_json())
    assert steps == [
        ("opening", 0, 2), ("opening", 1, 2), ("warming up", 0, 2), ("warming up", 1, 2), ("measuring", 0, 26),
        ("measuring", 10, 26), ("measuring", 20, 26), ("measuring", 23, 26), ("measuring", 26, 26),
    ]  # fmt: skip


def test_an_interruption_keeps_the_measurements_and_a_failure_the_others(bundle, monkeypatch):
    monkeypatch.setattr(benchmark, "run_probe", lambda *_: Probed("1", "XNNPACK", 40.0, ""))
    engine = first_installed(engines_for("tflite"))
    wanted = configurations(bundle.manifest, engines=[engine], threads=[1])

    def progress(step, done, total):
        if step == "measuring" and done >= 30:
            raise KeyboardInterrupt

    done = sweep(bundle, bench_images(bundle), wanted, n=100, warmup=1, progress=progress)
    assert done.interrupted and sorted(item.parts["whole"].n for item in done.rows) == [10, 20]
    before = sweep(bundle, bench_images(bundle), wanted, n=100, warmup=1, progress=interrupt)
    assert before.interrupted and before.rows == ()
    fine, broken = wanted[::-1]
    answers = {fine: Probed("1", "XNNPACK", 40.0, ""), broken: "exit code 3"}
    monkeypatch.setattr(benchmark, "run_probe", lambda bundle, item, largest: answers[item])
    rest = sweep(bundle, bench_images(bundle), wanted, n=10, warmup=1, progress=lambda *_: None)
    assert rest.failed == {broken: "exit code 3"} and [item.configuration for item in rest.rows] == [fine]


def interrupt(*_):
    raise KeyboardInterrupt


def test_golden_vectors_that_fail_here_are_reported(bundle, tmp_path):
    from edgecnn.bundle.file import write_bundle

    inputs = bundle.files[bundle.manifest.golden_inputs]
    files = {**bundle.files, bundle.manifest.golden_inputs: inputs[:-64] + bytes(64)}
    write_bundle(tmp_path / "other.edgecnn", bundle.manifest, files)
    engine = first_installed(engines_for("tflite"))
    found = run_probe(
        read_bundle(tmp_path / "other.edgecnn"), Configuration(engine, "models/int8.tflite", "int8", 1, None)
    )
    assert not isinstance(found, str) and found.golden.startswith("it differs by ")


def test_images(bundle, folder):
    notes = []
    golden = bench_images(bundle)
    assert golden.about == "the bundle's golden photos, 8 images of 64x96 to 751x1003 pixels"
    assert golden.at(9) == golden.items[1]
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:100])
    given = bench_images(bundle, [str(folder), "none.jpg"], note=notes.append)
    assert given.about == "given, 3 images of 12x9 pixels" and given.largest == given.names[0]
    damaged, left_out, missing = notes
    assert "cut.jpg: " in damaged and "1 file left out (1 .txt)" in left_out and missing.startswith("none.jpg: ")
    first = bench_images(bundle, [str(folder)], most=1, note=notes.append)
    assert len(first.items) == 1 and notes[-1].startswith("using only the first image, 0.0 MiB; the limits are 1 image")
    assert len(bench_images(bundle, [str(folder)], most=2, note=notes.append).items) == 2
    assert notes[-1].startswith("using only the first 2 images, ")
    for name, size in (("c.bmp", (40, 10)), ("d.bmp", (20, 30))):
        Image.new("RGB", size).save(folder / name)
    several = bench_images(bundle, [str(folder / name) for name in ("c.bmp", "d.bmp", "b.jpg")])
    assert several.about == "given, 3 images of 12x9 to 20x30 pixels" and several.largest.endswith("d.bmp")
    with pytest.raises(ImageError, match=r"none of 'none.jpg' is a readable image"):
        bench_images(bundle, ["none.jpg"])


def test_images_of_a_bundle_without_photos(bundle):
    manifest = dataclasses.replace(bundle.manifest, golden_images=())
    images = bench_images(dataclasses.replace(bundle, manifest=manifest), most=5)
    assert len(images.items) == 5 and isinstance(images.items[0], np.ndarray)
    assert "no decoding or resizing" in images.about


IMAGES = BenchImages("", ("a", "b"), ("a", "b"), "")


@pytest.fixture
def run(monkeypatch, fake_classifier):
    """Run with calls of given durations in seconds, and sensors read at the start and after each window."""

    def call(seconds, sensors, minutes, stop=None):
        passed = [0.0]
        lengths, readings = iter(seconds), iter(sensors)

        def time_call(classifier, image):
            classifier.classify(image)
            length = next(lengths, None)
            if length is None:
                raise KeyboardInterrupt
            passed[0] += length
            return {"whole": length * 1000, "infer": length * 500}

        monkeypatch.setattr(benchmark, "time_call", time_call)
        monkeypatch.setattr(benchmark, "read_sensors", lambda system: next(readings))
        seen = []
        done = benchmark.sustain(
            fake_classifier,
            IMAGES,
            minutes=minutes,
            warmup=1,
            system=System(root=Path("/none"), packages={}),
            report=seen.append,
            clock=lambda: passed[0],
        )
        assert tuple(seen) == done.windows[: len(seen)]
        return done

    return call


def sensors(throttled=None, count=None):
    return Sensors(mhz=1500, celsius=50.0, throttled=throttled, throttle_count=count)


def test_drift_and_windows(run):
    done = run([10] * 6 + [12] * 5 + [15] * 4, [sensors()] * 4, 3)
    assert [(window.start_s, window.seconds, window.whole.n) for window in done.windows] == [
        (0, 60, 6),
        (60, 60, 5),
        (120, 60, 4),
    ]
    assert done.drift == pytest.approx(0.5)
    assert done.windows[2].infer.p50_ms == 7500
    assert done.throttled is None and not done.interrupted
    assert to_json(done)["windows"][1]["sensors"]["mhz"] == 1500


def test_less_than_two_minutes_are_two_windows(run):
    assert [window.seconds for window in run([1] * 60, [sensors()] * 3, 0.5).windows] == [15, 15]


def test_earlier_throttling_does_not_count(run):
    calls = [30] * 4
    assert run(calls, [sensors(0x50000), sensors(0x50000), sensors(0x50000)], 2).throttled == []
    assert run(calls, [sensors(0x10000), sensors(0x10000), sensors(0x50000)], 2).throttled == ["throttled"]
    assert run(calls, [sensors(0), sensors(0x20002), sensors(0x20000)], 2).throttled == ["frequency capped"]
    assert run(calls, [sensors(count=3), sensors(count=3), sensors(count=3)], 2).throttled == []
    assert run(calls, [sensors(count=3), sensors(count=4), sensors(count=4)], 2).throttled == ["throttled"]


def test_an_interruption_keeps_the_measurements(run):
    done = run([20] * 5, [sensors()] * 3, 10)
    assert done.interrupted and [window.seconds for window in done.windows] == [60, 40]
    nothing = run([], [sensors()], 10)
    assert nothing.interrupted and nothing.windows == () and nothing.drift is None


FEW = ("--threads", "1", "--precision", "int8", "--n", "10", "--warmup", "1")


@pytest.fixture
def digits(root):
    return ("--model", root / "models" / "digits" / "digits.edgecnn")


@pytest.fixture
def engine_benchmark_command():
    return ("--engine", next(name for name in engines_for("tflite") if is_installed(name)))


def test_the_table_ends_with_options_that_classify_takes(edgecnn, digits, engine_benchmark_command, folder):
    result = edgecnn("benchmark", *digits, *engine_benchmark_command, "--threads", "2", *FEW[2:])
    assert result.code == 0, result.err
    assert (
        f"{engine_benchmark_command[1]} int8, 2 threads " in result.out
        and "winner: " in result.out
        and "fastest first" in result.out
    )
    assert "the bundle's golden photos, 8 images" in result.err and "measuring (10)" in result.err
    *command, engine_option, name, precision_option, precision, threads_option, threads = result.out.split()
    assert command[-2:] == ["edgecnn", "classify"]
    chosen = (engine_option, name, precision_option, precision, threads_option, threads)
    used = edgecnn("classify", folder / "b.jpg", *digits, *chosen)
    assert (
        used.code == 0 and f"int8 .tflite on {engine_benchmark_command[1]} " in used.err and ", 2 threads)" in used.err
    )


def test_json(edgecnn, digits, engine_benchmark_command, folder):
    result = edgecnn("benchmark", folder / "b.jpg", *digits, *engine_benchmark_command, *FEW, "--json")
    report = json.loads(result.out)
    (one,) = report["configurations"]
    assert one["whole"]["n"] == 10 and one["gate"] is True and one["peak_mib"] > 10
    assert report["winner"]["engine"] == engine_benchmark_command[1] and report["images"]["names"] == [
        str(folder / "b.jpg")
    ]
    assert report["hardware"] and report["versions"]["numpy"] and report["interrupted"] is False


def test_sustained(edgecnn, digits, engine_benchmark_command, monkeypatch):
    """On a clock that advances by 10 ms at each look."""
    from edgecnn.device import benchmark

    seconds = itertools.count(0, 0.01)
    monkeypatch.setattr(benchmark, "sustain", functools.partial(benchmark.sustain, clock=lambda: next(seconds)))
    report = json.loads(edgecnn("benchmark", *digits, *engine_benchmark_command, "--sustained", "0.01", "--json").out)
    assert (
        len(report["windows"]) == 2 and report["drift"] is not None and engine_benchmark_command[1] in report["about"]
    )
    result = edgecnn("benchmark", *digits, *engine_benchmark_command, "--sustained", "0.01")
    assert "drift of p50: " in result.out and result.out.count("p90") == 2


def test_nonsense(edgecnn, digits, monkeypatch):
    for arguments in (
        ("--n", "5"),
        ("--threads", "0"),
        ("--warmup", "0"),
        ("--sustained", "0"),
        ("--sustained", "nan"),
        ("--sustained", "1", "--threads", "1", "--threads", "2"),
    ):
        assert edgecnn("benchmark", *digits, *arguments).code == 2, arguments
    assert edgecnn("benchmark", *digits, "--engine", "litrt").code == UnknownNameError.exit_code
    assert edgecnn("benchmark", *digits, "none.jpg").code == ImageError.exit_code


def test_ctrl_c(root, digits, engine_benchmark_command, spawn):
    endless = ("--precision", "int8", "--threads", "1", "--n", "1000000")
    command = [sys.executable, "-m", "edgecnn", "benchmark", *map(str, digits), *engine_benchmark_command, *endless]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = spawn(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "measuring" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    assert "measured" in out or "int8, 1 thread" in out
