"""A bundle is written in one form, and one that is not whole is refused."""

import dataclasses
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from typing import cast

import numpy as np
import pytest

from edgecnn.bundle.file import (
    END,
    INNER,
    LOCAL_HEADER,
    has_external_data,
    pack,
    parse_bundle,
    read_array,
    read_bundle,
    write_bundle,
)
from edgecnn.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, StrangerLimit
from edgecnn.errors import BundleError, EngineError, OutputError, OutputExistsError
from edgecnn.files import canonical_json, sha256
from edgecnn.runtime.engines import open_engine


def test_same_content_gives_the_same_bytes(tmp_path, content):
    manifest, files = content
    write_bundle(tmp_path / "a.edgecnn", manifest, files)
    backwards = dict(reversed(files.items()))
    write_bundle(tmp_path / "b.edgecnn", dataclasses.replace(manifest, files={"x": "y"}), backwards)
    assert (tmp_path / "a.edgecnn").read_bytes() == (tmp_path / "b.edgecnn").read_bytes()


def test_bytes_do_not_depend_on_time_umask_or_locale(tmp_path, content, monkeypatch):
    write_bundle(tmp_path / "a.edgecnn", *content)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("LC_ALL", "C")
    before = os.umask(0o077)
    try:
        write_bundle(tmp_path / "b.edgecnn", *content)
    finally:
        os.umask(before)
    assert (tmp_path / "a.edgecnn").read_bytes() == (tmp_path / "b.edgecnn").read_bytes()


def test_a_manifest_larger_than_any_reader_accepts_says_what_fills_it(tmp_path, content):
    manifest, files = content
    large = dataclasses.replace(manifest, provenance={"note": "x" * MAX_MANIFEST_BYTES})
    with pytest.raises(BundleError, match="names of classes"):
        write_bundle(tmp_path / "a.edgecnn", large, files)
    assert not (tmp_path / "a.edgecnn").exists()


def test_known_bytes(bundle_path):
    """The form is fixed forever: every Python, system and version of edgecnn must produce these bytes (`edgecnn.bundle/1`)."""
    assert hashlib.sha256(bundle_path.read_bytes()).hexdigest() == KNOWN


KNOWN = "c67f64a8b01978d4a739ca8c734daba5ac213cf8fd6f5d5891da82df4e1091af"


def test_other_tools_can_read_the_zip(bundle_path, content):
    _, files = content
    with zipfile.ZipFile(bundle_path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [MANIFEST, *sorted(files)]
        for item in archive.infolist():
            assert item.compress_type == zipfile.ZIP_STORED
            assert item.date_time == (1980, 1, 1, 0, 0, 0)
            assert (item.external_attr, item.create_system, item.extra, item.comment) == (0o100644 << 16, 3, b"", b"")
        assert {name: archive.read(name) for name in files} == files


def test_returns_the_hash_and_reads_back(tmp_path, content):
    manifest, files = content
    path = tmp_path / "new" / "folder" / "a.edgecnn"
    digest = write_bundle(path, manifest, files)
    bundle = read_bundle(path)
    assert digest == bundle.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataclasses.replace(bundle.manifest, files={}) == manifest
    assert bundle.files == files


def test_does_not_replace_unless_forced(bundle_path, content):
    before = bundle_path.read_bytes()
    manifest, files = content
    other = dataclasses.replace(manifest, title="Other")
    with pytest.raises(OutputExistsError, match=re.escape(str(bundle_path))):
        write_bundle(bundle_path, other, files)
    assert bundle_path.read_bytes() == before
    write_bundle(bundle_path, other, files, force=True)
    assert read_bundle(bundle_path).manifest.title == "Other"


def with_unit(manifest, index, unit):
    """Return the manifest with a different unit for one model's tolerance."""
    models = list(manifest.models)
    models[index] = dataclasses.replace(models[index], tolerance_unit=unit)
    return dataclasses.replace(manifest, models=tuple(models))


def test_writes_nothing_that_would_not_read_back(tmp_path, content):
    manifest, files = content
    path = tmp_path / "a.edgecnn"
    short = {name: data for name, data in files.items() if name != "golden/inputs.npy"}
    for wrong_manifest, wrong_files in [
        (manifest, short),
        (manifest, files | {"../x": b""}),
        (manifest, files | {MANIFEST: b"{}"}),
        (manifest, files | {"golden/int8.tflite.npy": b"x"}),
        (dataclasses.replace(manifest, labels=("cat", "dog", "bird")), files),
        (with_unit(manifest, 0, "logit"), files),
        (with_unit(manifest, 1, "LSB"), files),
    ]:
        with pytest.raises(BundleError):
            write_bundle(path, wrong_manifest, wrong_files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("label", ["abstain", "a\x1b[2Jb"])
def test_a_label_that_is_not_valid_is_reported_first(tmp_path, content, label):
    manifest, files = content
    with pytest.raises(BundleError) as error:
        write_bundle(tmp_path / "a.edgecnn", dataclasses.replace(manifest, labels=(label, "dog")), files)
    assert "Rename its folder and train again" in str(error.value)


def test_limits(content, monkeypatch):
    manifest, files = content
    whole = pack(manifest, files)
    held = len(manifest.to_json()) + sum(map(len, files.values()))
    for name, at_most in (("MAX_BYTES", held), ("MAX_FILES", len(files) + 1)):
        with monkeypatch.context() as patch:
            patch.setattr(f"edgecnn.bundle.file.{name}", at_most)
            assert pack(manifest, files) == whole
            patch.setattr(f"edgecnn.bundle.file.{name}", at_most - 1)
            with pytest.raises(BundleError, match=rf"limits are .*{at_most - 1:,}"):
                pack(manifest, files)


def test_unwritable_folder_leaves_nothing(tmp_path, content):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_bundle(tmp_path / "file" / "a.edgecnn", *content)


def test_needs_neither_zipfile_nor_tempfile_to_read(bundle_path):
    """Reading is part of the start of `edgecnn classify`, and these two cost milliseconds."""
    code = (
        "import sys; from pathlib import Path; from edgecnn.bundle.file import read_bundle; import numpy, PIL.Image;"
        "before = set(sys.modules); read_bundle(Path(sys.argv[1])); print(sorted({'zipfile', 'tempfile'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code, bundle_path], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_golden_arrays_read_as_numpy_reads_them(bundle_path, content):
    _, files = content
    bundle = read_bundle(bundle_path)
    assert np.array_equal(bundle.golden_inputs(), np.load(io.BytesIO(files["golden/inputs.npy"])))
    for model in bundle.manifest.models:
        expected = np.load(io.BytesIO(files[model.golden]))
        assert np.array_equal(bundle.golden_outputs(model), expected)
        assert bundle.golden_outputs(model).dtype == expected.dtype
        assert not bundle.golden_outputs(model).flags.writeable


@pytest.fixture
def data(bundle_path):
    return bundle_path.read_bytes()


def refused(data, path):
    with pytest.raises(BundleError) as error:
        parse_bundle(bytes(data), path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_flipped_bits(data, bundle_path):
    bits = np.random.default_rng(0).choice(len(data) * 8, 300, replace=False)
    for bit in map(int, bits):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(damaged, bundle_path)


def test_every_byte_of_zip_metadata_flipped(data, bundle_path):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        positions = [
            position
            for item in archive.infolist()
            for position in range(item.header_offset, item.header_offset + LOCAL_HEADER.size + len(item.filename))
        ]
        positions += range(archive.start_dir, len(data))
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= (0x01, 0x80, 0xFF)[position % 3]
        refused(damaged, bundle_path)


def test_truncated_anywhere(data, bundle_path):
    for length in [*range(0, len(data), 97), len(data) - 1]:
        refused(data[:length], bundle_path)


def test_appended_and_prepended(data, bundle_path):
    for extra in (b"\0", b"x" * 100, data):
        refused(data + extra, bundle_path)
        refused(extra + data, bundle_path)


def test_files_that_are_not_bundles(tmp_path, bundle_path):
    for content in (b"", b"PK", b"PK\x03\x04", b"not a zip" * 100, bytes(10_000), b"PK\x05\x06" + bytes(18)):
        assert "cannot use the bundle" in refused(content, bundle_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.edgecnn", tmp_path / "pipe"):
        with pytest.raises(BundleError, match=r"cannot read the bundle .* Name another with --model\."):
            read_bundle(path)
    with pytest.raises(BundleError, match=f"is a folder, not a bundle. Its bundle is {bundle_path}"):
        read_bundle(tmp_path)


def test_the_digest_is_computed_once_from_the_bytes_read(bundle_path, monkeypatch):
    bundle, data = read_bundle(bundle_path), bundle_path.read_bytes()
    hashed = []
    monkeypatch.setattr("edgecnn.bundle.file.sha256", lambda content: hashed.append(content) or sha256(content))
    monkeypatch.setattr("edgecnn.bundle.file.pieces", None)  # nothing is repacked
    assert bundle.sha256 == bundle.sha256 == sha256(data)
    assert hashed == [data]


def test_larger_than_the_limit_is_not_read(bundle_path, monkeypatch):
    monkeypatch.setattr("edgecnn.bundle.file.MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="more than 1,000 bytes"):
        read_bundle(bundle_path)


def rezipped(data, change=None, **options):
    """Return the bundle's entries as zipfile writes them, after applying `change` to the list of (name, content)."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    if change:
        change(entries)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", **options) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda entries: entries.append(entries[0]),
        lambda entries: entries.append(entries[2]),
        lambda entries: entries.append(("../../etc/passwd", b"x")),
        lambda entries: entries.append(("/etc/passwd", b"x")),
        lambda entries: entries.append(("extra.txt", b"x")),
        lambda entries: entries.append(("folder/", b"")),
        lambda entries: entries.pop(2),
        lambda entries: entries.reverse(),
        lambda entries: entries.clear(),
        lambda entries: entries.__setitem__(slice(1, None), []),
    ],
    ids=[
        "other tool",
        "manifest twice",
        "entry twice",
        "dots",
        "absolute",
        "extra",
        "folder",
        "lacking",
        "order",
        "empty",
        "alone",
    ],
)
def test_zips_from_other_tools(data, bundle_path, change):
    refused(rezipped(data, change), bundle_path)


def test_deflated(data, bundle_path):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as other:
            for name in archive.namelist():
                other.writestr(name, archive.read(name))
    refused(buffer.getvalue(), bundle_path)


def test_sizes_that_lie(data, bundle_path):
    """Sizes that point past the end, at zip64, or at nothing are refused before anything is allocated."""
    for size in (0, 1, 2**31, 2**32 - 1):
        damaged = bytearray(data)
        struct.pack_into("<L", damaged, 18, size)
        struct.pack_into("<L", damaged, 22, size)
        refused(damaged, bundle_path)
    zip64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**63, 2**63, 2**63, 2**63)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 2**63, 1)
    refused(data[: -END.size] + zip64 + locator + data[-END.size :], bundle_path)


class Forged:
    """A manifest with any text, as written by an attacker who can recompute every hash."""

    def __init__(self, text):
        self.text = text

    def to_json(self):
        return self.text


def forged(content, change):
    """Return a canonical bundle with correct hashes and a changed manifest; `change` may also return other text."""
    manifest, files = content
    table = json.loads(
        dataclasses.replace(manifest, files={name: sha256(data) for name, data in files.items()}).to_json()
    )
    text = change(table) or canonical_json(table).encode()
    return pack(cast(Manifest, Forged(text)), files)


def long_list(table):
    table["provenance"] = {"x": [[]] * 400_000}


def long_labels(table):
    table["labels"] = [f"{number:07d}" for number in range(120_000)]


def deep(table):
    return b'{"provenance": ' + b"[" * 700_000 + b"]" * 700_000 + b"}"


@pytest.mark.parametrize("change", [long_list, long_labels, deep])
def test_a_manifest_of_megabytes_is_refused_for_its_size(content, tmp_path, change):
    """It is refused before the JSON is parsed or the file is in memory: 5 MB took 4 s, and 120 MB took 95 s and 3.9 GB."""
    path = tmp_path / "large.edgecnn"
    path.write_bytes(forged(content, change))
    assert path.stat().st_size > 1_000_000
    tracemalloc.start()
    with pytest.raises(BundleError, match=r"manifest\.json has .* bytes; the limit is 524,288"):
        read_bundle(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    refused(path.read_bytes(), path)


NUMBERS = 25_000


def wide(table):
    """As many values as the largest manifest can hold, nested as deeply as allowed: its canonical form would be 20 times as long."""
    value = [0] * NUMBERS
    for _ in range(18):
        value = [value]
    table["provenance"] = {"x": value}
    return json.dumps(table, separators=(",", ":"), sort_keys=True).encode()


def too_deep(table):
    value = [0] * NUMBERS
    for _ in range(900):
        value = [value]
    table["provenance"] = {"x": value}
    return json.dumps(table, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize("change", [wide, too_deep])
def test_the_largest_manifest_is_cheap(content, tmp_path, monkeypatch, change):
    """Indented by 900 levels, 25,000 numbers would need 22 MB of spaces. The real limit allows eight times as many."""
    monkeypatch.setattr("edgecnn.bundle.file.MAX_MANIFEST_BYTES", 1 << 16)
    monkeypatch.setattr("edgecnn.bundle.manifest.MAX_MANIFEST_BYTES", 1 << 16)
    data = forged(content, change)
    tracemalloc.start()
    refused(data, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 7_500_000


@pytest.mark.parametrize("tolerance", [1e300, 1.5, float(2**70)])
def test_a_tolerance_that_proves_nothing(content, tmp_path, tolerance):
    def change(table):
        table["models"][1]["tolerance"] = tolerance

    assert "models/float32.tflite: tolerance must be" in refused(forged(content, change), tmp_path)


def test_codes_compared_as_logits(content, tmp_path):
    def change(table):
        table["models"][0] |= {"tolerance_unit": "logit", "tolerance": 200.0}

    assert "codes have a tolerance in LSB" in refused(forged(content, change), tmp_path)


def test_no_golden_image_proves_nothing(content, tmp_path):
    """With no row in any golden array, everything agrees but nothing was compared."""
    manifest, files = content
    empty = files | {
        "golden/inputs.npy": npy(np.zeros((0, 4, 5, 3), np.uint8)),
        "golden/int8.tflite.npy": npy(np.zeros((0, 2), np.int8)),
        "golden/float32.tflite.npy": npy(np.zeros((0, 2), np.float32)),
    }
    assert "golden/inputs.npy holds 0 images, expected 1 to 1,000" in refused(
        forged((manifest, empty), lambda table: None), tmp_path
    )


def test_too_many_golden_images(content, tmp_path):
    manifest, files = content
    many = files | {
        "golden/inputs.npy": npy(np.zeros((1001, 4, 5, 3), np.uint8)),
        "golden/int8.tflite.npy": npy(np.zeros((1001, 2), np.int8)),
        "golden/float32.tflite.npy": npy(np.zeros((1001, 2), np.float32)),
    }
    assert "1,001" in refused(forged((manifest, many), lambda table: None), tmp_path)


def test_golden_outputs_that_are_not_numbers(content, tmp_path):
    manifest, files = content
    for value in (np.nan, np.inf):
        odd = files | {"golden/float32.tflite.npy": npy(np.full((2, 2), value, np.float32))}
        assert "models/float32.tflite" in refused(forged((manifest, odd), lambda table: None), tmp_path)


def test_too_many_entries(bundle_path):
    header = LOCAL_HEADER.pack(b"PK\x03\x04", 20, 0, 0, 0, 33, 0, 0, 0, 4, 0)
    refused(b"".join(header + b"%04d" % number for number in range(10_000)), bundle_path)


def test_a_manifest_that_is_not_canonical(content, bundle_path):
    """A manifest with different spacing or a duplicate key would read the same, but each content has only one form."""
    manifest, files = content
    whole = dataclasses.replace(manifest, files={name: sha256(item) for name, item in files.items()})
    text = whole.to_json()
    for other in (text + b" ", text.replace(b'"name": "small"', b'"name": "other",\n "name": "small"')):
        refused(pack(cast(Manifest, Forged(other)), files), bundle_path)


def test_a_hash_that_does_not_match_its_file(content, bundle_path):
    manifest, files = content
    hashes = {name: sha256(item) for name, item in files.items()}
    assert "SHA-256" in refused(
        pack(dataclasses.replace(manifest, files=hashes | {"recipe.toml": "0" * 64}), files), bundle_path
    )
    listed = dataclasses.replace(manifest, files=hashes | {"more.txt": "0" * 64})
    assert "more.txt is missing" in refused(pack(listed, files), bundle_path)
    assert "more.txt is not listed" in refused(
        pack(dataclasses.replace(manifest, files=hashes), files | {"more.txt": b""}), bundle_path
    )


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_golden_arrays_must_be_plain():
    good = np.arange(6, dtype=np.int8).reshape(3, 2)
    assert np.array_equal(read_array("a", npy(good), ("|i1",), (2,)), good)
    header_lies = npy(good).replace(b"(3, 2)", b"(9, 2)")
    version_2 = b"\x93NUMPY\x02\x00"
    for data in (
        b"",
        b"\x93NUMPY",
        npy(good)[:-1],
        npy(good) + b"\0",
        npy(good)[:64],
        header_lies,
        version_2 + npy(good)[8:],
        npy(good.astype(np.int16)),
        npy(np.asfortranarray(good)),
        npy(good[:, :1]),
        npy(good.astype(object), allow_pickle=True),
        npy(good).replace(b"'descr': '|i1'", b"'descr': '|O1'"),
        npy(good).replace(b"\xff\xff", b"\x00\x00")[:9],
    ):
        with pytest.raises(BundleError):
            read_array("a", data, ("|i1",), (2,))


def test_golden_arrays_with_different_counts(content, tmp_path):
    manifest, files = content
    for name, array in (
        ("golden/int8.tflite.npy", np.zeros((3, 2), np.int8)),
        ("golden/int8.tflite.npy", np.zeros((2, 3), np.int8)),
        ("golden/int8.tflite.npy", np.zeros((2, 2), np.float32)),
        ("golden/float32.tflite.npy", np.zeros((2, 2), np.int8)),
        ("golden/inputs.npy", np.zeros((0, 4, 5, 3), np.uint8)),
        ("golden/inputs.npy", np.zeros((2, 5, 4, 3), np.uint8)),
    ):
        changed = files | {name: npy(array)}
        hashes = {key: sha256(item) for key, item in changed.items()}
        refused(pack(dataclasses.replace(manifest, files=hashes), changed), tmp_path)


LIMIT = StrangerLimit(
    known="stranger/known.npy",
    length=3,
    neighbours=2,
    scores=(0.5, 1.0),
    similarities=(0.8, 0.9, 1.0),
    limit=-4.0,
    rate=0.05,
)


def told(content, **changes):
    """Return the small bundle's content with a decision on strangers, and its first model's golden features."""
    manifest, files = content
    first, *others = manifest.models
    first = dataclasses.replace(first, golden_features="golden/int8.tflite.features.npy")
    manifest = dataclasses.replace(manifest, models=(first, *others), stranger=dataclasses.replace(LIMIT, **changes))
    features = np.arange(6, dtype=np.int8).reshape(2, 3)
    known = np.full((4, 3), 127, np.int8)
    return manifest, files | {first.golden_features: npy(features), LIMIT.known: npy(known)}


def test_a_bundle_that_recognises_strangers_is_read_back(content, tmp_path):
    manifest, files = told(content)
    write_bundle(tmp_path / "told.edgecnn", manifest, files)
    bundle = read_bundle(tmp_path / "told.edgecnn")
    assert bundle.manifest.stranger == LIMIT
    assert bundle.known_features().shape == (4, 3) and bundle.known_features().dtype == np.int8
    int8, float32 = bundle.manifest.models
    assert bundle.golden_features(int8).tolist() == [[0, 1, 2], [3, 4, 5]] and bundle.golden_features(float32) is None


@pytest.mark.parametrize(
    ("changes", "files", "message"),
    [
        ({"length": 4}, {}, "stranger/known.npy"),
        ({"neighbours": 5}, {}, "holds 4 images, expected 5 to 10,000"),
        ({}, {"stranger/known.npy": np.full((10_001, 3), 1, np.int8)}, "holds 10,001 images"),
        (
            {"length": 65_536},
            {"stranger/known.npy": np.full((257, 65_536), 1, np.int8)},
            "holds 16,842,752 bytes;",
        ),
        ({}, {"stranger/known.npy": np.full((4, 3), 1, np.uint8)}, "stranger/known.npy"),
        (
            {},
            {"golden/int8.tflite.features.npy": np.zeros((3, 3), np.int8)},
            "one row per golden image: expected 2, received 3",
        ),
        ({}, {"golden/int8.tflite.features.npy": np.zeros((2, 2), np.int8)}, "golden/int8.tflite.features.npy"),
        ({}, {"golden/int8.tflite.features.npy": np.zeros((2, 3), np.float32)}, "golden/int8.tflite.features.npy"),
        ({"scores": (1.0, 0.5)}, {}, "none smaller than the one before"),
        ({"similarities": (0.5,)}, {}, "two or more numbers"),
        ({"limit": 0.5}, {}, "stranger.limit"),
        ({"rate": 0.6}, {}, "stranger.rate"),
    ],
)
def test_an_incomplete_decision_on_strangers(content, tmp_path, changes, files, message):
    manifest, known = told(content, **changes)
    with pytest.raises(BundleError, match=re.escape(message)):
        write_bundle(tmp_path / "told.edgecnn", manifest, known | {name: npy(array) for name, array in files.items()})


def test_features_of_known_images_are_required(content, tmp_path):
    manifest, files = told(content)
    del files[LIMIT.known]
    with pytest.raises(BundleError, match="missing"):
        write_bundle(tmp_path / "told.edgecnn", manifest, files)


def test_a_class_cannot_have_the_name_of_the_decision(content, tmp_path):
    manifest, files = told(content)
    stranger = dataclasses.replace(manifest, labels=("cat", "stranger"))
    with pytest.raises(BundleError, match="'stranger'"):
        write_bundle(tmp_path / "told.edgecnn", stranger, files)
    write_bundle(tmp_path / "class.edgecnn", dataclasses.replace(content[0], labels=("cat", "stranger")), content[1])


onnx = pytest.importorskip("onnx", reason="the models are made with onnx")


def external(tensor, location="secret.bin"):
    """Move a tensor's values to another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)


def places(model):
    """Yield a name and a new tensor for each place in a model that can hold a tensor, three levels deep."""
    node = model.graph.node.add(name="a node", op_type="If")
    inner = node.attribute.add(name="then_branch").g
    yield "initializer", model.graph.initializer.add()
    yield "sparse initializer", model.graph.sparse_initializer.add().values
    yield "constant", node.attribute.add(name="value").t
    yield "constants", node.attribute.add(name="values").tensors.add()
    yield "inner initializer", inner.initializer.add()
    yield "inner constant", inner.node.add().attribute.add().sparse_tensors.add().indices
    yield "function", model.functions.add().node.add().attribute.add().graphs.add().initializer.add()
    yield "training", model.training_info.add().algorithm.initializer.add()


def test_the_fields_match_onnx():
    """Every message that leads to a tensor, through each of its fields."""
    fields, waiting = {}, [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.name not in fields:
            fields[message.name] = {field.number: field.message_type for field in message.fields if field.message_type}
            waiting += fields[message.name].values()
    leading: set[str] = set()
    found = {"TensorProto"}
    while found != leading:
        leading = found
        found = leading | {
            name for name, inner in fields.items() if any(item.name in leading for item in inner.values())
        }
    short = {
        name: name.removesuffix("Proto").removesuffix("Info").removesuffix("Tensor").lower() or "tensor"
        for name in leading
    }
    expected = {
        short[name]: {number: short[item.name] for number, item in fields[name].items() if item.name in leading}
        for name in leading
    }
    assert expected == INNER


@pytest.mark.parametrize("index", range(8))
def test_external_data_is_detected_anywhere(make_onnx, index):
    model = onnx.load_from_string(make_onnx())
    model.graph.doc_string = "its location is not another file's"
    tensors = list(places(model))
    assert not has_external_data(model.SerializeToString())
    external(tensors[index][1])
    assert has_external_data(model.SerializeToString()), tensors[index][0]


def test_bytes_that_cannot_be_parsed_are_refused(make_onnx):
    data = make_onnx()
    assert has_external_data(data[:4] + b"ORTM" + data[8:]), "ONNX Runtime's own format"
    for damage in (b"\x0alocation", b"\x0blocation", b"\xff" * 11 + b"location", b"\x38\x01location"):
        assert has_external_data(damage)


def test_neither_an_engine_nor_a_bundle_accepts_it(make_onnx, content, tmp_path, monkeypatch):
    """ONNX Runtime would read the file from the working directory."""
    model = onnx.load_from_string(make_onnx())
    external(model.graph.initializer[0])
    data = model.SerializeToString()
    with pytest.raises(EngineError, match="values in another file"):
        open_engine("onnxruntime", data, "onnx")
    manifest, files = content
    entry = dataclasses.replace(manifest.models[0], file="models/int8.onnx", format="onnx")
    manifest = dataclasses.replace(manifest, models=(entry, *manifest.models[1:]), defaults={})
    files = {**files, entry.file: data}
    del files[manifest.models[0].file.replace("onnx", "tflite")]
    with pytest.raises(BundleError, match=r"models/int8\.onnx has values in another file"):
        write_bundle(tmp_path / "a.edgecnn", manifest, files)
    write_bundle(tmp_path / "a.edgecnn", manifest, {**files, entry.file: make_onnx()})
    assert parse_bundle((tmp_path / "a.edgecnn").read_bytes(), tmp_path).manifest.models[0] == entry
