"""The Debian package: content, dependencies and scripts. tests/emulated installs it."""

import importlib
import os
import subprocess
import zipfile

import pytest

pytest.importorskip("hatchling", reason="building needs the dev extra")

from edgecnn import __version__
from edgecnn.cli import COMMANDS
from edgecnn.device.doctor import PAGE_PACKAGES

pytestmark = pytest.mark.needs("dpkg-deb", package="dpkg")


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
def unpacked(package, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--raw-extract", package, folder], check=True)
    return folder


def test_it_holds_edgecnn_litert_and_what_debian_requires(unpacked, deb):
    paths = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
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
    assert (unpacked / "usr/bin/edgecnn").stat().st_mode & 0o777 == 0o755
    assert (unpacked / module / "errors.py").stat().st_mode & 0o777 == 0o644
    unit = (unpacked / "usr/lib/systemd/system/edgecnn.service").read_text()
    assert "\nExecStart=/usr/bin/edgecnn service run\n" in unit and "EXECUTABLE" not in unit


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


@pytest.mark.slow
def test_two_builds_have_the_same_bytes(deb, download, package, tmp_path):
    assert deb.build("arm64", tmp_path, download).read_bytes() == package.read_bytes()


@pytest.mark.needs("bash")
def test_bash_completes_commands_actions_and_options(unpacked):
    def complete(*words):
        file = unpacked / "usr/share/bash-completion/completions/edgecnn"
        script = f'. "{file}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _edgecnn; echo "${{COMPREPLY[@]}}"'
        command = ["bash", "-c", script, "bash", "edgecnn", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    assert complete("") == [*COMMANDS, "--help", "--version"]
    assert complete("se") == ["service", "selftest"]
    assert complete("slot", "a") == ["add", "activate"]
    assert complete("update", "s") == ["status"]
    assert complete("service", "r") == ["remove", "run"]
    assert complete("classify", "--mqtt-p") == ["--mqtt-password-file", "--mqtt-picture", "--mqtt-prefix"]


def test_its_scripts_are_valid_shell_and_purge_removes_everything_the_service_made(unpacked):
    for name in ("postinst", "prerm", "postrm"):
        script = unpacked / "DEBIAN" / name
        assert os.access(script, os.X_OK)
        subprocess.run(["sh", "-n", script], check=True)
    made = (
        "/etc/edgecnn",
        "/var/lib/edgecnn",
        "/var/lib/private/edgecnn",
        "/var/lib/edgecnn-trust",
        "/var/lib/edgecnn-update",
    )
    assert set(made) <= set((unpacked / "DEBIAN/postrm").read_text().split())


@pytest.mark.slow  # lintian reads every file, and takes as long as all tests above
@pytest.mark.needs("lintian")
def test_lintian_complains_only_about_the_fake_library(package):
    done = subprocess.run(
        ["lintian", "--allow-root", "--tag-display-limit", "0", package], capture_output=True, text=True
    )
    tags = {line.split()[2] for line in done.stdout.splitlines() if line.startswith(("E:", "W:"))}
    assert tags <= {"mismatched-override", "unused-override"}, done.stdout


@pytest.mark.needs("man", package="man-db")
def test_the_man_page_is_valid(unpacked):
    page = unpacked / "usr/share/man/man1/edgecnn.1.gz"
    command = ["man", "--warnings", "--local-file", page]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    assert done.returncode == 0 and done.stderr == ""
    assert all(f"\n       {name}" in done.stdout for name in COMMANDS)


def test_without_hatchling_one_line_says_what_has_it(deb, monkeypatch):
    monkeypatch.setattr("sys.argv", ["deb.py"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"hatchling.*make deb"):
        deb.main()
