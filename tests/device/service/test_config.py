import errno
import os

import pytest

from edgecnn.device.service.config import Config, parse, take
from edgecnn.device.service.network import MACHINES
from edgecnn.device.slots.disk import Disk
from edgecnn.errors import ServiceError


def test_no_options_are_the_defaults(tmp_path):
    assert take(tmp_path / "service.toml", tmp_path) == (Config(), "")
    assert parse("", "here") == Config()


def test_options():
    config = parse(
        'source = "/dev/video2"\nwidth = 1280\nheight = 720\nthreshold = 0.6\nmqtt = "mqtt://broker/door"\n', "x"
    )
    assert (config.source, config.width, config.threshold) == ("/dev/video2", 1280, 0.6)
    settings = config.settings
    assert (settings.camera.size, settings.camera.retry_for_s) == ((1280, 720), float("inf"))
    assert (settings.decision.threshold, settings.mqtt.address) == (0.6, "mqtt://broker/door")
    assert parse("threshold = 0\n", "x").settings.decision.threshold == 0, "not the bundle's"
    plain = Config().settings
    assert (plain.decision.threshold, plain.mqtt.address, plain.http.address) == (None, None, None)
    assert (plain.reaction.keep, plain.camera.size, Config().good_after) == (None, (640, 480), 10)


def test_a_typo_is_named():
    for text, message in (
        ("thresold = 0.6", r"here: .*thresold.*'threshold'"),
        ("threshold = 2", "here: threshold .*2"),
        ('threshold = "high"', "here: threshold .*'high'"),
        ("threshold = 0.6 0.7", r"here is not TOML: .*line 1"),
        (f"threshold = {'[' * 5000}", r"here is nested too deeply"),
        ("rotate = 45", "here: rotate .*0, 90, 180, 270"),
        ('smooth = "often"', r"here: smooth: "),
        ("max_fps = 0.1", r"here: max_fps must be 0 or at least 0\.2"),
        ('source = "rstp:"', r"here: source 'rstp:' is not a camera or a stream"),
        (
            'keep = "kept"',
            r"here: keep must be the full path of a folder, such as /var/lib/edgecnn/kept; received 'kept'",
        ),
        ('source = "watch:inbox"', r"here: source cannot be a folder"),
        ('source = "folder:photos?loop=1"', r"here: source cannot be a folder"),
        ('mqtt = "http://broker"', "here: mqtt: .*'http://broker'"),
        ('http = "http://board"', "here: http: .*'http://board'"),
    ):
        with pytest.raises(ServiceError, match=message):
            parse(text, "here")
    for at_the_limit in ("max_fps = 0", "max_fps = 0.2", "good_after = 1", "threshold = 1", "keep_days = 3650"):
        parse(at_the_limit, "here")
    for beyond in ("max_fps = -1", "good_after = 0", "width = 0", "keep_days = 0", "keep_days = 3651"):
        with pytest.raises(ServiceError):
            parse(beyond, "here")


def test_options_that_need_a_network():
    for text, needed in (
        ("", False),
        ('source = "/dev/video0"', False),
        ('source = "synthetic:"', False),
        ('source = "rtsp://door.local/1"', True),
        ('source = "RTSP://door.local/1"', True),
        ('source = "exec:ffmpeg"', True),
        ('source = "ffmpeg:/dev/video0"', True),
        ('mqtt = "mqtt://broker/door"', True),
        ('http = "8080"', True),
    ):
        assert parse(text, "here").needs_network is needed, text


def test_the_network_filter_knows_each_processor():
    """An architecture is its number in ELF headers, plus a bit each for little-endian and for 64 bits (linux/audit.h)."""
    elf = {"x86_64": (62, 64), "aarch64": (183, 64), "riscv64": (243, 64), "armv7l": (40, 32), "armv6l": (40, 32)}
    expected = {name: number | 1 << 30 | (bits == 64) << 31 for name, (number, bits) in elf.items()}
    assert {name: found.architecture for name, found in MACHINES.items()} == expected
    calls = {"x86_64": 41, "aarch64": 198, "riscv64": 198, "armv7l": 281, "armv6l": 281}  # socket(2) in syscalls(2)
    assert {name: found.socket for name, found in MACHINES.items()} == calls


def test_invalid_options_leave_the_last_valid_ones(tmp_path):
    path, folder = tmp_path / "service.toml", tmp_path / "slots"
    folder.mkdir()
    path.write_text("thresold = 0.6\n")
    config, problem = take(path, folder)
    assert config == Config() and "thresold" in problem and "The defaults are in use" in problem
    path.write_text("threshold = 0.6\n")
    assert take(path, folder) == (Config(threshold=0.6), "")
    for text in (b"thresold = 0.7\n", b"\xff", b"threshold = " + 5000 * b"["):
        path.write_bytes(text)
        config, problem = take(path, folder)
        assert config == Config(threshold=0.6) and "The last valid options stay in use" in problem
    path.write_text("threshold = 0.7\n")
    assert take(path, folder) == (Config(threshold=0.7), "")
    path.write_text("thresold = 0.8\n")
    assert take(path, folder).config == Config(threshold=0.7), (
        "the copy is of the last that were valid, not of the first"
    )


def test_a_full_disk_does_not_block_valid_options(tmp_path):
    class Full(Disk):
        def write(self, path, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "options.toml").write_text("threshold = 0.6\n")
    config, problem = take(tmp_path / "options.toml", tmp_path, Full(tmp_path))
    assert config == Config(threshold=0.6) and "No space left" in problem


def test_the_example_of_the_page_is_valid(root):
    page = (root / "docs" / "service.md").read_text(encoding="utf-8")
    example = page.partition("```toml\n")[2].partition("```")[0]
    assert parse(example, "docs/service.md").mqtt == "mqtt://broker.local/door"
