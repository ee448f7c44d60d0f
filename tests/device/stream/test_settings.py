"""A stream's settings: each is declared once, and becomes a flag, a key of the service and an argument."""

from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

from edgecnn.cli.flags import with_flags
from edgecnn.device.service.config import Config, parse
from edgecnn.device.stream.loop import open_stream
from edgecnn.device.stream.settings import Camera, Decision, Group, Pictures, Settings, gather, keys_of, option


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
