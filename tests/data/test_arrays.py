"""Many images: their pixels are in a mapped file, which leaves nothing behind, and the weights are the same."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgecnn.data import decoding, open_dataset
from edgecnn.data.decoding import file_system, rooms
from edgecnn.errors import OutputError
from edgecnn.images import available_bytes
from edgecnn.recipe import DataRecipe

SIZE = {"height": 12, "width": 12, "channels": 3}
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgecnn"


@pytest.fixture
def small_machine(monkeypatch):
    """A machine without memory for even one image."""
    monkeypatch.setattr(decoding, "SHARE", 1e-9)


@pytest.fixture
def pets(tmp_path, fill, pictures):
    return fill(tmp_path / "pets", pictures("cat", 0, 60) | pictures("dog", 500, 60))


def load(path, notes=None, splits=("train", "validation", "test")):
    dataset = open_dataset(DataRecipe(source=str(path)), note=(notes if notes is not None else []).append)
    return dataset, dataset.load(splits, **SIZE, stage="verify")


def mapped_files():
    """Return the lines of this process's mappings of nameless files."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line]


@linux
def test_the_file_holds_the_same_pixels_and_goes_with_them(pets, cache, monkeypatch):
    notes = []
    before = len(mapped_files())
    _, plain = load(pets, notes)
    assert notes == [] and len(mapped_files()) == before, "few images stay in memory"
    monkeypatch.setattr(decoding, "SHARE", 1e-9)
    dataset, mapped = load(pets, notes)
    assert len(mapped_files()) == before + 1
    for split, loaded in mapped.items():
        assert np.array_equal(loaded.images, plain[split].images) and loaded.sources == plain[split].sources
        assert type(loaded.images) is np.ndarray and not loaded.images.flags.writeable, "it is shared"
    (line,) = notes
    assert re.fullmatch(
        r"pets: 0\.0 GiB of decoded images, more than 0% of the available memory \([\d.,]+ GiB\), are in a temporary file in "
        rf"{re.escape(str(cache))}, which is gone when the command ends\.( WARNING.*)?",
        line,
    )
    dataset.load(("train",), **SIZE, stage="verify")
    assert len(notes) == 1, "said once"
    assert list(cache.iterdir()) == []
    del dataset, mapped, loaded
    assert len(mapped_files()) == before


def test_the_share_covers_all_splits_together(cache, monkeypatch):
    monkeypatch.setattr(decoding, "available_bytes", lambda: 4 * 300)
    notes = []
    fits = rooms("pets", [20, 0, 5], (2, 2, 3), notes.append)
    assert [len(array) for array in fits] == [20, 0, 5] and notes == []
    one, none, other = rooms("pets", [20, 0, 6], (2, 2, 3), notes.append)
    assert (one.shape, none.shape, other.shape) == ((20, 2, 2, 3), (0, 2, 2, 3), (6, 2, 2, 3)) and len(notes) == 1
    one[:], other[:] = 1, 2
    assert one.min() == one.max() == 1 and other.min() == other.max() == 2
    monkeypatch.setattr(decoding, "available_bytes", lambda: None)
    assert rooms("pets", [26], (2, 2, 3), notes.append)[0].shape == (26, 2, 2, 3) and len(notes) == 1, (
        "if the system does not report it"
    )


def test_a_system_that_cannot_reserve_space_writes_it(cache, small_machine, monkeypatch):
    written, write = {}, os.pwrite

    def recorded(descriptor, data, start):
        written[start] = len(data)
        return write(descriptor, data, start)

    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    monkeypatch.setattr(os, "pwrite", recorded)
    rooms("pets", [3], (600, 700, 1), [].append)
    assert written == {0: 2**20, 2**20: 3 * 600 * 700 - 2**20}


def test_a_full_disk_is_an_error_before_a_photo_is_decoded(pets, cache, small_machine, monkeypatch):
    monkeypatch.setattr(decoding.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OutputError) as error:
        load(pets)
    first, second = str(error.value).splitlines()
    assert first.startswith("pets: 120 images of 12x12x3 take 0.0 GiB, more than 0% of the available memory (")
    assert first.endswith(f"so they need a file; {cache} has 0.0 GiB left.")
    assert second == "Free some space, set XDG_CACHE_HOME to a folder on a larger disk, or choose a smaller input."


def test_a_disk_that_fills_up_meanwhile(pets, cache, small_machine, file_limit):
    """The file's space is reserved at the start: otherwise a page of the mapping would find no space and kill the process."""
    with (
        file_limit(1000),
        pytest.raises(OutputError, match="File too large"),
    ):
        load(pets)


def test_a_cache_that_cannot_be_written(pets, cache, small_machine):
    cache.parent.write_text("a file")
    with pytest.raises(OutputError, match=r"cannot be made in .*: Not a directory\.\nSet XDG_CACHE_HOME"):
        load(pets)


def test_which_file_system(tmp_path):
    device = os.stat(tmp_path).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / /x rw - proc proc rw\n2 0 {number} / / rw shared:1 - tmpfs none rw\n")
    assert file_system(tmp_path, str(mounts)) == "tmpfs"
    mounts.write_text("1 0 0:1 / /x rw - proc proc rw\n")
    assert file_system(tmp_path, str(mounts)) == file_system(tmp_path / "gone") == file_system(tmp_path, "/gone") == ""


def test_a_file_in_memory_gets_a_warning(pets, cache, small_machine, monkeypatch):
    monkeypatch.setattr(decoding, "file_system", lambda path: "tmpfs")
    notes = []
    load(pets, notes)
    assert notes[0].endswith("WARNING: it is in memory (tmpfs); set XDG_CACHE_HOME to a folder on a disk.")


@linux
def test_nothing_is_left_behind_by_a_process_that_is_killed(pets, cache, root, spawn):
    code = (
        "import signal, sys\n"
        "from edgecnn.data import decoding, open_dataset\n"
        "from edgecnn.recipe import DataRecipe\n"
        "decoding.SHARE = 1e-9\n"
        "loaded = open_dataset(DataRecipe(source=sys.argv[1])).load(('train',), height=12, width=12, channels=3, stage='train')\n"
        "print('loaded', flush=True)\n"
        "signal.pause()\n"
    )
    process = spawn(
        [sys.executable, "-c", code, str(pets)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"loaded\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert cache.is_dir() and list(cache.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("blank_plots")
def test_the_weights_are_the_same_bit_for_bit(edgecnn, tmp_path, pets, cache, tiny_network, monkeypatch):
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    command = ("train", "--data", pets, "--network", tiny_network, "--epochs", 2, "--qat-epochs", 1, "--batch-size", 16)
    settings = ("--set", "qat.batch_size=16", "--set", "train.shift=1")
    plain = edgecnn(*command, *settings, "--out", "plain")
    monkeypatch.setattr(decoding, "SHARE", 1e-9)
    mapped = edgecnn(*command, *settings, "--out", "mapped")
    assert plain.code == mapped.code == 0, mapped.err
    assert "in a temporary file in" in mapped.err and "in a temporary file in" not in plain.err
    for name in ("float.h5", "qat.h5"):
        assert weights(tmp_path / "plain" / name) == weights(tmp_path / "mapped" / name)
    for run in ("plain", "mapped"):
        assert edgecnn("export", run, "--format", "tflite", "--int8").code == 0
    assert edgecnn("verify", "mapped", "--max-drop", "100", "--accept-conversion").code == 0
    one, other = (tmp_path / run / "model-int8.tflite" for run in ("plain", "mapped"))
    assert one.read_bytes() == other.read_bytes()
    assert [path.name for path in cache.iterdir()] == ["inspect-1.sqlite"], (
        "only the data about the photos, and no image"
    )


def weights(path):
    """Return the bytes of a model's weights, in order."""
    from edgecnn.networks.predict import model_from_bytes

    return [array.tobytes() for array in model_from_bytes(path.read_bytes()).get_weights()]


GROUP_BYTES = 4 * 2**30
WATCHED = """
import json, os, sys, threading, time
with open(sys.argv.pop(1), "w") as procs:
    procs.write(str(os.getpid()))
peak = 0
def read():
    global peak
    while True:
        with open("/proc/self/status") as status:
            peak = max(peak, *(int(line.split()[1]) for line in status if line.startswith("RssAnon:")))
        time.sleep(0.02)
threading.Thread(target=read, daemon=True).start()
from edgecnn.cli import main
try:
    main()
finally:
    print(json.dumps({"rss_anon_kib": peak}), flush=True)
"""


@pytest.fixture
def memory_group():
    """The path of `cgroup.procs` of a control group with GROUP_BYTES; skipped, with the reason, if none can be made."""
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("only root can make a memory control group, on Linux")
    one, two = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    base, limit = (one, "memory.limit_in_bytes") if one.is_dir() else (two, "memory.max")
    group = base / f"edgecnn-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory control group can be made: {error}")
    try:
        try:
            (group / limit).write_text(str(GROUP_BYTES))
        except OSError as error:
            pytest.skip(f"a control group here has no memory limit: {error}")
        yield group / "cgroup.procs"
    finally:
        for _ in range(50):  # its last process may not be reaped yet
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


NETWORK = """
from tf_keras import Input, Model, layers

def build(height, width, channels, num_classes):
    inputs = Input((height, width, channels))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 5, strides=8, use_bias=False)(inputs)))
    return Model(inputs, layers.Dense(num_classes)(layers.GlobalAveragePooling2D()(x)))
"""
"""A network whose activations need little memory compared with the photos."""


@pytest.mark.slow
def test_twenty_thousand_photos_train_in_four_gib(root, tmp_path, cache, memory_group, monkeypatch):
    pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")
    if (available_bytes() or 0) < GROUP_BYTES or shutil.disk_usage(tmp_path).free < 6 * 2**30:
        pytest.skip("needs 4 GiB of memory and 6 GiB of disk")
    monkeypatch.syspath_prepend(root / "tools" / "bench")
    monkeypatch.delitem(sys.modules, "photos", raising=False)
    importlib.import_module("photos").write_photos(tmp_path / "photos", 20_000)
    (tmp_path / "net.py").write_text(NETWORK)
    command = [
        sys.executable, "-c", WATCHED, str(memory_group), "train", "--data", str(tmp_path / "photos"), "--size", "160",
        "--network", f"{tmp_path / 'net.py'}:build", "--epochs", "1", "--qat-epochs", "1", "--out", str(tmp_path / "run"), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pixels = 20_000 * 160 * 160 * 3
    assert (
        "1.4 GiB of decoded images, more than 25% of the available memory (4.0 GiB), are in a temporary file"
        in done.stderr
    )
    used = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert sum(used["split_sizes"].values()) == 20_000 and used["duplicates"] == []
    larger = used["split_sizes"]["train"] * 224 * 224 * 3 / 2**30
    assert f"{larger:.1f} GiB of decoded images" in done.stderr, "those that are cropped"
    peak = json.loads(done.stdout.splitlines()[-1])["rss_anon_kib"] * 1024
    assert peak < pixels, (
        f"{peak / 2**20:,.0f} MiB of anonymous memory: the pixels alone would take {pixels / 2**20:,.0f}"
    )
    assert [file.name for file in cache.iterdir()] == ["inspect-1.sqlite"], "the images are gone"
