"""A check of the packages that the page and the API need."""

import tomllib
from collections.abc import Iterator

from edgecnn.device.doctor.finding import Finding
from edgecnn.device.system import System
from edgecnn.install import install_command

PACKAGES = ("starlette", "uvicorn", "prometheus-client")
OPTIONS = "/etc/edgecnn/service.toml"


def page(system: System) -> Iterator[Finding]:
    """Are the packages for --http, or for `http` in the service's options, installed?"""
    missing = [name for name in PACKAGES if name not in system.packages]
    if not missing:
        yield Finding("ok", f"{', '.join(f'{name} {system.packages[name]}' for name in PACKAGES)} for the page")
        return
    try:
        asked = bool(tomllib.loads(system.read(OPTIONS)).get("http"))
    except tomllib.TOMLDecodeError:
        asked = False
    debian = " ".join(f"python3-{name}" for name in missing)
    yield Finding(
        "warning" if asked else "note",
        f"no {', '.join(missing)}",
        f"{OPTIONS} requests a page, but edgecnn cannot serve it"
        if asked
        else "edgecnn cannot serve a page, an API or metrics",
        f"sudo apt install {debian}, or {install_command('http')}",
    )
