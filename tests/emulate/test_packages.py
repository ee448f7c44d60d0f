"""Debian's packages and wheels for a board."""

import importlib.metadata
import os
import shlex
import subprocess
import time
import tomllib

import pytest

from edgecnn import packages
from edgecnn.errors import EmulatorError, OutputError
from edgecnn.runtime.engines import ENGINES

ONE_LINE = """
# deb http://archive.invalid/debian sid main
deb [signed-by=/keys/one.gpg] http://archive.invalid/debian trixie main contrib
deb http://archive.invalid/debian trixie-backports main
deb-src http://archive.invalid/debian trixie main
deb http://vendor.invalid/linux noble stable
"""

DEB822 = """
Types: deb
URIs: http://archive.invalid/debian-security
Suites: trixie-security
Components: main
Signed-By: /keys/two.gpg

Types: deb
URIs: http://archive.invalid/off
Suites: trixie
Components: main
Enabled: no
"""


@pytest.mark.needs("apt-get", package="apt")
def test_the_hosts_sources_of_both_styles_with_another_release(tmp_path, monkeypatch):
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "sources.list").write_text(ONE_LINE)
    (folder / "parts").mkdir()
    (folder / "parts" / "security.sources").write_text(DEB822)
    (tmp_path / "lists").mkdir()  # as in a container whose lists were deleted: nothing is known about keyrings
    monkeypatch.setattr(packages, "KEYRINGS", [str(tmp_path / "none"), str(folder)])
    options = {"sourcelist": folder / "sources.list", "sourceparts": folder / "parts"}
    lines = [f'Dir::Etc::{key} "{path}";' for key, path in options.items()] + [
        f'Dir::State::lists "{tmp_path}/lists/";'
    ]
    (tmp_path / "apt.conf").write_text("\n".join(lines))
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert packages.host_sources("bookworm") == [
        packages.Source("", "bookworm", "http://archive.invalid/debian/", "main", str(folder)),
        packages.Source("", "bookworm-security", "http://archive.invalid/debian-security/", "main", str(folder)),
    ]


def targets(*rows):
    return "".join("\t".join(row) + "\n" for row in rows)


def test_other_archives_with_debians_suites_are_left_out(program):
    debians = ("Debian", "stable-updates", "http://a.invalid/debian/", "main", "$(SIGNED_BY)")
    vendors = ("Vendor", "trixie", "http://b.invalid/", "main", "/keys/vendor.gpg")
    program("apt-get", f"cat <<'END'\n{targets(debians, vendors)}END")
    assert packages.host_sources("trixie") == [
        packages.Source("Debian", "trixie-updates", "http://a.invalid/debian/", "main", "")
    ]


def test_a_host_of_another_distribution_is_an_error(program):
    row = ("Ubuntu", "noble", "http://c.invalid/ubuntu/", "main", "")
    program("apt-get", f"cat <<'END'\n{targets(row)}END")
    with pytest.raises(EmulatorError, match=r"no Debian sources \(its suites: noble\).*Debian 12 or 13"):
        packages.host_sources("trixie")


def test_a_host_without_apt_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorError, match=r"apt-get is not installed.*packages apt, dpkg"):
        packages.fetch_debs(["python3.13-minimal"], "trixie", tmp_path / "cache")


def test_sources_as_a_file():
    sources = [
        packages.Source("Debian", "trixie", "http://a.invalid/", "contrib", "/k.gpg"),
        packages.Source("", "s", "u", "main", ""),
    ]
    first, second = packages.sources_text(sources).split("\n\n")
    assert first.splitlines()[1:4] == ["URIs: http://a.invalid/", "Suites: trixie", "Components: contrib"]
    assert "Architectures: arm64" in first and "Signed-By: /k.gpg" in first and "Signed-By" not in second


FAKE_APT = """
for last; do :; done
status=/dev/null
for option; do case $option in -oAPT::Status-Fd=*) status=/dev/fd/${option#*=};; esac; done
echo "$@" >> LOG
case "$*" in
*indextargets*) printf 'Debian\\ttrixie\\thttp://a.invalid/debian/\\tmain\\t/k.gpg\\n';;
*--simulate*)
    echo 'Inst libb (1:2.0-1 Debian:13/stable [arm64])'
    echo 'Inst liba (3+x~1 Debian:13/stable, Debian-Security:13/stable-security [all])';;
*download*)
    printf 'dlstatus:1:40.5:working\\n' > $status
    for option; do
        case $option in
        libb=1:2.0-1) echo b > libb_1%3a2.0-1_arm64.deb;;
        liba=*) if test -e BROKEN; then echo 'W: later'; echo 'E: Failed to fetch liba  404'; exit 100; fi
            echo a > liba_3+x~1_all.deb;;
        esac
    done;;
esac
"""


@pytest.fixture
def fake_apt(program, tmp_path):
    log, broken = tmp_path / "log", tmp_path / "broken"
    program("apt-get", FAKE_APT.replace("LOG", shlex.quote(str(log))).replace("BROKEN", shlex.quote(str(broken))))

    class Fake:
        cache = tmp_path / "cache"

        @staticmethod
        def calls(word):
            return [line for line in log.read_text().splitlines() if word in line.split()]

        @staticmethod
        def breaks(yes):
            broken.touch() if yes else broken.unlink()

    return Fake


def test_packages_are_resolved_and_downloaded_once(fake_apt):
    told = []
    debs = packages.fetch_debs(["liba"], "trixie", fake_apt.cache, lambda *state: told.append(state))
    assert [deb.name for deb in debs] == ["libb_1%3a2.0-1_arm64.deb", "liba_3+x~1_all.deb"]
    assert [deb.read_text() for deb in debs] == ["b\n", "a\n"]
    assert ("2 packages of Debian trixie", 40, 100) in told and told[-1][1:] == (100, 100)
    assert packages.fetch_debs(["liba"], "trixie", fake_apt.cache) == debs
    assert [len(fake_apt.calls(word)) for word in ("update", "download")] == [1, 1]
    (update,) = fake_apt.calls("update")
    states = update.split(" -oDir::State")[1:]
    assert states and all(f"={fake_apt.cache}" in option for option in states)
    assert "-oAPT::Architectures=arm64" in update
    assert "trixie main" not in (fake_apt.cache / "apt/trixie-arm64/sources/debian.sources").read_text()
    stamp = fake_apt.cache / "apt/trixie-arm64/updated"
    for age_s, updates in ((3500, 1), (3700, 2), (-60, 3)):  # a time in the future is that of a wrong clock
        then = time.time() - age_s
        os.utime(stamp, (then, then))
        packages.fetch_debs(["liba"], "trixie", fake_apt.cache)
        assert len(fake_apt.calls("update")) == updates, "lists are kept for an hour"


def test_only_the_named_packages(fake_apt):
    told = []
    with packages.private_apt("trixie", fake_apt.cache, lambda *state: None) as apt:
        libb, liba = apt.resolve(["liba"])
        assert libb.version == "1:2.0-1"
        assert [deb.name for deb in apt.download([liba], lambda *state: told.append(state))] == ["liba_3+x~1_all.deb"]
    assert told[-1] == ("1 package of Debian trixie", 100, 100)
    assert not list(fake_apt.cache.rglob("libb_*.deb"))


def test_a_failed_download_leaves_nothing_and_reports_why(fake_apt):
    fake_apt.breaks(True)
    with pytest.raises(EmulatorError, match="cannot download 2 packages of Debian trixie: Failed to fetch liba  404"):
        packages.fetch_debs(["liba"], "trixie", fake_apt.cache)
    assert not list(fake_apt.cache.rglob("*.deb"))
    fake_apt.breaks(False)
    assert len(packages.fetch_debs(["liba"], "trixie", fake_apt.cache)) == 2


def test_another_apt_command(fake_apt, program):
    program("apt-cache", "printf 'linux\\n  Depends: linux-1.2\\n |PreDepends: <virtual>\\n  Depends: b\\n'")
    with packages.private_apt("trixie", fake_apt.cache, lambda *state: None) as apt:
        assert "  Depends: linux-1.2\n" in apt.run("apt-cache", ["depends", "linux"])


@pytest.mark.needs("dpkg-deb", package="dpkg")
def test_a_package_with_lib_goes_below_usr(tmp_path):
    (tmp_path / "p" / "DEBIAN").mkdir(parents=True)
    (tmp_path / "p" / "DEBIAN").chmod(0o755)  # or dpkg-deb considers it damaged if the umask is strict
    (tmp_path / "p" / "DEBIAN" / "control").write_text(
        "Package: p\nVersion: 1\nArchitecture: arm64\nMaintainer: n <n@n.invalid>\nDescription: d\n"
    )
    (tmp_path / "p" / "lib" / "own").mkdir(parents=True)
    (tmp_path / "p" / "lib" / "own" / "file").write_text("content")
    deb = tmp_path / "p.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tmp_path / "p", deb], check=True, capture_output=True)
    packages.unpack_debs([deb], tmp_path / "root")
    assert (tmp_path / "root" / "usr" / "lib" / "own" / "file").read_text() == "content"
    assert (tmp_path / "root" / "lib").is_symlink()
    deb.write_bytes(deb.read_bytes()[:200])
    with pytest.raises(EmulatorError, match=r"cannot unpack p\.deb: .*Delete it"):
        packages.unpack_debs([deb], tmp_path / "other")


def test_every_tag_up_to_the_releases_own_libc():
    tags = packages.release_platform("bookworm").tags
    assert tags[0] == "manylinux2014_aarch64" and tags[1] == "manylinux_2_17_aarch64"
    assert tags[-1] == "manylinux_2_36_aarch64" and len(tags) == 21
    assert packages.release_platform("trixie", "x86_64").tags[-1] == "manylinux_2_41_x86_64"


def test_versions_are_this_machines_or_the_newest_before_with_a_wheel():
    wanted = packages.requirements("litert", "3.13")
    assert f"numpy>=1.23.2,<={importlib.metadata.version('numpy')}" in wanted.needs
    assert wanted.alone == (f"ai-edge-litert>=2.0.2,<={importlib.metadata.version('ai-edge-litert')}",)


def test_a_local_build_counts_as_its_version(monkeypatch):
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: "1.32.0+own")
    assert packages.requirements("onnxruntime", "3.13").alone == ("onnxruntime>=1.22,<=1.32.0",)


def test_tflite_runtime_gets_numpy_1(monkeypatch):
    monkeypatch.setattr(packages.importlib.metadata, "version", lambda name: "2.4.6")
    wanted = packages.requirements("tflite_runtime", "3.11")
    assert "numpy>=1.23.2,<2,<=2.4.6" in wanted.needs and wanted.alone == ("tflite-runtime==2.14.0",)


def test_tflite_runtime_has_no_wheel_for_a_newer_python():
    with pytest.raises(EmulatorError, match=r"no wheel for Python 3\.13.*Debian bookworm"):
        packages.requirements("tflite_runtime", "3.13")
    assert packages.engines_on("3.13") == ["litert", "onnxruntime"] and len(packages.engines_on("3.11")) == 3


def test_versions_that_are_not_installed_come_from_the_project(root, monkeypatch):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {item for name in ("update", "mqtt", "http") for item in project["optional-dependencies"][name]}
    assert extras == {name + versions for name, versions in packages.EXTRAS.items()}
    stated = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    stated = {text.partition(";")[0].strip() for text in stated}

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, "version", missing)
    for engine in packages.ENGINES:
        wanted = packages.requirements(engine, "3.11", packages.EXTRAS)
        for item in (*wanted.needs, *wanted.alone):
            assert item in stated or item == "numpy>=1.23.2,<2", item
    assert packages.ENGINES.keys() == ENGINES.keys()


def test_pip_is_called_for_the_boards_wheels(program, tmp_path, monkeypatch):
    log = tmp_path / "log"
    fake = program("pip", f'echo "$@" >> {shlex.quote(str(log))}')
    monkeypatch.setattr(packages, "pip_command", lambda: [str(fake)])
    (tmp_path / "site" / "ai_edge_litert-2.3.0.dist-info").mkdir(parents=True)
    wanted = packages.Requirements(("numpy==2.0",), ("ai-edge-litert==2.3.0",))
    assert packages.install_wheels(wanted, packages.release_platform("trixie"), tmp_path / "site") == {
        packages.package_name("litert"): "2.3.0"
    }
    first, second = log.read_text().splitlines()
    for text in ("--only-binary=:all:", "--python-version 3.13", "--abi=cp313", "--platform=manylinux_2_27_aarch64"):
        assert text in first and text in second
    assert "--no-deps" not in first and second.endswith("--no-deps ai-edge-litert==2.3.0")


def test_pips_reason_is_shown(program, tmp_path, monkeypatch):
    fake = program("pip", "echo 'WARNING: w' >&2; echo 'ERROR: No matching distribution found for x==1' >&2; exit 1")
    monkeypatch.setattr(packages, "pip_command", lambda: [str(fake)])
    with pytest.raises(EmulatorError, match=r"x==1 for Python 3\.13 on aarch64: No matching distribution found"):
        packages.install_wheels(packages.Requirements(("x==1",), ()), packages.release_platform("trixie"), tmp_path)


def test_without_pip_the_error_explains_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmulatorError, match="-m ensurepip"):
        packages.pip_command()


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match=r"cannot write the board's files to .*file/boards: .*set XDG_CACHE_HOME"):
        packages.keep(tmp_path / "file" / "boards" / "root", {}, lambda folder: {})
