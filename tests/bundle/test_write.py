"""A bundle has one canonical form."""

import dataclasses
import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from edgecnn.bundle.canonical import pack
from edgecnn.bundle.manifest import MANIFEST, MAX_MANIFEST_BYTES
from edgecnn.bundle.read import read_bundle
from edgecnn.bundle.write import write_bundle
from edgecnn.errors import BundleError, OutputError, OutputExistsError


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
            patch.setattr(f"edgecnn.bundle.canonical.{name}", at_most)
            assert pack(manifest, files) == whole
            patch.setattr(f"edgecnn.bundle.canonical.{name}", at_most - 1)
            with pytest.raises(BundleError, match=rf"limit is .*{at_most - 1:,}"):
                pack(manifest, files)


def test_no_other_entry_can_be_named_manifest(content):
    manifest, files = content
    with pytest.raises(BundleError, match=r"'manifest\.json' is not a valid name"):
        pack(manifest, files | {MANIFEST: b"{}"})


def test_unwritable_folder_leaves_nothing(tmp_path, content):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_bundle(tmp_path / "file" / "a.edgecnn", *content)


def test_needs_neither_zipfile_nor_tempfile_to_read(bundle_path):
    """Reading is part of the start of `edgecnn classify`, and these two cost milliseconds."""
    code = (
        "import sys; from pathlib import Path; from edgecnn.bundle.read import read_bundle; import numpy, PIL.Image;"
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
