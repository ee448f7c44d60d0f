"""Settings, commands on a change, and pictures."""

import io
import shlex
import time
from typing import ClassVar

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from edgecnn.cli.options import with_flags
from edgecnn.device.service.config import Config, parse
from edgecnn.device.stream import pictures
from edgecnn.device.stream.events import RateLimiter, StateChangedEvent
from edgecnn.device.stream.loop import LIMIT_S, OnChange, open_stream
from edgecnn.device.stream.settings import Camera, Decision, Pace, Pictures, Settings, gather, keys_of
from edgecnn.region import read_size
from edgecnn.tables import Group, fields_of, option


class Probe(Group):
    """A new option, as someone would add it."""

    heading: ClassVar = "New"
    patience_s: float = option(
        2.0, "Wait for S seconds.", "seconds to wait", low=0, high=9, flag="patience", metavar="S", service=5.0
    )
    size: tuple[int, int] = option((1, 2), "A size.", typed="1x2", read=lambda text: tuple(map(int, text.split("x"))))


def run(*arguments):
    """Return the values that a command with the new options gets, or its error message."""
    app, got = typer.Typer(rich_markup_mode=None), []

    @app.command()
    @with_flags
    def command(*, probe: Probe, last: int = 3) -> None:
        """Try the settings."""
        got.append((probe.patience_s, probe.size, last))

    done = CliRunner().invoke(app, arguments)
    return got or done.output


def test_a_field_is_a_flag_with_its_help_default_and_limits():
    assert run() == [(2.0, (1, 2), 3)]
    assert run("--patience", "4", "--size", "3x4", "--last", "1") == [(4.0, (3, 4), 1)]
    assert "9.5 is not in the range 0.0<=x<=9.0" in run("--patience", "9.5").replace("\n", " ")
    assert "--size" in run("--size", "threex4") and "--patience S" in run("--help")


def test_a_field_with_a_meaning_is_a_key_of_the_service():
    ((name, kind, entry),) = keys_of(Probe)
    assert (name, kind, entry.default, entry.metadata["meaning"]) == ("patience", float, 5.0, "seconds to wait")


def test_the_services_keys_become_the_settings():
    made = Config(width=800, rotate=90, threshold=0.6, mqtt="mqtt://b/d", mqtt_ca="/ca.pem").settings
    assert (made.camera.size, made.camera.rotation, made.decision.threshold) == ((800, 480), 90, 0.6)
    assert (made.mqtt.address, str(made.mqtt.ca), made.mqtt.binary) == ("mqtt://b/d", "/ca.pem", None)
    assert (made.pace.max_fps, made.state.smooth, made.camera.retry_for_s) == (5.0, "3", float("inf"))


def test_an_explicit_0_or_no_is_not_the_default_but_an_empty_text_is_none():
    text = "threshold = 0\nstrangers = false\nkeep_random = 0\nkeep_unsure = 0\nkeep_margin = 0\nmax_fps = 0\nmqtt = ''\nmqtt_ca = ''"
    made = parse(text, "here").settings
    assert made.decision.threshold == 0 and made.decision.threshold is not None and made.model.strangers is False
    assert (made.reaction.keep_random, made.reaction.keep_unsure, made.reaction.keep_margin, made.pace.max_fps) == (
        0,
        0,
        0,
        0,
    )
    assert (made.mqtt.address, made.mqtt.ca, made.reaction.keep) == (None, None, None)
    left_out = parse("", "here").settings
    assert (left_out.decision.threshold, left_out.model.strangers) == (None, None)


def test_the_defaults():
    """As the help and the pages give them; those of the service differ where a camera runs for months."""
    typed, service = Settings(), Config().settings
    assert (typed.camera.size, typed.camera.fps, typed.camera.retry_for_s, typed.camera.warm_up) == (
        (640, 480),
        0,
        None,
        None,
    )
    assert (typed.pace.max_age_s, typed.pace.max_fps, typed.pace.duration_s, typed.state.smooth) == (1, 0, 0, "1")
    assert (service.pace.max_age_s, service.pace.max_fps, service.state.smooth) == (1, 5, "3")
    for one in (typed, service):
        kept = one.reaction
        assert (kept.keep_unsure, kept.keep_random, kept.keep_margin, kept.keep_cap, kept.keep_days) == (
            40,
            20,
            0.5,
            200,
            30,
        )
        assert (one.decision.top_k, one.decision.margin, one.decision.threshold, one.decision.fit) == (3, 0, None, None)
        assert (one.mqtt.prefix, one.mqtt.picture, one.http.open) == ("homeassistant", False, False)
    assert (Pictures().interval_s, Pictures().count, Pictures().min_sharpness, Pictures().min_change) == (0, 0, 10, 2)
    assert (Config().good_after, Config().width, Config().height) == (10, 640, 480)


def test_fields_are_arguments_and_a_wrong_name_gets_the_nearest():
    made = Settings(**gather({"margin": 0.2, "fps": 5.0}, Camera, Decision))
    assert (made.decision.margin, made.camera.fps, made.state.smooth) == (0.2, 5.0, "1")
    for wrong in ({"smoth": "3"}, {"keep_cap": 1.0}):
        with pytest.raises(TypeError, match=r"unknown setting '(smoth|keep_cap)' of a stream"):
            open_stream("synthetic:", **wrong)
    with pytest.raises(TypeError, match=r"Decision has no field 'margn'\. Did you mean 'margin'"):
        Decision(margn=0.2)
    with pytest.raises(AttributeError):
        made.decision.margin = 0.3


SAY = "sh -c 'echo \"$EDGECNN_STATE,$EDGECNN_PREVIOUS,$EDGECNN_SCORE\" >> said'"


def change(state, previous, score):
    return StateChangedEvent(ts=0.0, source="fake", state=state, previous=previous, score=score, reason=None, seq=None)


def said(events):
    return [event.message for event in events]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settle(command):
    """Let everything run to its end; return the failures."""
    return command.finish(20)


@pytest.mark.usefixtures("here")
def test_a_state_that_no_environment_can_hold_is_a_failure_but_not_the_end(tmp_path):
    on_change = OnChange("true")
    on_change.take(change("a\0b", None, 0.5))
    assert said(on_change.poll()) == ["true: embedded null byte"]
    on_change.take(change("a", None, 0.5))
    assert on_change.poll() == []
    assert on_change.finish(5.0) == []


@pytest.mark.usefixtures("here")
def test_the_state_is_in_its_environment(tmp_path):
    command = OnChange(SAY)
    command.take(change("red fox", None, 0.75))
    assert settle(command) == []
    command.take(change(None, "red fox", None))
    assert command.finish(10) == []
    command.take(change("abstain", None, 0.0))
    assert settle(command) == []
    assert (tmp_path / "said").read_text() == "red fox,,0.750000\n,red fox,\nabstain,,0.000000\n"


@pytest.mark.usefixtures("here")
def test_there_is_no_shell(tmp_path):
    command = OnChange("touch 'a b' $HOME ;")
    command.take(change("cat", None, 1.0))
    settle(command)
    assert {path.name for path in tmp_path.iterdir()} == {"a b", "$HOME", ";"}


@pytest.mark.usefixtures("here")
def test_while_one_runs_the_newest_state_waits(tmp_path):
    command = OnChange("sh -c 'while [ ! -e go ]; do sleep 0.01; done; echo $EDGECNN_STATE >> said'")
    command.take(change("0", None, 1.0))
    command.poll()
    for number in range(1, 100):
        command.take(change(str(number), None, 1.0))
        assert command.poll() == []
    (tmp_path / "go").touch()
    settle(command)
    assert (tmp_path / "said").read_text() == "0\n99\n"


@pytest.mark.usefixtures("here")
def test_its_failure_is_reported():
    for text, why in (("sh -c 'exit 3'", "sh: exit code 3"), ("sh -c 'kill -9 $$'", "sh: killed (SIGKILL)")):
        command = OnChange(text)
        command.take(change("cat", None, 1.0))
        assert said(settle(command)) == [why]


@pytest.mark.usefixtures("here")
def test_a_program_that_is_gone(tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    command = OnChange(shlex.quote(str(program)))
    program.unlink()
    command.take(change("cat", None, 1.0))
    assert said(command.poll()) == [f"{program}: No such file or directory"]


@pytest.mark.usefixtures("here")
def test_a_command_that_never_ends_is_stopped(children):
    now = [0.0]
    command = OnChange("sleep 1000", clock=lambda: now[0])
    command.take(change("cat", None, 1.0))
    before = children()
    command.poll()
    now[0] = LIMIT_S - 1
    assert command.poll() == [] and len(children() - before) == 1
    now[0] = LIMIT_S
    assert said(command.poll()) == [f"sleep: still running after {LIMIT_S:.0f} s, terminated"]
    assert children() == before


@pytest.mark.usefixtures("here")
def test_the_end_also_ends_its_children(children, gone, tmp_path):
    command = OnChange("sh -c 'trap \"\" TERM; sleep 1000 & echo $! > pid; touch up; wait'")
    command.take(change("cat", None, 1.0))
    before = children()
    command.poll()
    while not (tmp_path / "up").exists():
        time.sleep(0.005)
    command.take(change("dog", "cat", 1.0))
    assert command.finish(0) == [] and children() == before
    gone((tmp_path / "pid").read_text().strip())


@pytest.mark.usefixtures("here")
def test_a_command_that_cannot_run():
    for text in ("", "   ", "no-such-program x", "sh '"):
        with pytest.raises(ValueError, match=r"not found|cannot be split"):
            OnChange(text)


@pytest.mark.usefixtures("here")
def test_at_the_end_it_has_the_given_seconds_and_no_more(children):
    before = children()
    for text, seconds, failures in (
        ("sleep 20", 1.01, ["sleep: still running at the end, terminated"]),
        ("true", 0.99, []),
    ):
        command = OnChange(text)
        command.take(change("cat", None, 1.0))
        assert said(command.finish(seconds)) == failures and children() == before


def test_the_sharpness_of_one_bright_point():
    """Its Laplacian is 4 x 100 there, -100 at four neighbours and 0 elsewhere, without the outermost pixels."""
    frame = np.zeros((40, 320, 3), np.uint8)
    frame[20, 90] = 100
    assert pictures.sharpness(frame) == pytest.approx((400**2 + 4 * 100**2) / (38 * 318), rel=1e-5)
    wide = np.zeros((90, 1280, 3), np.uint8)
    assert pictures.grey(wide, 320).shape == (22, 320) and pictures.grey(wide, 64, 8).shape == (8, 64)


def test_the_change_is_a_mean_over_the_picture_in_grey_levels():
    dark, striped = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    striped[:, :8] = 80
    looks = pictures.thumbnail(dark), pictures.thumbnail(striped)
    assert pictures.change(*looks) == pictures.change(*looks[::-1]) == 20


def test_a_preview_is_upright_and_at_most_1280_pixels_wide_and_high():
    def size(height, width, rotation):
        return Image.open(io.BytesIO(pictures.as_jpeg(np.zeros((height, width, 3), np.uint8), rotation))).size

    assert [size(500, 2000, 0), size(500, 2000, 90), size(30, 1280, 0), size(30, 40, 0)] == [
        (1280, 320), (320, 1280), (1280, 30), (40, 30),
    ]  # fmt: skip
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:32, :32] = 255
    assert Image.open(io.BytesIO(pictures.as_jpeg(pictures.encode(frame)[0]))).size == (96, 64), "a file is upright"
    turned = np.asarray(Image.open(io.BytesIO(pictures.as_jpeg(frame, 90))))
    assert turned[8, -8].min() > 240 and turned[8, 8].max() < 15 and turned[-8, -8].max() < 15, "clockwise"


def test_a_name_holds_the_time_in_utc_rounded_down():
    assert pictures.stamp(1764043200.25, 3) == "20251125T040000.250Z"
    assert pictures.stamp(1764043259.9999, 3) == "20251125T040059.999Z"
    assert pictures.stamp(1764043200.03125, 6) == "20251125T040000.031250Z"


def test_a_class_folder_has_a_name_of_at_most_100_bytes():
    for fits, too_long in (("a" * 100, "a" * 101), ("é" * 50, "é" * 50 + "a")):
        assert not pictures.why_no_folder(fits) and pictures.why_no_folder(too_long)


def test_rare_events_stand_for_those_held_back():
    now = [50.0]
    seldom = RateLimiter(10.0, lambda: now[0])
    counts = []
    for now[0], times in ((50.0, 3), (51.0, 2), (59.9, 1), (60.0, 4), (60.1, 5), (69.9, 0), (80.0, 1)):
        counts.append(seldom.count(times))
    assert counts == [3, 0, 0, 7, 0, 0, 6]


def test_sizes_and_ages_as_typed():
    assert [read_size(text) for text in ("640x480", "16384X1", "1x16384")] == [(640, 480), (16384, 1), (1, 16384)]
    for wrong in ("0x480", "640x0", "16385x1", "1x16385", "640", "640x480x3"):
        with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
            read_size(wrong)
    age = fields_of(Pace)["max_age_s"]
    assert age.metadata["read"](250) == 0.25 and age.metadata["read"](age.metadata["typed"]) == Pace().max_age_s
