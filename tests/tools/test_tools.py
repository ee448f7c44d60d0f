"""The maintainers' scripts, and the Debian package."""

import gzip
import importlib
import io
import json
import lzma
import os
import runpy
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

pytest.importorskip("hatchling", reason="building needs the dev extra")

from edgecnn import __version__
from edgecnn.cli import COMMANDS
from edgecnn.data import open_dataset
from edgecnn.data.items import LabelledImages, array_items
from edgecnn.device.doctor import PAGE_PACKAGES
from edgecnn.recipe import DataRecipe


def load_bench(root, monkeypatch, name, folder="bench"):
    """Import a bench the way benches import each other."""
    monkeypatch.syspath_prepend(root / "tools" / folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def readme(root, monkeypatch):
    """tools/readme.py."""
    monkeypatch.syspath_prepend(root / "tools")
    return importlib.import_module("readme")


def test_the_generated_tables_match_the_benches_and_the_bundles(readme):
    for page in readme.PAGES:
        assert page.read_text() == readme.generated(page), f"{page.name}: python tools/readme.py"


def test_write_images(root, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn, of the train extra")
    monkeypatch.setattr(sys, "argv", ["write_images.py", "--data", "digits", "--out", str(tmp_path), "--count", "3"])
    runpy.run_path(root / "tools" / "write_images.py", run_name="__main__")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 and all(name[3].isdigit() for name in names)
    with Image.open(tmp_path / names[0]) as image:
        assert image.size == (8, 8) and image.mode == "L"


def test_an_interrupted_bench_resumes_unless_something_else_is_measured(root, tmp_path, monkeypatch):
    harness = load_bench(root, monkeypatch, "harness")
    path, axes = tmp_path / "some.json", {"seed": [1, 2], "network": ["a", "b"]}
    first = harness.Results(path, harness.about("some", n=3))
    cases = list(first.missing(**axes))
    assert cases[:2] == [{"seed": 1, "network": "a"}, {"seed": 1, "network": "b"}]
    first.add(**cases[0], right=7)
    again = harness.Results(path, harness.about("some", n=3))
    assert list(again.missing(**axes)) == cases[1:] and again.rows[0]["right"] == 7
    assert not harness.Results(path, harness.about("some", n=4)).rows


@pytest.mark.parametrize(("per_class", "taught"), [(0, 8 + 3), (3, 3 + 3), (5, 5 + 4)])
def test_photos_teach_or_are_kept_aside_by_class(root, monkeypatch, per_class, taught):
    bench = load_bench(root, monkeypatch, "ways")
    photos = {f"set/{label}/{index}.jpg": label for label, count in (("a", 10), ("b", 4)) for index in range(count)}
    drawn = bench.drawn(photos, per_class, 1)
    assert len(drawn) == len(set(drawn)) == taught and {photos[name] for name in drawn} == {"a", "b"}
    assert drawn == bench.drawn(photos, per_class, 1) != bench.drawn(photos, per_class, 2)


def test_speed_of_another_bundle_is_refused(readme, tmp_path, monkeypatch):
    report = json.loads(readme.SPEED.read_text())
    assert "| litert " in readme.speed_table()
    report["bundle"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(report))
    monkeypatch.setattr(readme, "SPEED", tmp_path / "other.json")
    with pytest.raises(ValueError, match=r"python tools/bench/benchmark\.py"):
        readme.speed_table()


def test_a_mutant_runs_the_tests_of_its_modules_name_and_then_those_of_its_room(root, monkeypatch):
    mutants, tests = load_bench(root, monkeypatch, "mutants", "faults"), root / "tests"
    rooms = mutants.modules(root)
    assert {".", "runtime", "device/slots", "bundle"} <= rooms.keys() and not rooms.keys() & {
        "cli",
        "train",
        "networks",
    }
    assert "edgecnn/verify/parity_report.py" in rooms["verify"] and "edgecnn/verify/layers.py" not in rooms["verify"]

    def run(file):
        return mutants.nearby(file, root)

    def files(folder):
        return sorted(map(str, folder.glob("test_*.py")))

    named = str(tests / "runtime" / "test_decision.py")
    assert run("edgecnn/runtime/decision.py") == [[named], [one for one in files(tests / "runtime") if one != named]]
    assert run("edgecnn/device/slots/record.py") == [files(tests / "device" / "slots")]
    assert run("edgecnn/device/__init__.py") == [files(tests / "device")], "not those of all rooms inside"
    assert run("edgecnn/recipe.py")[0] == [str(tests / "test_recipe.py")]
    assert run("edgecnn/pixels.py") == [files(tests)]


Q75_FIRST_ROW = [8, 6, 5, 8, 12, 20, 26, 31]
"""From the luminance table at quality 75: half of the values of table K.1 in ITU-T T.81, rounded up."""


def test_the_zip_has_the_splits_and_the_quality(root, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(root / "tools" / "data")
    tool = importlib.import_module("cifar10_jpeg")
    pixels = np.random.default_rng(1).integers(0, 256, (20, 32, 32, 3), np.uint8)
    classes = np.arange(20) % 2
    items = [
        *array_items("train", "data_batch_1", pixels, classes),
        *array_items("test", "test_batch", 255 - pixels, classes),
    ]
    images = LabelledImages(
        name="cifar10", title="CIFAR-10", labels=("cat", "dog"), shape=(32, 32, 3), mirror=True, items=tuple(items)
    )
    path = tmp_path / "small.zip"
    assert tool.write_zip(images, path) == 30

    with zipfile.ZipFile(path) as archive:
        tests = [name for name in archive.namelist() if "/test/" in name]
        assert tests == [
            f"small/test/{label}/{number:04d}.jpg" for label in ("cat", "dog") for number in (0, 2, 4, 6, 8)
        ]
        decoded = Image.open(io.BytesIO(archive.read("small/test/dog/0002.jpg")))
    assert decoded.quantization[0][:8] == Q75_FIRST_ROW
    assert JpegImagePlugin.get_sampling(decoded) == 2
    distances = [np.abs(np.asarray(decoded, int) - (255 - other)).mean() for other in pixels]
    assert np.argmin(distances) == 5  # JPEG preserves noise badly, but this is still the best match

    dataset = open_dataset(DataRecipe(source=str(path)))
    assert dataset.labels == ("cat", "dog")


@pytest.fixture(scope="module")
def release(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tools")
        yield importlib.import_module("release")


@pytest.fixture
def committed(release, root, tmp_path, monkeypatch):
    """The project as a separate repository with one commit, since the tests may run in a copy without a repository."""
    copy = tmp_path / "project"
    shutil.copytree(
        root,
        copy,
        ignore=shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", "runs", "site", "demo", "dist"),
    )
    for command in (("init",), ("add", "--all"), ("commit", "--message", "The project")):
        person = ("-c", "user.name=edgecnn", "-c", "user.email=edgecnn@example.org")
        subprocess.run(["git", *person, *command], cwd=copy, check=True, capture_output=True)
    monkeypatch.setattr(release, "ROOT", copy)


@pytest.mark.needs("git")
@pytest.mark.usefixtures("committed")
@pytest.mark.slow
def test_two_builds_from_clean_copies_have_the_same_bytes(release, tmp_path, capsys):
    (tmp_path / "dist").mkdir()
    files = release.build_twice(tmp_path / "dist")
    assert [path.name for path in files] == [f"edgecnn-{__version__}-py3-none-any.whl", f"edgecnn-{__version__}.tar.gz"]
    assert capsys.readouterr().out.count("identical in both builds") == 2
    epoch = int(release.git("log", "-1", "--format=%ct"))
    with tarfile.open(next(path for path in files if path.name.endswith(".tar.gz"))) as archive:
        assert {member.mtime for member in archive} == {epoch}
        assert any(member.name.endswith("docs/tutorial.md") for member in archive)
    assert zipfile.ZipFile(next(path for path in files if path.suffix == ".whl")).testzip() is None


def test_builds_that_differ_are_not_released(release, tmp_path, monkeypatch):
    builds = iter([{"a.whl": b"1", "b.tar.gz": b"2"}, {"a.whl": b"1", "b.tar.gz": b"3"}])
    monkeypatch.setattr(release, "build", lambda out: next(builds))
    with pytest.raises(SystemExit, match=r"two builds differ: b\.tar\.gz"):
        release.build_twice(tmp_path)


def test_uncommitted_changes_are_not_released(release, monkeypatch):
    monkeypatch.setattr(release, "git", lambda *arguments: b" M edgecnn/__init__.py\n")
    with pytest.raises(SystemExit, match="uncommitted"):
        release.release(["python3"])


@pytest.fixture(scope="module")
def initramfs(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root / "tools" / "board"))
        import initramfs

        yield initramfs
        sys.modules.pop("initramfs")


def unpacked(archive):
    """Read a "newc" archive: names to (mode, content)."""
    entries, start = {}, 0
    while True:
        assert archive[start : start + 6] == b"070701" and start % 4 == 0
        fields = [int(archive[start + 6 + 8 * number : start + 14 + 8 * number], 16) for number in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[start + 110 : start + 110 + name_size - 1].decode()
        content = -(-(start + 110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = mode, archive[content : content + size]
        start = -(-(content + size) // 4) * 4


def test_an_archive_reads_back_with_the_folders_that_its_files_need(initramfs):
    files = {
        "init": initramfs.file(b"#!/bin/sh\n", 0o755),
        "usr/bin/tool": initramfs.file(b"x" * 5),
        "usr/lib/empty": initramfs.file(b""),
    }
    archive = initramfs.cpio(files)
    found = unpacked(archive)
    assert {name: found[name] for name in files} == files
    folders = {name: entry for name, entry in found.items() if name not in files}
    assert folders == dict.fromkeys(("usr", "usr/bin", "usr/lib"), (stat.S_IFDIR | 0o755, b""))
    assert list(found).index("usr") < list(found).index("usr/bin") < list(found).index("usr/bin/tool")
    assert gzip.decompress(initramfs.compressed(archive)) == archive
    assert initramfs.compressed(archive) == initramfs.compressed(initramfs.cpio(files)), (
        "the same files, the same bytes"
    )


def test_modules_follow_their_dependencies_and_appear_once(initramfs, tmp_path):
    def module(name, needs):
        return b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=" + name.encode() + b"\0"

    contents = {"fs/9p": module("9p", "9pnet,netfs"), "net/9pnet": module("9pnet", ""), "fs/netfs": module("netfs", "")}
    contents["media/v4l2-tpg"] = module("v4l2_tpg", "")
    contents["media/vivid"] = module("vivid", "v4l2-tpg,netfs")
    for name, content in contents.items():
        path = tmp_path / "kernel" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("media"):
            path.with_suffix(".ko.xz").write_bytes(lzma.compress(content))
        else:
            path.write_bytes(content)
    modules = initramfs.read_modules(tmp_path, ["9p", "vivid"])
    assert list(modules) == ["9pnet", "netfs", "9p", "v4l2_tpg", "vivid"]
    assert modules["vivid"] == contents["media/vivid"]
    with pytest.raises(FileNotFoundError, match="no module overlay"):
        initramfs.read_modules(tmp_path, ["overlay"])


@pytest.fixture(scope="module")
def deb(root):
    """tools/deb.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "tools")
        yield importlib.import_module("deb")


@pytest.fixture(scope="module")
def download(deb):
    """A stand-in for LiteRT's wheel: its file names, a fake library, and the files that the package leaves out."""

    def download(architecture, folder):
        path = folder / "ai_edge_litert-2.3.0-cp313-cp313-manylinux_2_27.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name in (*deb.LITERT, "libLiteRt.so", "tools/apply_plugin_main"):
                wheel.writestr(f"ai_edge_litert/{name}", b"# nothing\n")
            for name in ("METADATA", "RECORD"):
                wheel.writestr(f"ai_edge_litert-2.3.0.dist-info/{name}", "Name: ai-edge-litert\nVersion: 2.3.0\n")
        return path

    return download


@pytest.fixture(scope="module")
def package(deb, download, tmp_path_factory):
    return deb.build("arm64", tmp_path_factory.mktemp("deb"), download)


@pytest.fixture(scope="module")
def unpacked_deb(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder], check=True)
    return folder


@pytest.mark.needs("dpkg-deb", package="dpkg")
def test_it_holds_edgecnn_litert_and_what_debian_requires(unpacked_deb, deb):
    paths = {path.relative_to(unpacked_deb) for path in unpacked_deb.rglob("*") if path.is_file()}
    module = deb.MODULES / "edgecnn"
    others = {str(path) for path in paths if not path.is_relative_to(module)}
    assert others == {
        *(f"DEBIAN/{name}" for name in ("control", "postinst", "prerm", "postrm")),
        "usr/bin/edgecnn",
        *(f"usr/lib/edgecnn/ai_edge_litert/{name}" for name in deb.LITERT),
        "usr/lib/edgecnn/ai_edge_litert-2.3.0.dist-info/METADATA",
        "usr/lib/python3/dist-packages/edgecnn.pth",
        *(f"usr/lib/python3/dist-packages/edgecnn-{__version__}.dist-info/{name}" for name in ("METADATA", "WHEEL")),
        *(
            f"usr/lib/systemd/system/{name}"
            for name in ("edgecnn.service", "edgecnn-update.service", "edgecnn-update.timer")
        ),
        "usr/lib/sysusers.d/edgecnn.conf",
        "usr/share/bash-completion/completions/edgecnn",
        "usr/share/doc/edgecnn/changelog.gz",
        "usr/share/doc/edgecnn/copyright",
        "usr/share/lintian/overrides/edgecnn",
        "usr/share/man/man1/edgecnn.1.gz",
    }
    assert module / "_data/models/cifar10-resnet8/cifar10-resnet8.edgecnn" in paths
    assert (unpacked_deb / "usr/bin/edgecnn").stat().st_mode & 0o777 == 0o755
    assert (unpacked_deb / module / "errors.py").stat().st_mode & 0o777 == 0o644
    unit = (unpacked_deb / "usr/lib/systemd/system/edgecnn.service").read_text()
    assert "\nExecStart=/usr/bin/edgecnn service run\n" in unit and "EXECUTABLE" not in unit


@pytest.mark.needs("dpkg-deb", package="dpkg")
def test_it_depends_on_debians_packages_and_names_its_architecture(package):
    def field(name):
        command = ["dpkg-deb", "--field", package, name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert package.name == f"edgecnn_{__version__}_arm64.deb"
    assert field("Architecture") == "arm64" and field("Version") == __version__
    needed = {item.split(" ")[0] for item in field("Depends").split(", ")}
    assert needed == {"python3", "python3-numpy", "python3-pil", "python3-typer", "libc6", "libgcc-s1", "libstdc++6"}
    assert set(field("Recommends").split(", ")) == {f"python3-{name}" for name in PAGE_PACKAGES}, "for the page"
    listing = subprocess.run(["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True).stdout
    assert all("root/root" in line for line in listing.splitlines())


@pytest.mark.needs("dpkg-deb", package="dpkg")
def test_a_machine_of_another_architecture_refuses_it_before_anything_changes(deb, download, package, tmp_path):
    own = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    other = "amd64" if own == "arm64" else "arm64"
    foreign = package if other == "arm64" else deb.build(other, tmp_path, download)
    for folder in ("updates", "info"):
        (tmp_path / "dpkg" / folder).mkdir(parents=True)
    (tmp_path / "dpkg" / "status").touch()
    command = ["dpkg", "--simulate", f"--admindir={tmp_path / 'dpkg'}", "--force-not-root", "--install"]
    done = subprocess.run([*command, foreign], capture_output=True, text=True)
    assert done.returncode == 1 and f"package architecture ({other}) does not match system ({own})" in done.stderr


@pytest.mark.needs("dpkg-deb", package="dpkg")
@pytest.mark.slow
def test_two_builds_have_the_same_bytes(deb, download, package, tmp_path):
    assert deb.build("arm64", tmp_path, download).read_bytes() == package.read_bytes()


@pytest.mark.needs("dpkg-deb", package="dpkg")
@pytest.mark.needs("bash")
def test_bash_completes_commands_actions_and_options(unpacked_deb):
    def complete(*words):
        file = unpacked_deb / "usr/share/bash-completion/completions/edgecnn"
        script = f'. "{file}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _edgecnn; echo "${{COMPREPLY[@]}}"'
        command = ["bash", "-c", script, "bash", "edgecnn", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert complete("") == [*COMMANDS, "--help", "--version"]
    assert complete("se") == ["service", "selftest"]
    assert complete("slot", "a") == ["add", "activate"]
    assert complete("update", "s") == ["status"]
    assert complete("service", "r") == ["remove", "run"]
    assert complete("classify", "--mqtt-p") == ["--mqtt-password-file", "--mqtt-picture", "--mqtt-prefix"]


@pytest.mark.needs("dpkg-deb", package="dpkg")
def test_its_scripts_are_valid_shell_and_purge_removes_everything_the_service_made(unpacked_deb):
    for name in ("postinst", "prerm", "postrm"):
        script = unpacked_deb / "DEBIAN" / name
        assert os.access(script, os.X_OK)
        subprocess.run(["sh", "-n", script], check=True)
    made = (
        "/etc/edgecnn",
        "/var/lib/edgecnn",
        "/var/lib/private/edgecnn",
        "/var/lib/edgecnn-trust",
        "/var/lib/edgecnn-update",
    )
    assert set(made) <= set((unpacked_deb / "DEBIAN/postrm").read_text().split())


@pytest.mark.needs("dpkg-deb", package="dpkg")
@pytest.mark.slow  # lintian reads every file, and takes as long as all tests above
@pytest.mark.needs("lintian")
def test_lintian_complains_only_about_the_fake_library(package):
    done = subprocess.run(
        ["lintian", "--allow-root", "--tag-display-limit", "0", package], capture_output=True, text=True
    )
    tags = {line.split()[2] for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))}
    assert tags <= {"mismatched-override", "unused-override"}, done.stdout


@pytest.mark.needs("dpkg-deb", package="dpkg")
@pytest.mark.needs("man", package="man-db")
def test_the_man_page_is_valid(unpacked_deb):
    page = unpacked_deb / "usr/share/man/man1/edgecnn.1.gz"
    command = ["man", "--warnings", "--local-file", page]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"\n       {name}" in done.stdout for name in COMMANDS)


@pytest.mark.needs("dpkg-deb", package="dpkg")
def test_without_hatchling_one_line_says_what_has_it(deb, monkeypatch):
    monkeypatch.setattr("sys.argv", ["deb.py"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"hatchling.*make deb"):
        deb.main()
