"""The measurements of a benchmark, and the choice of the winning configuration."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgecnn.bundle.read import Bundle
from edgecnn.device.benchmark.configurations import Configuration
from edgecnn.tables import to_json

Times = dict[Configuration, dict[str, list[float]]]  # milliseconds of each call, by configuration and part

Failed = dict[Configuration, str]
PARTS = ("decode", "preprocess", "infer", "whole")
TIE = 0.02
RULE = "smallest p50 of infer; within 2 % of it the smaller p90, then fewer threads"
ELIGIBLE = "only models that passed the bundle's gate and, here, its golden vectors"


@dataclass(frozen=True)
class Percentiles:
    """Wall time of `n` calls in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    n: int


class Probed(NamedTuple):
    """The measurements of a configuration's own process; see `edgecnn.device.benchmark.probe`."""

    version: str
    computes: str
    peak_mib: float
    golden: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration's figures. `gate` is the bundle's own verdict on the model. None means unknown or not measured."""

    configuration: Configuration
    probed: Probed
    parts: Mapping[str, Percentiles]
    gate: bool | None

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: the model passed the bundle's gate and the golden vectors here."""
        return bool(self.gate) and not self.probed.golden

    def to_json(self) -> dict[str, Any]:
        flat = self.configuration._asdict() | self.probed._asdict() | to_json(self.parts)
        return {**flat, "gate": self.gate, "eligible": self.eligible}


class Sweep(NamedTuple):
    """The measured configurations, fastest first; those that failed, and why; and the machine's load beforehand."""

    rows: tuple[Row, ...]
    failed: Failed
    interrupted: bool
    load_average: float


def percentiles(values: list[float]) -> Percentiles:
    p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
    return Percentiles(p50, p90, p99, len(values))


def winner(rows: Sequence[Row]) -> Row | None:
    """Return the best eligible row by RULE, or None."""
    return next(iter(ranked(row for row in rows if row.eligible)), None)


def ranked(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows in the order of RULE: those within TIE of the smallest p50 by p90 and threads, then the others by p50."""
    rows = tuple(rows)
    best = min((row.parts["infer"].p50_ms for row in rows), default=0.0)

    def key(row: Row) -> tuple[float, float, int]:
        infer = row.parts["infer"]
        tied = infer.p50_ms <= best * (1 + TIE)
        return (0.0 if tied else infer.p50_ms, infer.p90_ms, row.configuration.threads)

    return tuple(sorted(rows, key=key))


MAX_REPORT_BYTES = 8 * 1024 * 1024  # largest parity report that is parsed; shipped ones have at most 70 kB


def gate(bundle: Bundle) -> dict[str, bool]:
    """Return whether all comparisons passed the gate, for each model file in the bundle's parity report."""
    report = bundle.files.get("parity.json", b"")
    names = {f"{model.format}-{model.precision}": model.file for model in bundle.manifest.models}
    passed: dict[str, bool] = {}
    try:
        for item in json.loads(report)["comparisons"] if len(report) <= MAX_REPORT_BYTES else ():
            if file := names.get(item["candidate"]):
                passed[file] = passed.get(file, True) and bool(item["passed"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return passed
