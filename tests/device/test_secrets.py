"""Passwords: not shown in texts, and not passed to other programs."""

import pytest

from edgecnn.device.secrets import CAMERA, environment, masked, read_secret


@pytest.mark.parametrize(
    "text, shown",
    [
        ("rtsp://ann:sesame@door.local:554/1", "rtsp://***@door.local:554/1"),
        ("rtsp://ann:se@sa/me@door.local/1", "rtsp://***@door.local/1"),
        ("https://sesame@door.local", "https://***@door.local"),
        (
            "http://door.local:80/snap@2x?user=ann&pwd=sesame&size=2",
            "http://door.local:80/snap@2x?user=ann&pwd=***&size=2",
        ),
        ("rtsp://h/user=ann_password=sesame", "rtsp://h/user=ann_password=***"),
        ("exec:fetch --password sesame rtsp://a:sesame@h/1 -o -", "exec:fetch --password *** rtsp://***@h/1 -o -"),
        (
            "exec:curl -u ann:sesame -H 'Authorization: Basic sesame' http://h",
            "exec:curl -u *** -H 'Authorization: Basic ***' http://h",
        ),
        ("[rtsp @ 0x5] rtsp://a:sesame@h: 401 Unauthorized", "[rtsp @ 0x5] rtsp://***@h: 401 Unauthorized"),
        ("rtsp://[::1]:554/1", "rtsp://[::1]:554/1"),
        ("clip@home:1.mp4", "clip@home:1.mp4"),
        ("method DESCRIBE failed: 401 Unauthorized", "method DESCRIBE failed: 401 Unauthorized"),
    ],
)
def test_a_text_without_its_passwords(text, shown):
    assert masked(text) == shown


def test_a_file_takes_precedence_over_the_environment_which_other_programs_do_not_get(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGECNN_CAMERA_USER", "ann")
    for name in ("EDGECNN_CAMERA_PASSWORD", "EDGECNN_MQTT_PASSWORD", "EDGECNN_HTTP_TOKEN"):
        monkeypatch.setenv(name, "sesame")
    assert read_secret(CAMERA, None) == ("ann", "sesame") and "sesame" not in environment().values()
    (tmp_path / "secret").write_text("open\n")
    assert read_secret(CAMERA, tmp_path / "secret") == ("ann", "open")
    (tmp_path / "secret").write_text("bob\nopen\n")
    assert read_secret(CAMERA, tmp_path / "secret") == ("bob", "open")
    with pytest.raises(ValueError, match="none: No such file"):
        read_secret(CAMERA, tmp_path / "none")


@pytest.mark.parametrize("command", [
    ("capture", "synthetic:8x8?frames=1", "--label", "cat", "--interval", "1"),
    ("classify", "synthetic:8x8?frames=1", "--model", "none.edgecnn"),
])  # fmt: skip
def test_a_cameras_world_readable_password_file_is_named(edgecnn, tmp_path, command):
    secret = tmp_path / "a secret"
    secret.write_text("ann\nsesame\n")
    said = []
    for mode in (0o644, 0o640):
        secret.chmod(mode)
        said.append(edgecnn(*command, "--camera-password-file", secret).err)
    assert said[0].count(f"every user of this machine may read it. Change that: chmod o-r '{secret}'") == 1
    assert "every user" not in said[1] and "sesame" not in said[0]
