"""The imports of each command: the device must not need packages that it lacks, and must start fast."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

HEAVY = {"tensorflow", "tf_keras", "keras", "onnx", "tf2onnx", "sklearn", "scipy", "matplotlib", "rich", "google"}
ENGINES = {"ai_edge_litert", "tflite_runtime", "onnxruntime"}
CODE = """
import json, sys
from edgecnn.cli import main
for command in json.load(sys.stdin):
    sys.argv = ["edgecnn", *command]
    try:
        main()
    except SystemExit as ended:
        loaded = [name for name in sys.modules if "." not in name or name.startswith("edgecnn.")]
        print(json.dumps([ended.code, loaded]), file=sys.stderr)
"""
WORKSTATION = {
    f"edgecnn.{name}"
    for name in ("stages", "report", "verify", "export", "train", "networks", "data", "runs", "recipe")
}


@pytest.fixture
def modules(root, tmp_path):
    """Run commands one after another in a new process; return the modules that were loaded after each."""

    def call(*commands):
        environment = {**os.environ, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", CODE],
            input=json.dumps([list(map(str, command)) for command in commands]),
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        ends = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
        assert [code for code, _ in ends] == [0] * len(commands), done.stderr
        return [set(loaded) for _, loaded in ends]

    return call


def test_help_imports_no_engine_nor_numpy(modules):
    pages = ((name, "--help") for name in ("classify", "explain", "selftest"))
    *_, loaded, targets = modules(("--version",), ("--help",), *pages, ("targets",))
    assert not targets & (HEAVY | ENGINES | {"numpy", "PIL"}) and "edgecnn.boards" in targets
    settings = {"edgecnn.device", "edgecnn.device.stream", "edgecnn.device.stream.settings", "edgecnn.device.system"}
    device = {name for name in loaded if name.startswith(("edgecnn.runtime", "edgecnn.bundle", "edgecnn.device"))}
    assert device <= settings, "flags need only the settings, and no other device module"


SERVER = {"starlette", "uvicorn", "prometheus_client", "h11", "anyio", "asyncio", "http"}


def test_each_command_imports_one_engine_no_workstation_and_only_what_it_uses(modules, root, tmp_path):
    """A server runs in another process."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    model = ("--model", root / "models" / "digits" / "digits.edgecnn")
    stream = ("classify", "synthetic:8x8?frames=20", *model)
    serving = [(*stream, "--http", "0")] if importlib.util.find_spec("uvicorn") else []
    classify, streamed, *served, explain = modules(
        ("classify", "photo.jpg", "--json", *model), stream, *serving, ("explain", "photo.jpg", "--json", *model)
    )
    assert not explain & (HEAVY | SERVER | WORKSTATION) and len(explain & ENGINES) == 1, "nor the ones before"
    commands = ("workstation_options", "recipes", "classify_stream", "help")
    assert not classify & {
        f"edgecnn.{name}" for name in ("device.mqtt", "device.http", *(f"cli.{name}" for name in commands))
    }
    assert not classify & {"zipfile", "tempfile", "tomllib", "importlib_metadata"}, "a fast start imports none of these"
    assert "edgecnn.cli.classify_stream" in streamed and not streamed & {"paho", "ssl"}
    assert not [name for name in streamed if "mqtt" in name or ".http" in name]
    for loaded in served:
        assert "edgecnn.device.http.live" in loaded and not loaded & SERVER


def test_the_package_itself_imports_nothing(root):
    code = "import sys; before = set(sys.modules); import edgecnn; print(sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert result.stdout.strip() == "['edgecnn']"
