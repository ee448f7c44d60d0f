"""Checks of the software: versions that do not work together, the bundle, and each engine in a separate process."""

import itertools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from edgecnn.device.doctor.finding import Finding, version_tuple
from edgecnn.device.system import System
from edgecnn.errors import BundleError, SelftestError
from edgecnn.labels import plural
from edgecnn.runtime.engines import ENGINES

PACKAGES = {
    "litert": ("ai-edge-litert", "ai-edge-litert-nightly"),
    "tflite_runtime": ("tflite-runtime", "tflite-runtime-nightly"),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
}

SHOWN = ("numpy", "pillow", "typer", *itertools.chain(*PACKAGES.values()))
PATIENCE_S = 120.0


def old_arm(system: System) -> bool:
    """Return whether this is an ARM processor without LSE atomics, as in a Raspberry Pi 3 or 4."""
    return system.machine == "aarch64" and bool(system.cpu_flags) and "atomics" not in system.cpu_flags


class Bad(NamedTuple):
    """A package that fails in some versions (from the first to below the second), on some machines, perhaps only `alongside` another."""

    package: str
    versions: tuple[tuple[int, ...], tuple[int, ...]]
    alongside: str
    where: Callable[[System], bool]
    severity: str
    means: str
    fix: str

    def applies(self, system: System) -> bool:
        installed = version_tuple(system.packages.get(self.package, ""))
        bad = (
            self.versions[0] <= installed < self.versions[1]
        )  # a missing package gives (), which is below every version
        return bad and (not self.alongside or self.alongside in system.packages) and self.where(system)


KNOWN_BAD = (
    Bad(
        "numpy", ((2,), (99,)), "tflite-runtime", lambda system: True, "error",
        "tflite-runtime is built for numpy 1: its interpreter fails with numpy 2", "pip install 'numpy<2'",
    ),
    Bad(
        "onnxruntime", ((1, 21), (1, 22)), "", old_arm, "error",
        "ONNX Runtime 1.21 crashes on this processor with an illegal instruction", "pip install 'onnxruntime>=1.22'",
    ),
    Bad(
        "typer", ((0, 29), (99,)), "", lambda system: True, "warning",
        "it imports pydantic at each start, so every command starts more slowly", "pip install 'typer<0.29'",
    ),
)  # fmt: skip
"""Versions and pairs that we have seen fail."""


def versions(system: System) -> Iterator[Finding]:
    """Which versions are installed, and do they work together?"""
    installed = [f"{name} {system.packages[name]}" for name in SHOWN if name in system.packages]
    bad = [item for item in KNOWN_BAD if item.applies(system)]
    for item in bad:
        alongside = f" with {item.alongside} {system.packages[item.alongside]}" if item.alongside else ""
        yield Finding(item.severity, f"{item.package} {system.packages[item.package]}{alongside}", item.means, item.fix)
    if not bad:
        yield Finding("ok", ", ".join(installed) or "none of edgecnn's packages is installed")


def bundle(system: System) -> Iterator[Finding]:
    """Is there a bundle, is it intact, and does this machine decode and resize its golden photos to the right bytes?"""
    done = system.run([sys.executable, "-m", "edgecnn.device.doctor.bundle", *filter(None, [system.model])], PATIENCE_S)
    if done.code == BundleError.exit_code:
        fix = "copy it again, or name another: edgecnn doctor --model FILE"
        yield Finding("error", done.said, "edgecnn cannot classify with this bundle", fix)
        return
    answer = done.table
    if not answer:
        fix = "pip install --force-reinstall numpy Pillow"
        yield Finding("error", f"the bundle cannot be read: {done.failure}", "Python or a package is broken", fix)
        return
    yield Finding("ok", f"{answer['path']} ({answer['reason']}), intact: SHA-256 {answer['sha256'][:12]}")
    for name in answer["wrong_layers"]:
        means = f"this Pillow does not {name} photos to the bundle's bytes, so answers may differ"
        fix = "pip install --force-reinstall --only-binary :all: Pillow"
        yield Finding("error", f"golden photos differ after {name}", means, fix)


def engines(system: System) -> Iterator[Finding]:
    """Does each installed engine start, run and reproduce the bundle's answers?"""
    installed = [name for name, packages in PACKAGES.items() if any(item in system.packages for item in packages)]
    if not installed:
        yield Finding("error", "no inference engine", "edgecnn cannot classify without one", ENGINES["litert"].install)
    for name in installed:
        yield _try(system, name)


def _try(system: System, name: str) -> Finding:
    command = [sys.executable, "-m", "edgecnn", "selftest", "--engine", name, "--json"]
    done = system.run([*command, *(["--model", system.model] if system.model else [])], PATIENCE_S)
    again = f"reinstall it, or try another version: {ENGINES[name].install}"
    if done.code == BundleError.exit_code:
        return Finding("note", f"{name}: not tried", "there is no valid bundle to try it with")
    if done.code is None or done.code < 0:
        means = "the engine crashes here: it is not built for this machine"
        return Finding("error", f"{name}: {done.how}", means, again)
    answer = done.table
    if done.code not in (0, SelftestError.exit_code) or not answer:
        return Finding("error", f"{name}: {done.failure}", "the engine does not start", again)
    rows = [row for row in answer.get("rows", ()) if row["engine"] == name]
    if not rows:
        return Finding("note", f"{name}: not tried", "the bundle has no model for it")
    row = min(rows, key=lambda row: bool(row["passed"]))
    if not row["passed"]:
        what = f"it differs by {row['largest_difference']:g} {row['unit']}; {row['allowed']:g} is allowed"
        means = "it does not reproduce the bundle's answers"
        if row["note"]:
            what, means = row["note"], "it cannot run the bundle's model: the model is damaged, "
            means += "or the engine is not built for this machine"
        return Finding("error", f"{name}: {row['model']}: {what}", means, again)
    models = plural(len(rows), "model")
    return Finding("ok", f"{name} {row['version']} ({row['provider']}) reproduces the bundle's answers with {models}")
