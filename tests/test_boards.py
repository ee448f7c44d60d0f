"""Targets are data."""

import pytest

from edgecnn.boards import RELEASES, emulated_targets, list_targets, read_target
from edgecnn.errors import EmulatorError, RecipeError, UnknownNameError
from edgecnn.runtime.engines import ENGINES

BOARDS = ("rpi-zero2w", "rpi3", "rpi4", "rpi5")

PLAIN = """
title = "Board"
arch = "aarch64"
cpu_model = "cortex-a53"
engine = "litert"
num_threads = 1
"""


def test_all_of_them():
    targets = list_targets()
    assert [target.name for target in targets] == sorted((*BOARDS, "jetson-orin-nano", "x86-64", "cuda"))
    for target in targets:
        assert target.provider in ENGINES[target.engine].providers


def test_raspberry_pis_can_be_emulated():
    targets = {target.name: target for target in emulated_targets(["all"])}
    assert {name: target.emulator.cpu for name, target in targets.items()} == {
        "rpi-zero2w": "cortex-a53",
        "rpi3": "cortex-a53",
        "rpi4": "cortex-a72",
        "rpi5": "cortex-a76",
    }
    for target in targets.values():
        assert (target.arch, target.engine, target.cpu_model) == ("aarch64", "litert", target.emulator.cpu)
    assert {name: target.memory_mib for name, target in targets.items()} == {
        "rpi-zero2w": 512, "rpi3": 1024, "rpi4": 1024, "rpi5": 1024,
    }  # fmt: skip


def test_boards_to_be_emulated():
    assert [target.name for target in emulated_targets(["rpi5, rpi3", "rpi5"])] == ["rpi5", "rpi3"]
    assert {target.name for target in emulated_targets(["all"])} == set(BOARDS)
    with pytest.raises(UnknownNameError, match="Did you mean 'rpi4'"):
        emulated_targets(["rpi5,rpi44"])
    with pytest.raises(EmulatorError, match=r"cuda cannot be emulated.*rpi4"):
        emulated_targets(["cuda"])


def test_the_debian_of_an_emulated_board(read):
    assert read(PLAIN + '[emulator]\ncpu = "cortex-a53"').emulator.release == "trixie"
    assert read(PLAIN + '[emulator]\ncpu = "cortex-a53"\nrelease = "bookworm"').emulator.release == "bookworm"
    assert set(RELEASES) == {"bookworm", "trixie"}


@pytest.fixture
def read(tmp_path):
    def call(text):
        path = tmp_path / "board.toml"
        path.write_text(text)
        return read_target(path)

    return call


def test_optional_tables(read):
    target = read(PLAIN)
    assert (target.name, target.provider, target.memory_mib, target.emulator) == ("board", "cpu", 0, None)


def test_refuses(read):
    for text, message in (
        (PLAIN + "memory_mib = -1", "memory_mib"),
        (PLAIN + "memory = 512", "'memory_mib'"),
        (PLAIN.replace("num_threads = 1", ""), "num_threads"),
        (PLAIN.replace("num_threads = 1", "num_threads = true"), "num_threads"),
        (PLAIN.replace("num_threads = 1", "num_threads = -1"), "num_threads"),
        (PLAIN.replace('"litert"', "3"), "engine"),
        (PLAIN.replace("aarch64", "arm64"), "aarch64, x86_64"),
        (PLAIN + 'name = "other"', "rename the file"),
        (PLAIN + "emulator = 3", "emulator"),
        (PLAIN + "[emulator]\nspeed = 3", "emulator.speed"),
        (PLAIN + "[emulator]", "emulator.cpu"),
        (PLAIN + '[emulator]\ncpu = "max"\nrelease = "sid"', "bookworm, trixie"),
        ("title", "not a TOML file"),
        ("\x00", "not a TOML file"),
    ):
        with pytest.raises(RecipeError) as error:
            read(text)
        assert message in str(error.value) and "board.toml" in str(error.value)
