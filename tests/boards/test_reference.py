"""Reference figures in a target's file: set, set again, and nothing else changed."""

import dataclasses
import tomllib

import pytest

from edgecnn.boards.reference import detect_target, save_reference, with_reference
from edgecnn.boards.targets import Reference, list_targets, load_target, read_target
from edgecnn.errors import OutputError, RecipeError, UnknownNameError
from edgecnn.files import data_folder

FIGURES = Reference(
    model='resnet8 "int8"',
    hardware="Board, 1 GHz ☺",
    versions={"litert": "2.3.0", "a.b": "1"},
    n=1000,
    p50_ms=3.0,
    p90_ms=3.5,
)


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_every_target_can_have_figures(target, tmp_path):
    path = save_reference(target, FIGURES, tmp_path / f"{target.name}.toml")
    assert read_target(path) == dataclasses.replace(target, reference=FIGURES)
    assert path.read_text().startswith((data_folder("targets") / path.name).read_text().rstrip())


def test_other_keys_and_comments_stay():
    text = '# top\ntitle = "B" # of it\n\n[reference]\n# old\nn = 1\n\n# of the emulator\n[emulator]\ncpu = "c"\n'
    after = with_reference(text, FIGURES, "b.toml")
    assert after.startswith('# top\ntitle = "B" # of it\n\n[reference]\nmodel = ')
    assert after.endswith('\n# old\n\n# of the emulator\n[emulator]\ncpu = "c"\n')
    assert tomllib.loads(after)["reference"] == dataclasses.asdict(FIGURES)
    assert with_reference(after, FIGURES, "b.toml") == after


def test_a_table_of_versions_is_replaced():
    text = 'a = 1\n[reference]\nn = 1\n[reference.versions]\nx = "1"\n[z]\ny = 2\n'
    assert tomllib.loads(with_reference(text, FIGURES, "b")) == {
        "a": 1,
        "reference": dataclasses.asdict(FIGURES),
        "z": {"y": 2},
    }


@pytest.mark.parametrize(
    "text", ["reference = { n = 1 }\n", "reference.n = 1\n", '[emulator]\nreference = """\n[reference]\n"""\n', "a = "]
)
def test_a_form_that_cannot_be_changed_safely_is_refused(text):
    with pytest.raises(RecipeError, match=r"b\.toml: the table \[reference\] cannot be set"):
        with_reference(text, FIGURES, "b.toml")


def test_an_existing_file_is_the_one_that_is_changed(tmp_path):
    out = tmp_path / "mine.toml"
    out.write_text("# mine\nx = 1\n")
    save_reference(load_target("rpi4"), FIGURES, out)
    assert out.read_text().startswith("# mine\nx = 1\n\n[reference]\n")


def test_installed_targets_that_cannot_be_written(monkeypatch):
    def refuse(path, data):
        raise OutputError(f"cannot write {path}.") from PermissionError(13, "Permission denied")

    monkeypatch.setattr("edgecnn.boards.reference.write_atomic", refuse)
    with pytest.raises(OutputError, match=r"an installed target: Permission denied\.") as refused:
        save_reference(load_target("rpi4"), FIGURES)
    assert refused.value.advice == "save_to"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4", "rpi4"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "rpi3"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "rpi-zero2w"),
        ("Raspberry Pi 5", "rpi5"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "jetson-orin-nano"),
    ],
)
def test_boards_by_their_own_names(model, name):
    assert detect_target(model).name == name


@pytest.mark.parametrize(
    ("model", "text"), [("", "does not name its board"), ("Raspberry Pi 400 Rev 1.0", "'Raspberry Pi 400 Rev 1.0'")]
)
def test_boards_of_no_target(model, text):
    with pytest.raises(UnknownNameError, match=text):
        detect_target(model)
