"""Sensors as files of a fake machine."""

from edgecnn.device.sensors import Sensors, read_sensors, throttle_words
from edgecnn.runtime.child import Finished


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
