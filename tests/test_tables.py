"""Nested tables, and the machines that train together."""

import json
import os
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Annotated, Any, Literal

import pytest

from edgecnn.errors import ClusterError
from edgecnn.run_info import StartedFrom
from edgecnn.tables import Struct, build, key, leaves, to_json
from edgecnn.train import TF_CONFIG, Workers, read_workers


class Lens(Struct):
    focal_mm: float = key(low=1)
    name: str = "plain"

    def __post_init__(self):
        if self.focal_mm == 13:
            raise ValueError("no lens has that")


@dataclass(frozen=True, kw_only=True)
class Camera:
    pixels: int = key(low=1, high=100)
    colour: str = key("rgb", choices=("rgb", "grey"))
    lens: Lens | None = None
    spares: tuple[Lens, ...] = ()
    tags: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    mount: Literal["ef", "rf"] = "ef"
    sealed: bool = False
    corners: tuple[Annotated[float, "mm"], float] | None = key(None, left_out=True)
    weight: Annotated[float, "g"] | None = key(None, left_out=True)


def test_every_kind_of_value():
    table = {
        "pixels": 5,
        "lens": {"focal_mm": 35},
        "spares": [{"focal_mm": 50.5, "name": "long"}],
        "tags": ["a", "b"],
        "notes": {"x": "y"},
        "anything": {"x": [1, None]},
        "mount": "rf",
        "sealed": True,
        "corners": [1, 2.5],
        "weight": 80,
    }
    camera = build(Camera, table, ValueError)
    assert camera.lens == Lens(focal_mm=35.0) and type(camera.lens.focal_mm) is float
    assert camera.spares == (Lens(focal_mm=50.5, name="long"),)
    assert (camera.colour, camera.tags, camera.notes) == ("rgb", ("a", "b"), {"x": "y"})
    assert camera.anything == {"x": [1, None]}
    assert (camera.mount, camera.sealed, camera.corners, camera.weight) == ("rf", True, (1.0, 2.5), 80.0)
    written = to_json(camera)
    assert json.loads(json.dumps(written)) == written and build(Camera, written, ValueError) == camera
    assert build(Camera, {"pixels": 1, "lens": None}, ValueError).lens is None
    limits = build(Camera, {"pixels": 100, "lens": {"focal_mm": 1}}, ValueError)
    assert (limits.pixels, limits.lens.focal_mm) == (100, 1.0), "both ends are allowed"


INVALID = (
    (3, "cam: must be a table, received 3"),
    ({}, "cam: the key pixels is missing"),
    ({"pixels": 1, "color": "rgb"}, "cam: unknown key color. Did you mean 'colour'? Known: "),
    ({"pixels": 1, "focal_mm": 3}, "cam: unknown key focal_mm. Did you mean lens.focal_mm?"),
    ({"pixels": 1, "a\x1b\u202e b": 3}, r"cam: unknown key 'a\x1b\u202e b'. "),
    ({"pixels": 1, "x" * 1000: 3}, "cam: unknown key 'xxx"),
    ({"pixels": True}, "cam: pixels must be a whole number, received True"),
    ({"pixels": 0}, "cam: pixels must be between 1 and 100, received 0"),
    ({"pixels": 101}, "cam: pixels must be between 1 and 100, received 101"),
    ({"pixels": 1, "colour": "x" * 1000}, f"cam: colour must be one of rgb, grey; received '{'x' * 76}..."),
    ({"pixels": 1, "lens": 3}, "cam: lens must be a table, received 3"),
    ({"pixels": 1, "lens": {}}, "cam: the key lens.focal_mm is missing"),
    ({"pixels": 1, "lens": {"focal_mm": 0.5}}, "cam: lens.focal_mm must be at least 1, received 0.5"),
    ({"pixels": 1, "lens": {"focal_mm": 10**400}}, "cam: lens.focal_mm must be finite, received inf"),
    ({"pixels": 1, "spares": [{"focal_mm": 1}, 2]}, "cam: spares[1] must be a table, received 2"),
    ({"pixels": 1, "tags": "a"}, "cam: tags must be an array, received 'a'"),
    ({"pixels": 1, "tags": ["a", 1]}, "cam: tags[1] must be a string, received 1"),
    ({"pixels": 1, "notes": {"x": 1}}, "cam: notes.x must be a string, received 1"),
    ({"pixels": 1, "mount": "f"}, "cam: mount must be one of ef, rf; received 'f'"),
    ({"pixels": 1, "mount": None}, "cam: mount must be a string, received None"),
    ({"pixels": 1, "sealed": 1}, "cam: sealed must be a boolean, received 1"),
    ({"pixels": 1, "corners": [1]}, "cam: corners must be an array of 2, received [1]"),
    ({"pixels": 1, "corners": [1, "a"]}, "cam: corners[1] must be a number, received 'a'"),
    ({"pixels": 1, "weight": "a"}, "cam: weight must be a number, received 'a'"),
)


def test_invalid_values_are_named():
    for table, message in INVALID:
        with pytest.raises(ValueError) as error:
            build(Camera, table, ValueError, "cam")
        text = str(error.value)
        assert text.startswith(message) and len(text) < 300 and text.isprintable(), message


def test_exact_tables_have_every_key_and_jsons_types():
    whole = {"focal_mm": 1.0, "name": "n"}
    assert build(Lens, whole, KeyError, exact=True) == Lens(focal_mm=1.0, name="n")
    for table, message in (
        ({"focal_mm": 1.0}, "name"),
        ({"focal_mm": 1, "name": "n"}, "with a decimal point"),
        ([], "an object"),
    ):
        with pytest.raises(KeyError) as error:
            build(Lens, table, KeyError, exact=True)
        assert message in error.value.args[0]


def test_omitted_keys_are_not_written_and_not_required():
    camera = Camera(pixels=1)
    assert "corners" not in to_json(camera) and "colour" in to_json(camera)
    assert build(Camera, to_json(camera), ValueError, exact=True) == camera


def test_a_licence_is_written_only_if_there_is_one():
    started = StartedFrom(run="cats", sha256="0" * 64)
    assert to_json(started) == {"run": "cats", "sha256": "0" * 64}
    assert to_json(replace(started, licence="MIT"))["licence"] == "MIT"


def test_leaves_are_dotted():
    assert [name for name, _ in leaves(Camera)][:4] == ["pixels", "colour", "lens.focal_mm", "lens.name"]


def test_a_struct_is_a_frozen_dataclass():
    lens = Lens(name="wide", focal_mm=24)
    assert repr(lens) == "Lens(focal_mm=24, name='wide')"
    assert lens == replace(Lens(focal_mm=35, name="wide"), focal_mm=24) != Lens(focal_mm=24)
    assert {lens: 1}[Lens(focal_mm=24, name="wide")]
    with pytest.raises(FrozenInstanceError):
        lens.name = "long"
    with pytest.raises(TypeError, match="Lens needs the field 'focal_mm'"):
        Lens()
    with pytest.raises(TypeError, match=r"Lens has no field 'focal'\. Did you mean 'focal_mm'"):
        Lens(focal=24)
    with pytest.raises(ValueError, match="no lens has that"):
        replace(lens, focal_mm=13)


@pytest.mark.parametrize(
    ("text", "index", "message"),
    [
        ("localhost:1", 0, "two or more different addresses"),
        ("a:1,a:1", 0, "two or more different addresses"),
        ("a:1,b", 0, "received 'b'"),
        ("a:1,:2", 0, "received ':2'"),
        ("a:1,b:99999", 0, "received 'b:99999'"),
        ("a:1,b:2", 2, "0 to 1; received 2"),
        ("a:1,b:2", -1, "received -1"),
        ("a:1,b:2", None, "received None"),
    ],
)
def test_wrong_addresses(text, index, message):
    with pytest.raises(ClusterError, match=message):
        read_workers(text, index)


def test_workers_are_announced(monkeypatch):
    monkeypatch.setenv(TF_CONFIG, "")
    assert read_workers("a:1,b:2", 0).first
    workers = read_workers("a:1, b:2", 1)
    assert workers == Workers(addresses=("a:1", "b:2"), index=1) and not workers.first
    workers.announce()
    assert os.environ[TF_CONFIG] == '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}'
