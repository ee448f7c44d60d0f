"""The machine, its sensors, and secrets."""

import os
from types import SimpleNamespace

import pytest

from edgecnn.device.system import (
    CAMERA,
    Sensors,
    Space,
    System,
    environment,
    masked,
    packages,
    read_secret,
    read_sensors,
    throttle_words,
)
from edgecnn.runtime.child import Finished


def test_of_two_installed_versions_the_one_that_python_imports_counts(monkeypatch):
    found = [("Tiny_Model", "2.1"), (None, "0.3"), ("tiny-model", "1.9"), ("numpy", "2.4")]
    installed = [SimpleNamespace(metadata={"Name": name}, version=version) for name, version in found]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: iter(installed))
    assert packages() == {"tiny-model": "2.1", "numpy": "2.4"}


def test_space_for_a_folder_that_does_not_exist_yet(tmp_path, monkeypatch):
    asked = []

    def statvfs(path):
        asked.append(path)
        return os.statvfs_result((4096, 512, 900, 800, 7, 0, 0, 0, os.ST_RDONLY, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    (tmp_path / "there").mkdir()
    system = System(root=tmp_path, packages={})
    assert system.space("/there/not/yet") == system.space("/there") == Space(7 * 512, True)
    assert asked == [tmp_path / "there"] * 2


def test_a_machine_without_sensors(machine):
    assert read_sensors(machine({})) == Sensors(None, None, None, None)


def test_a_raspberry_pi(machine):
    files = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1500000\n",
        "sys/class/thermal/thermal_zone0/temp": "61342\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    }
    assert read_sensors(machine(files)) == Sensors(1500, 61.342, 0x50005, None)


def test_vcgencmd_if_the_kernel_has_no_value(machine):
    system = machine({}, {"vcgencmd": Finished(0, "throttled=0x50000\n", "")})
    assert read_sensors(system).throttled == 0x50000
    assert read_sensors(machine({}, {"vcgencmd": Finished(255, "", "VCHI initialization failed")})).throttled is None


def test_the_processors_own_zone_else_the_hottest(machine):
    files = {
        "sys/class/thermal/thermal_zone0/temp": "90000",
        "sys/class/thermal/thermal_zone0/type": "acpitz",
        "sys/class/thermal/thermal_zone1/temp": "nothing",
        "sys/class/thermal/thermal_zone1/type": "iwlwifi",
        "sys/class/thermal/thermal_zone3/temp": "30000",
        "sys/class/thermal/thermal_zone3/type": "nvme",
    }
    assert read_sensors(machine(files)).celsius == 90.0
    files |= {"sys/class/thermal/thermal_zone2/temp": "45000", "sys/class/thermal/thermal_zone2/type": "x86_pkg_temp"}
    for cpu, count in enumerate("74"):
        files |= {f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count": count}
    sensors = read_sensors(machine(files))
    assert (sensors.celsius, sensors.throttle_count) == (45.0, 11)
    files["sys/class/thermal/thermal_zone2/temp"] = "0"
    assert read_sensors(machine(files)).celsius == 0.0, "frost is not the lack of a sensor"


def test_words():
    assert throttle_words(0x50005) == (["under-voltage", "throttled"], ["under-voltage", "throttled"])
    assert throttle_words(0xA0000) == ([], ["frequency capped", "soft temperature limit"])
    assert throttle_words(0) == ([], [])


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
