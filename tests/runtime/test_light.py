"""The imports of each command: the device must not need packages that it lacks, and must start fast."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = {"tensorflow", "tf_keras", "keras", "onnx", "tf2onnx", "sklearn", "scipy", "matplotlib", "rich", "google"}
ENGINES = {"ai_edge_litert", "tflite_runtime", "onnxruntime"}
CODE = """
import sys
from edgecnn.cli import main
sys.argv[0] = "edgecnn"
try:
    main()
finally:
    import json
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def modules(root, tmp_path):
    """Run a command in a new process; return its exit code and the modules that it loaded."""

    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        result = subprocess.run(
            [sys.executable, "-c", CODE, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        loaded = set(json.loads(result.stderr.splitlines()[-1]))
        return result.returncode, {name for name in loaded if "." not in name or name.startswith("edgecnn.")}

    return call


@pytest.mark.parametrize(
    "arguments", [("--help",), ("classify", "--help"), ("explain", "--help"), ("selftest", "--help"), ("--version",)]
)
def test_help_imports_no_engine_nor_numpy(modules, arguments):
    code, loaded = modules(*arguments)
    assert code == 0
    assert not loaded & (HEAVY | ENGINES | {"numpy", "PIL"})
    settings = {"edgecnn.device", "edgecnn.device.stream", "edgecnn.device.stream.settings", "edgecnn.device.secrets"}
    device = {name for name in loaded if name.startswith(("edgecnn.runtime", "edgecnn.bundle", "edgecnn.device"))}
    assert device <= settings, "flags need only the settings, and no other device module"


def test_classify_imports_one_engine_and_no_workstation(modules, root, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    code, loaded = modules("classify", "photo.jpg", "--json", "--model", root / "models" / "digits" / "digits.edgecnn")
    assert code == 0
    assert not loaded & HEAVY
    assert len(loaded & ENGINES) == 1
    workstation = (
        "pipeline",
        "report",
        "verify",
        "export",
        "train",
        "networks",
        "data",
        "runs",
        "recipe",
        "cli.workstation_options",
        "cli.recipes",
        "cli.classify_stream",
        "cli.mqtt",
        "device.mqtt",
        "device.http",
        "cli.help",
    )
    assert not loaded & {f"edgecnn.{name}" for name in workstation}
    assert not loaded & {"zipfile", "tempfile", "tomllib", "importlib_metadata"}, "a fast start imports none of these"


def test_explain_imports_one_engine_and_no_workstation(modules, root, tmp_path):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    code, loaded = modules("explain", "photo.jpg", "--json", "--model", root / "models" / "digits" / "digits.edgecnn")
    assert code == 0
    assert not loaded & HEAVY
    assert len(loaded & ENGINES) == 1
    workstation = ("pipeline", "report", "verify", "export", "train", "networks", "data", "runs", "recipe")
    assert not loaded & {f"edgecnn.{name}" for name in workstation}


def test_a_stream_imports_nothing_of_mqtt_unless_it_has_a_broker(modules, root):
    code, loaded = modules(
        "classify", "synthetic:8x8?frames=1", "--model", root / "models" / "digits" / "digits.edgecnn"
    )
    assert code == 0 and "edgecnn.cli.classify_stream" in loaded
    assert not loaded & (HEAVY | {"paho", "ssl"})
    assert not [name for name in loaded if "mqtt" in name]


SERVER = {"starlette", "uvicorn", "prometheus_client", "h11", "anyio", "asyncio", "http"}


def test_a_stream_imports_nothing_of_a_server_unless_it_has_one_and_then_in_another_process(modules, root):
    stream = ("classify", "synthetic:8x8?frames=20", "--model", root / "models" / "digits" / "digits.edgecnn")
    code, loaded = modules(*stream)
    assert code == 0 and not loaded & SERVER
    assert not [name for name in loaded if ".http" in name]
    pytest.importorskip("uvicorn", reason="serving needs the http extra")
    code, loaded = modules(*stream, "--http", "0")
    assert code == 0 and "edgecnn.device.http.live" in loaded and not loaded & SERVER


def test_targets_imports_neither_engine_nor_numpy(modules):
    code, loaded = modules("targets")
    assert code == 0
    assert not loaded & (HEAVY | ENGINES | {"numpy"})


def test_the_package_itself_imports_nothing(root):
    code = "import sys; before = set(sys.modules); import edgecnn; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "['edgecnn']"
