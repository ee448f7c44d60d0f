"""Build a Debian package of the working tree in dist/: edgecnn, its service, and LiteRT's interpreter, for Debian 13 (trixie).

numpy, Pillow and typer come from Debian. LiteRT is not in Debian, so the package includes the files of its wheel that edgecnn imports. An
amd64 machine can build the arm64 package too, since nothing is compiled. Example:

  python tools/deb.py --architecture arm64
"""

import argparse
import gzip
import importlib.util
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgecnn import __version__, packages
from edgecnn.cli import COMMANDS
from edgecnn.device.service.config import PACKAGED, UNITS, USERS, unit_text, users_text

ROOT = Path(__file__).parent.parent
PARTS = Path(__file__).parent / "debian"
RELEASE, PYTHON = "trixie", ("3.13", "3.14")
"""The Debian release that the package targets, and its Python: from the first version, below the second."""

MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's names for architectures, and the names that wheels use."""

LITERT = (
    "__init__.py", "interpreter.py", "metrics_interface.py", "metrics_portable.py", "_pywrap_litert_interpreter_wrapper.so",
    "libpywrap_litert_common.so",
)  # fmt: skip
"""The parts of LiteRT that edgecnn imports. The rest is twice as large: a converter, other accelerators, compilers for other processors."""

MODULES, PRIVATE = Path("usr/lib/python3/dist-packages"), Path("usr/lib/edgecnn")
SCRIPT = """#!/usr/bin/python3
import sys

from edgecnn.__main__ import run

sys.exit(run())
"""
DEPENDS = (
    f"python3 (>= {PYTHON[0]})", f"python3 (<< {PYTHON[1]})", "python3-numpy", "python3-pil", "python3-typer (>= 0.15)",
    "libc6 (>= 2.34)", "libgcc-s1", "libstdc++6",
)  # fmt: skip
MAINTAINER = "The edgecnn authors <edgecnn@users.noreply.invalid>"
CONTROL = """Package: edgecnn
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {size}
Depends: {depends}
Recommends: python3-prometheus-client, python3-starlette, python3-uvicorn
Suggests: ffmpeg, python3-paho-mqtt, python3-tuf, rpicam-apps-lite
Section: science
Priority: optional
Description: image classifier for small boards, as a service
 edgecnn classifies what a camera sees with an int8 network, from boot to
 boot. A new model has to prove itself on the board. If it fails, the
 previous one returns automatically, even after a power cut.
 .
 The service waits until a model is put in use: edgecnn slot add. To train
 one on your own photos, install edgecnn with pip on a workstation.
"""


def epoch() -> int:
    """Return the package's date in seconds since the epoch: $SOURCE_DATE_EPOCH, or the time of the last commit."""
    if date := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(date)
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    return int(done.stdout.strip() or 315532800)


def project_wheel(folder: Path) -> Path:
    """Build the working tree's wheel and return its path."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def litert_wheel(architecture: str, folder: Path) -> Path:
    """Download LiteRT's wheel for an architecture and return its path."""
    command = [
        *packages.pip_command(),
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary=:all:",
    ]
    command += ["--dest", str(folder), "--implementation", "cp", "--python-version", PYTHON[0]]
    command += [f"--platform={tag}" for tag in packages.release_platform(RELEASE, MACHINES[architecture]).tags]
    (requirement,) = packages.requirements("litert", PYTHON[0]).alone
    subprocess.run([*command, requirement], check=True)
    return next(folder.glob("ai_edge_litert-*.whl"))


def build(architecture: str, out: Path, download: Callable[[str, Path], Path] = litert_wheel) -> Path:
    """Build the package and return its path.

    Args:
        architecture: one of MACHINES.
        out: a folder, created if necessary.
        download: puts LiteRT's wheel for an architecture into a folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work, tree = Path(name), Path(name) / "tree"
        for folder in ("project", "litert"):
            (work / folder).mkdir()
        with zipfile.ZipFile(project_wheel(work / "project")) as wheel:
            wheel.extractall(tree / MODULES)
        with zipfile.ZipFile(download(architecture, work / "litert")) as wheel:
            wheel.extractall(tree / PRIVATE, [item for item in wheel.namelist() if is_kept(item)])
        for path, content in files().items():
            write(tree / path, content)
        finish(tree, architecture)
        package = out / f"edgecnn_{__version__}_{architecture}.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(package)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch())}
        subprocess.run(command, check=True, capture_output=True, env=environment)
    return package


def is_kept(name: str) -> bool:
    """Return whether a file of LiteRT's wheel goes into the package: an imported one, or the one that names the version."""
    folder, _, file = name.partition("/")
    return (folder == "ai_edge_litert" and file in LITERT) or (folder.endswith(".dist-info") and file == "METADATA")


def files() -> dict[str, bytes]:
    """Return the files that no wheel contains, by path."""
    return {
        "usr/bin/edgecnn": SCRIPT.encode(),
        str(MODULES / "edgecnn.pth"): f"/{PRIVATE}\n".encode(),
        **{f"{PACKAGED}/{name}": unit_text(["/usr/bin/edgecnn"], name).encode() for name in UNITS},
        f"usr/lib/{USERS}": users_text().encode(),
        "usr/share/man/man1/edgecnn.1.gz": gzip.compress(man_page().encode(), 9, mtime=0),
        "usr/share/bash-completion/completions/edgecnn": completion().encode(),
        "usr/share/doc/edgecnn/changelog.gz": gzip.compress(changelog().encode(), 9, mtime=0),
        "usr/share/doc/edgecnn/copyright": (PARTS / "copyright").read_bytes(),
        "usr/share/lintian/overrides/edgecnn": (PARTS / "lintian-overrides").read_bytes(),
    }


def write(path: Path, content: bytes) -> None:
    """Write a file, creating its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def finish(tree: Path, architecture: str) -> None:
    """Remove files that only pip needs, set modes, and write dpkg's files."""
    for record in (tree / MODULES).glob("*.dist-info"):
        shutil.rmtree(record / "licenses")
        for name in ("RECORD", "entry_points.txt"):
            (record / name).unlink()
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    control = CONTROL.format(
        version=__version__, architecture=architecture, maintainer=MAINTAINER, size=size // 1024 + 1, depends=", ".join(DEPENDS)
    )  # fmt: skip
    for name in ("postinst", "prerm", "postrm"):
        write(tree / "DEBIAN" / name, (PARTS / name).read_bytes())
    write(tree / "DEBIAN" / "control", control.encode())
    programs = {tree / "usr/bin/edgecnn", *(tree / "DEBIAN" / name for name in ("postinst", "prerm", "postrm"))}
    for path in [tree, *tree.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path in programs else 0o644)


def changelog() -> str:
    """Return the package's changelog in Debian's format, which refers to the project's own."""
    date = subprocess.run(["date", "-uR", f"-d@{epoch()}"], check=True, capture_output=True, text=True).stdout.strip()
    return f"edgecnn ({__version__}) {RELEASE}; urgency=medium\n\n  * See CHANGELOG.md of the project.\n\n -- {MAINTAINER}  {date}\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Yield each command's name and its click command."""
    import typer

    from edgecnn.cli import app

    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        yield name, group.get_command(None, name)


def man_page() -> str:
    """Return the man page: what each command does, where files are, and what to read."""
    parts = [
        f'.TH EDGECNN 1 "" "edgecnn {__version__}" "User Commands"',
        ".SH NAME\nedgecnn \\- image classifier for small boards",
        ".SH SYNOPSIS\n.B edgecnn\n.I COMMAND\n[\\fIOPTIONS\\fR]",
        ".SH DESCRIPTION\nClassifies images, and what a camera sees, with a verified int8 network. "
        "\\fBedgecnn\\fR \\fICOMMAND\\fR \\fB\\-\\-help\\fR describes a command and its options.",
        ".SH COMMANDS",
    ]
    for name, command in commands():
        about = inspect.cleandoc(command.help).splitlines()[0]
        parts.append(f".TP\n.B {name}\n{roff(about)}")
    parts += [
        ".SH FILES",
        ".TP\n.I /etc/edgecnn/service.toml\nOptions of the service; any option left out keeps its default.",
        ".TP\n.I /etc/edgecnn/environment\nEDGECNN_MQTT_USER and EDGECNN_MQTT_PASSWORD of a broker, "
        "EDGECNN_CAMERA_USER and EDGECNN_CAMERA_PASSWORD of a camera, for the service.",
        ".TP\n.I /etc/edgecnn/update.toml, /etc/edgecnn/root.json\nWhere releases come from, and the root of trust.",
        ".TP\n.I /var/lib/edgecnn\nReleases of models; the service waits for the first one.",
        ".TP\n.I /var/lib/edgecnn\\-trust, /var/lib/edgecnn\\-update\nWhat updates trust, and what they have fetched.",
        ".SH SEE ALSO\n.BR systemctl (1),\n.BR journalctl (1)",
    ]
    return "\n".join(parts) + "\n"


def roff(text: str) -> str:
    """Escape a line of text for roff."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in ".'" else text


def completion() -> str:
    """Return bash's completion of commands, the actions and options of each, and files."""
    cases = []
    for name, command in commands():
        options = [option for item in command.params for option in item.opts if option.startswith("--")]
        actions = next(
            (item.help.partition(";")[0] for item in command.params if item.metavar in ("ACTION", "[ACTION]")), ""
        )
        words = [*actions.replace(" or ", ", ").split(", "), *options, "--help"]
        cases.append(f'        {name}) words="{" ".join(filter(None, words))}" ;;')
    return "\n".join(
        [
            "# bash completion of edgecnn",
            "_edgecnn() {",
            '    local words="" current="${COMP_WORDS[COMP_CWORD]}"',
            '    case "${COMP_WORDS[1]}" in',
            *cases,
            "    esac",
            f'    [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(COMMANDS)} --help --version"',
            '    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
            "}",
            "complete -o default -F _edgecnn edgecnn",
            "",
        ]
    )


def main() -> None:
    """Build the requested packages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architecture", choices=sorted(MACHINES), action="append", help="arm64 or amd64; repeat it (default: both)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder for packages (default: dist)")
    arguments = parser.parse_args()
    if importlib.util.find_spec("hatchling") is None:
        sys.exit("hatchling, which builds the wheel, is not installed. `make deb` installs it")
    if shutil.which("dpkg-deb") is None:
        sys.exit("dpkg-deb, which packs Debian packages, is not installed. Install it: apt install dpkg")
    for architecture in arguments.architecture or sorted(MACHINES):
        path = build(architecture, arguments.out)
        print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
