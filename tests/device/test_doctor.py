"""`edgecnn doctor` on fake machines, each with one fault."""

import json
import subprocess
import sys

import pytest

from edgecnn.device.cameras.listing import Camera, CameraList
from edgecnn.device.doctor import (
    CHECKS,
    PACKAGES,
    SEVERITIES,
    Diagnosis,
    Finding,
    examine,
    require_healthy,
    version_tuple,
)
from edgecnn.device.system import Space, packages
from edgecnn.errors import BundleError, DoctorError
from edgecnn.runtime.child import Finished
from edgecnn.runtime.engines import ENGINES, is_installed

PI_4 = {
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\n",
    "proc/meminfo": "MemTotal:        3884360 kB\nMemAvailable:    3400000 kB\n",
    "sys/class/thermal/thermal_zone0/temp": "48686",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/devices/platform/soc/soc:firmware/get_throttled": "0",
}
RIGHT = {
    "python": (3, 11, 2),
    "machine": "aarch64",
    "bits": 64,
    "libc": ("glibc", "2.36"),
    "packages": {
        **{"numpy": "2.4.6", "ai-edge-litert": "2.3.0", "typer": "0.28.0"},
        **{"starlette": "1.10.0", "uvicorn": "0.54.0", "prometheus-client": "0.26.0"},
    },
    "environ": {"HOME": "/home/pi"},
    "cwd": "/home/pi",
}
ROW = {
    "engine": "litert",
    "model": "models/int8.tflite",
    "version": "2.3.0",
    "provider": "XNNPACK",
    "passed": True,
    "note": "",
}
ROW |= {"largest_difference": 0.0, "allowed": 1.0, "unit": "LSB"}
WHOLE = {"bundle": "/b.edgecnn", "reason": "installed", "sha256": "a" * 64, "layers": [], "rows": [ROW]}
WEBCAM = Camera(device="/dev/video0", name="HD Webcam")
PROGRAMS = {"rpicam-vid": "/usr/bin/rpicam-vid", "libcamera-vid": None, "ffmpeg": "/usr/bin/ffmpeg"}


def software(selftest=None, cameras=None):
    """Fake output of Python for `edgecnn selftest` and `edgecnn cameras`."""
    selftest = selftest or Finished(0, json.dumps(WHOLE), "")
    cameras = cameras or listed(WEBCAM)
    return {sys.executable: lambda command: cameras if "cameras" in command else selftest}


def listed(*cameras, programs=PROGRAMS):
    """The output of `edgecnn cameras --json` for these cameras."""
    return Finished(0, json.dumps(CameraList(cameras=cameras, programs=programs).to_json()), "")


@pytest.fixture
def pi(machine):
    """A healthy Raspberry Pi 4, except for the given faults."""

    def make(files=None, answers=None, **settings):
        return machine({**PI_4, **(files or {})}, {**software(), **(answers or {})}, **RIGHT | settings)

    return make


def found(system, check, severity=None):
    """Return the findings of a check as text: result, means, fix."""
    return ["\n".join(item[1:]) for item in CHECKS[check](system) if severity in (None, item.severity)]


def test_a_healthy_board(pi):
    diagnosis = examine(pi())
    assert list(dict.fromkeys(name for name, _ in diagnosis.findings)) == list(CHECKS)
    wrong = [(name, item) for name, item in diagnosis.findings if item.severity in ("warning", "error")]
    assert wrong == []
    require_healthy(diagnosis)
    notes = [item.result for _, item in diagnosis.findings if item.severity == "note"]
    assert notes == ["no LSE atomics", "no dot-product instructions (asimddp)"]


def test_every_problem_has_a_meaning(pi):
    """On a board with a dozen faults, every finding has a meaning and every error a fix."""
    wrong = pi(
        {"sys/devices/platform/soc/soc:firmware/get_throttled": "f000f", "proc/meminfo": "MemAvailable: 1000 kB\n"},
        software(Finished(-4, "", "")),
        python=(3, 9, 2),
        bits=32,
        packages={"tflite-runtime": "2.14.0", "numpy": "2.0", "typer": "0.29.2"},
    )
    diagnosis = examine(wrong)
    assert diagnosis.count("error") >= 4 and diagnosis.count("warning") >= 3
    for name, item in diagnosis.findings:
        assert item.severity in SEVERITIES
        assert item.severity == "ok" or item.means, (name, item)
        assert item.severity not in ("warning", "error") or item.fix, (name, item)
    with pytest.raises(DoctorError, match="python, architecture, versions, bundle, engines"):
        require_healthy(diagnosis)


def test_a_pi_3_with_32_bit_user_land(pi):
    model = {"proc/device-tree/model": "Raspberry Pi 3 Model B Rev 1.2\0"}
    (text,) = found(pi(model, bits=32, libc=("glibc", "2.31")), "architecture", "error")
    assert (
        "Raspberry Pi 3" in text
        and "32-bit Python under a 64-bit kernel (aarch64)" in text
        and "64-bit Raspberry Pi OS" in text
    )
    (text,) = found(pi(machine="armv7l", bits=32), "architecture", "error")
    assert "no inference engine has a wheel" in text and "64-bit Raspberry Pi OS" in text
    assert found(pi(bits=32), "glibc") == [], "said once"
    assert found(pi(), "architecture", "ok")


def test_c_library(pi):
    """Each engine works from its own version on; what the others need is a note as long as LiteRT works."""
    for libc, severity, ending in (
        (("glibc", "2.34"), "ok", "glibc 2.34"),
        (("glibc", "2.33"), "note", "do not: tflite-runtime needs 2.34"),
        (("glibc", "2.28"), "note", "do not: tflite-runtime needs 2.34"),
        (("glibc", "2.27"), "note", "do not: tflite-runtime needs 2.34, ONNX Runtime needs 2.28"),
        (
            ("glibc", "2.26"),
            "error",
            "newer one: LiteRT needs 2.27, tflite-runtime needs 2.34, ONNX Runtime needs 2.28",
        ),
        (("", ""), "error", "cannot load them"),
    ):
        (told,) = found(pi(libc=libc), "glibc", severity)
        means = told.split("\n")[1] or told.split("\n")[0]
        assert means.endswith(ending), libc
    (told,) = found(pi(libc=("glibc", "2.26"), machine="x86_64"), "glibc", "error")
    assert "LiteRT needs 2.27, ONNX Runtime needs 2.28\n" in told, "tflite-runtime needs only 2.17 there"


def test_processors(pi):
    assert found(pi({"proc/cpuinfo": "Features : atomics asimddp\n"}), "processor", "ok")
    for has, lacks in (("atomics", "no dot-product instructions"), ("asimddp", "no LSE atomics")):
        (text,) = found(pi({"proc/cpuinfo": f"Features : {has}\n"}), "processor")
        assert text.startswith(lacks)
    x86 = {"machine": "x86_64"}
    (text,) = found(pi({"proc/cpuinfo": "flags : sse2 avx2\n"}, **x86), "processor", "note")
    assert "session.x64quantprecision" in text
    assert found(pi({"proc/cpuinfo": "flags : avx2 avx_vnni\n"}, **x86), "processor", "ok")
    assert found(pi({"proc/cpuinfo": ""}), "processor") == []


def test_numpy_2_with_tflite_runtime(pi):
    both = {"numpy": "2.0.1", "tflite-runtime": "2.14.0"}
    (text,) = found(pi(packages=both), "versions", "error")
    assert "numpy 2.0.1 with tflite-runtime 2.14.0" in text and "pip install 'numpy<2'" in text
    assert found(pi(packages=both | {"numpy": "1.26.4"}), "versions", "ok")


def test_onnxruntime_that_crashes_only_on_a_pi_4(pi):
    old = {"onnxruntime": "1.21.1"}
    (text,) = found(pi(packages=old), "versions", "error")
    assert "illegal instruction" in text and "onnxruntime>=1.22" in text
    assert found(pi({"proc/cpuinfo": "Features : atomics\n"}, packages=old), "versions", "ok")
    for package, version, severity in (
        ("onnxruntime", "1.20.9", "ok"), ("onnxruntime", "1.21.0", "error"), ("onnxruntime", "1.22.0", "ok"),
        ("typer", "0.28.9", "ok"), ("typer", "0.29.0", "warning"),
    ):  # fmt: skip
        assert found(pi(packages={package: version}), "versions", severity), (package, version)


def test_an_under_volted_pi_4(pi):
    (text,) = found(pi({"sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n"}), "power", "warning")
    assert "now: under-voltage, throttled; since boot: under-voltage, throttled (0x50005)" in text
    assert "power supply" in text
    (text,) = found(pi({"sys/devices/platform/soc/soc:firmware/get_throttled": "80000"}), "power", "note")
    assert "since boot: soft temperature limit" in text and "cool it" in text
    for flags, severity in ((0x4, "warning"), (0x40000, "note"), (0x1, "warning"), (0x10000, "warning"), (0, "ok")):
        throttled = {"sys/devices/platform/soc/soc:firmware/get_throttled": f"{flags:x}"}
        assert len(found(pi(throttled), "power", severity)) == 1, "what is over matters only if it was under-voltage"


def test_a_pi_that_does_not_report_its_power(machine):
    assert found(machine({"proc/device-tree/model": "Raspberry Pi 5\0"}), "power", "note")
    assert found(machine({}), "power") == [], "other machines have no such flags"


def test_heat_memory_and_clock(pi):
    (text,) = found(pi({"sys/class/thermal/thermal_zone0/temp": "84260"}), "temperature", "warning")
    assert text.startswith("84.3 °C\nabove about 80 °C")
    (text,) = found(pi({"proc/meminfo": "MemTotal: 437000 kB\nMemAvailable:   50000 kB\n"}), "memory", "warning")
    assert "48 MiB available of 426 MiB" in text
    (text,) = found(pi(seconds=0.0), "clock", "error")
    assert "1970-01-01" in text and "TLS" in text and "timedatectl" in text
    assert found(pi(), "clock", "ok")
    assert "not synchronized" in found(pi(None, {"timedatectl": Finished(0, "no\n", "")}), "clock", "note")[0]
    assert found(pi(None, {"timedatectl": Finished(0, "yes\n", "")}), "clock", "ok")


def test_a_figure_at_its_limit(pi):
    """96 MiB of memory are enough, 80 degrees are hot, 2026 is a date, and Python is at least 3.11 and below 3.14."""

    def severities(check, *machines):
        return [next(name for name in SEVERITIES if found(system, check, name)) for system in machines]

    memory = [pi({"proc/meminfo": f"MemTotal: 3884360 kB\nMemAvailable: {kib} kB\n"}) for kib in (98304, 98303)]
    assert severities("memory", *memory) == ["ok", "warning"]
    heat = [pi({"sys/class/thermal/thermal_zone0/temp": text}) for text in ("79999", "80000")]
    assert severities("temperature", *heat) == ["ok", "warning"]
    clocks = [pi(seconds=seconds) for seconds in (1_767_225_599, 1_767_225_600)]
    assert severities("clock", *clocks) == ["error", "ok"]
    pythons = [pi(python=version) for version in ((3, 10, 14), (3, 11, 0), (3, 13, 9), (3, 14, 0))]
    assert severities("python", *pythons) == ["error", "ok", "ok", "error"]


def test_disks(pi):
    for space, severity, text in (
        (Space(2**30, False), "ok", "1,024 MiB"),
        (Space(2**30, True), "warning", "remount,rw"),
        (Space(50 * 2**20, False), "ok", ": 50 MiB free"),
        (Space(50 * 2**20 - 1, False), "warning", "little"),
        (Space(2**20, False), "warning", ": 1 MiB free"),
        (Space(2**20 - 1, False), "error", "no space"),
    ):
        told = found(pi(disk=space), "disk", severity)
        assert len(told) == 3 and all(text in item for item in told)
        places = [item.partition(")")[0] for item in told]
        assert places == ["/home/pi (results", "/home/pi/.local/state (state", "/tmp (temporary files"]
    own = {"HOME": "/home/pi", "XDG_STATE_HOME": "/srv/state", "TMPDIR": "/srv/tmp"}
    assert [item.split()[0] for item in found(pi(environ=own), "disk")] == ["/home/pi", "/srv/state", "/srv/tmp"]


def test_a_machine_without_a_camera(pi):
    bare = listed(programs=dict.fromkeys(PROGRAMS))
    told = found(pi(None, software(cameras=bare)), "cameras", "note")
    assert [text.splitlines()[0] for text in told] == ["no rpicam-vid", "no ffmpeg", "no usable camera"]
    assert "apt install rpicam-apps-lite" in told[0] and "apt install ffmpeg" in told[1]
    assert "no camera is connected" in told[2]
    elsewhere = pi({"proc/device-tree/model": ""}, software(cameras=bare))
    assert len(found(elsewhere, "cameras", "note")) == 2, "other boards have no CSI connector"


def test_cameras_match_edgecnn_cameras(pi):
    """A node that is refused there is also a problem here: unicam has pictures, but delivers none by itself."""
    part = "part of a camera's pipeline (driver unicam), not a camera by itself. Install rpicam-apps and use --camera."
    unicam = Camera(device="/dev/video1", name="unicam-image", problem=part, is_camera=False)
    forbidden = Camera(device="/dev/video2", problem="no permission: it belongs to the group video.")
    system = pi(None, software(cameras=listed(unicam)))
    assert not any("/dev/video" in text for text in found(system, "cameras", "ok"))
    (text,) = found(system, "cameras", "note")
    assert "no usable camera" in text and f"/dev/video1: {part}" in text
    system = pi(None, software(cameras=listed(WEBCAM, unicam, forbidden)))
    assert found(system, "cameras", "ok")[-1].startswith("/dev/video0 (HD Webcam)")
    assert found(system, "cameras", "note") == [], "codecs and the like are not reported if there is a camera"
    (text,) = found(system, "cameras", "warning")
    assert text.startswith("/dev/video2\nit cannot be used: no permission: it belongs to the group video.")


def test_a_camera_in_use_by_edgecnn_is_fine(pi):
    problem = "in use by edgecnn (process 278). End that process, or use another camera."
    system = pi(None, software(cameras=listed(Camera(device="/dev/video0", name="HD Webcam", problem=problem))))
    assert found(system, "cameras", "ok")[-1].strip() == "/dev/video0 (HD Webcam): in use by edgecnn (process 278)"
    assert found(system, "cameras", "warning") == []


def test_a_listing_of_cameras_that_fails(pi):
    for answer, text in (
        (Finished(-11, "", ""), "segmentation fault (SIGSEGV)"),
        (Finished(None, "", "no answer in 60 s"), "no answer in 60 s"),
        (Finished(1, "", "ImportError: no numpy"), "exit code 1: ImportError: no numpy"),
    ):
        (finding,) = found(pi(None, software(cameras=answer)), "cameras")
        assert finding.splitlines()[0] == f"edgecnn cannot list the cameras: {text}"


def test_an_engines_capabilities(pi):
    for answer, severity, text in (
        (Finished(None, "", "no answer in 360 s"), "error", "no answer in 360 s"),
        (Finished(-4, "", ""), "error", "litert: illegal instruction (SIGILL)"),
        (
            Finished(1, "", "Traceback\nImportError: libfoo.so: cannot open"),
            "error",
            "exit code 1: ImportError: libfoo.so",
        ),
        (
            Finished(18, json.dumps({"rows": [ROW | {"passed": False, "largest_difference": 3.0}]}), "x"),
            "error",
            "differs by 3 LSB; 1 is",
        ),
        (
            Finished(18, json.dumps({"rows": [ROW | {"passed": False, "note": "refused"}]}), "x"),
            "error",
            "cannot run the bundle's model",
        ),
        (Finished(1, json.dumps({"rows": [ROW]}), "Traceback\nKeyError: 'x'"), "error", "exit code 1: KeyError: 'x'"),
        (Finished(0, "", ""), "error", "litert: "),
        (Finished(18, json.dumps({"rows": [ROW | {"engine": ""}]}), ""), "note", "no model for it"),
        (Finished(15, "", "edgecnn: error: damaged"), "note", "not tried"),
        (
            Finished(0, json.dumps({"rows": [ROW]}), ""),
            "ok",
            "litert 2.3.0 (XNNPACK) reproduces the bundle's answers with 1 model\n",
        ),
        (
            Finished(0, json.dumps({"rows": [ROW, ROW | {"engine": "onnxruntime"}, ROW]}), ""),
            "ok",
            "answers with 2 models\n",
        ),
        (
            Finished(
                18, json.dumps({"rows": [ROW, ROW | {"model": "b", "passed": False, "largest_difference": 2.5}]}), ""
            ),
            "error",
            "litert: b: it differs by 2.5 LSB; 1 is allowed",
        ),
    ):
        (told,) = found(pi(None, software(answer)), "engines", severity)
        assert text in told


def test_no_engine(pi):
    (text,) = found(pi(packages={}), "engines", "error")
    assert "pip install ai-edge-litert" in text


def test_bundles(pi):
    assert "installed" in found(pi(), "bundle", "ok")[0]
    refused = Finished(BundleError.exit_code, "", "edgecnn: error: cannot use the bundle x: it is truncated.\n")
    assert found(pi(None, software(refused)), "bundle", "error")[0].startswith(
        "cannot use the bundle x: it is truncated."
    )
    broken = Finished(1, "", "ImportError: no numpy")
    assert "ImportError: no numpy" in found(pi(None, software(broken)), "bundle", "error")[0]
    layers = [{"layer": "decode", "passed": False}, {"layer": "resize", "passed": True}]
    other = Finished(18, json.dumps(WHOLE | {"layers": layers}), "")
    assert "golden photos differ after decode" in found(pi(None, software(other)), "bundle", "error")[0]


def test_every_engine_is_known():
    assert PACKAGES.keys() == ENGINES.keys()
    here = packages()
    for name, names in PACKAGES.items():
        assert is_installed(name) == any(item in here for item in names)


def test_versions_are_compared_by_numbers():
    assert version_tuple("1.21.0rc1") == (1, 21, 0) and version_tuple("2.14") == (2, 14) and version_tuple("dev") == ()
    assert version_tuple("1.9") < version_tuple("1.21")


def test_one_error_is_one_error():
    with pytest.raises(DoctorError, match=r"^1 error in: disk\. Fix the errors .*: edgecnn doctor"):
        require_healthy(Diagnosis((("disk", Finding("error", "full")), ("disk", Finding("ok", "fine")))))


needs_engine = pytest.mark.skipif(not any(map(is_installed, ENGINES)), reason="no engine is installed")


@needs_engine
def test_command(root, edgecnn, tmp_path, monkeypatch):
    result = edgecnn("doctor", "--json", "--model", root / "models" / "digits" / "digits.edgecnn")
    report = json.loads(result.out)
    tried = [item for item in report["findings"] if item["check"] == "engines"]
    assert [item["severity"] for item in tried] == ["ok"] * sum(map(is_installed, ENGINES))
    assert result.code == (DoctorError.exit_code if report["counts"]["error"] else 0)
    for check in CHECKS.keys() - {"bundle", "disk"}:  # they have just run
        monkeypatch.delitem(CHECKS, check)
    (tmp_path / "bad.edgecnn").write_bytes(b"PK\x03\x04 no")
    result = edgecnn("doctor", "--quiet", "--model", "bad.edgecnn")
    assert result.code == DoctorError.exit_code and "error    bundle" in result.out and "fix: " in result.out
    assert "\nok " not in result.out and result.err


def test_it_needs_neither_numpy_nor_an_engine_in_its_own_process(root):
    code = (
        "import sys; from edgecnn.device.doctor import CHECKS; import edgecnn.cli.doctor\n"
        "print([name for name in ('numpy', 'PIL', 'ai_edge_litert', 'onnxruntime') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout.strip() == "[]"


def test_the_services_page_needs_its_packages(pi):
    (text,) = found(pi(), "page", "ok")
    assert text.strip() == "starlette 1.10.0, uvicorn 0.54.0, prometheus-client 0.26.0 for the page"
    some = {"starlette": "0.46.1"}
    (text,) = found(pi(packages=some), "page", "note")
    assert "no uvicorn, prometheus-client" in text and "apt install python3-uvicorn python3-prometheus-client" in text
    assert found(pi({"etc/edgecnn/service.toml": "http = "}, packages=some), "page", "note")
    (text,) = found(pi({"etc/edgecnn/service.toml": 'http = "8080"'}, packages=some), "page", "warning")
    assert "/etc/edgecnn/service.toml requests a page, but edgecnn cannot serve it" in text
