"""Home Assistant Core itself with the configuration from docs/http.md: the state, the temperature, and the camera's picture."""

import base64
import io
import json
import re
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[3] / ".venv-home-assistant" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="Home Assistant is not installed: make .venv-home-assistant/.done"),
]
TOKEN = "correct-horse-battery-staple"


@pytest.fixture
def home(serve, spawn, root, tmp_path):
    """Start Home Assistant and a board with a camera; return the board, and a function for Home Assistant's lines so far."""

    def start(password):
        (tmp_path / "token").write_text(TOKEN)
        board = serve("synthetic:64x48?fps=5", "--http-token-file", str(tmp_path / "token"))
        blocks = re.findall(r"```text\n(.*?)```", (root / "docs/http.md").read_text(), re.DOTALL)
        block = next(block for block in blocks if block.startswith("rest:"))
        written = block.replace("http://raspberrypi.local:8080", board.url).replace("interval: 10", "interval: 1")
        (tmp_path / "configuration.yaml").write_text(written)
        (tmp_path / "secrets.yaml").write_text(f"edgecnn_token: {password}\n")
        advanced = {"framerate": 2, "verify_ssl": True, "authentication": "basic"}
        camera = {"still_image_url": f"{board.url}/v1/frame.jpg", "username": "edgecnn", "password": password}
        what = json.dumps({"camera": {**camera, "advanced": advanced}})
        with (tmp_path / "lines").open("w") as out, (tmp_path / "errors").open("w") as errors:
            process = spawn(
                [PYTHON, Path(__file__).parents[1] / "home_assistant.py", tmp_path, what], stdout=out, stderr=errors
            )

        def lines():
            assert process.poll() is None, (tmp_path / "errors").read_text()
            text = (tmp_path / "lines").read_text()
            return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

        board.until(lambda: any("ready" in line for line in lines()), 120)
        return board, lines

    return start


def test_the_state_and_the_picture(home):
    from PIL import Image

    board, lines = home(TOKEN)

    def state(entity):
        return [line["state"] for line in lines() if line.get("entity") == entity][-1:]

    label = board.until(lambda: board.state(Authorization=f"Bearer {TOKEN}")["state"])
    board.until(lambda: state("sensor.door") == [label])
    attributes = next(line["attributes"] for line in lines() if line.get("entity") == "sensor.door")
    assert attributes["top"][0]["label"] == label and attributes["since"] > 0
    picture = next(line for line in lines() if "picture" in line)
    assert picture["type"] == "image/jpeg"
    assert Image.open(io.BytesIO(base64.b64decode(picture["picture"]))).size == (64, 48)
    warned = [line["warning"] for line in lines() if "warning" in line and "turbojpeg" not in line["warning"]]
    assert not warned, "and this machine has no temperature"
    board.process.kill()
    board.until(lambda: state("sensor.door") == ["unavailable"])


def test_a_wrong_token_is_an_error_in_the_form(home):
    _, lines = home("a guess that is long enough")
    assert [line["refused"] for line in lines() if "refused" in line] == [{"still_image_url": "unable_still_load_auth"}]
    states = {line["state"] for line in lines() if line.get("entity") == "sensor.door"}
    assert states <= {"unknown", "unavailable"}
