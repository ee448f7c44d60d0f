"""A stream's settings: each is declared once, and becomes a flag, a key of the service and an argument."""

from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

from edgecnn.cli.flags import with_flags
from edgecnn.device.service.config import Config
from edgecnn.device.stream.loop import open_stream
from edgecnn.device.stream.settings import Camera, Decision, Group, Settings, gather, keys_of, option


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
