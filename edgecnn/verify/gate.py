"""The gate: the limits that a comparison's figures must meet."""

from collections.abc import Sequence

from edgecnn.errors import EmulatorError, ParityError
from edgecnn.tables import Struct
from edgecnn.verify.parity_report import BoardRow, Comparison, ComparisonFigures, Figure, Kind, Report

MAX_DROP = 1.0
"""Default of the gate, in percentage points of accuracy."""

MAX_LSB = 1
MIN_AGREEMENT = 0.98
"""An int8 file must be within MAX_LSB of the fake-quantized model everywhere, or agree with it on this fraction of the images:
one code of rounding is allowed, a different answer on more than one image in fifty is not. Over many layers, rounding alone adds
up. A conversion fails only if the images are evidence: if the one-sided 95 % upper bound of the agreement is below this.
"""


REMEDIES: dict[Kind, str] = {
    "quantization": "Train longer with --qat-epochs (if it was imported: import it again with --qat-epochs 8), or accept more with "
    "--max-drop. Worst layers: edgecnn layers",
    "conversion": "If the file or the run has changed since the export: edgecnn export --force. Otherwise the converter or the engine "
    "rounds differently; worst layers: edgecnn layers. To ship it anyway, on record: --accept-conversion",
    "seen": "Quantization changes the answers to images used in training. Worst layers: edgecnn layers. Or ship another precision.",
    "program": "The program stretches images and resizes them without antialiasing: train with --set data.fit=stretch on images as it sees "
    "them, or accept more with --max-drop.",
    "models": "Check that both read the same range (--input-range) and channel order, or accept more with --max-drop.",
}


class Gate(Struct):
    """How much a candidate may lose against its reference: `max_drop` in points, `min_agreement` as a fraction, None for no limit.

    With `confident`, the upper end of the drop's 95 % interval must meet the limit too, and no model may be at chance level. With
    `accept_conversion`, a conversion beyond its limit passes and the report records that.
    """

    max_drop: float = MAX_DROP
    confident: bool = False
    min_agreement: float | None = None
    accept_conversion: bool = False

    def judge(self, figures: ComparisonFigures) -> Comparison:
        failed = self.failed(figures)
        accepted = bool(failed) and figures.kind == "conversion" and self.accept_conversion
        limit, passed = self.limit(figures.kind), accepted or not failed
        return Comparison(**vars(figures), limit=limit, failed=failed, accepted=accepted, passed=passed)

    def failed(self, comparison: ComparisonFigures) -> tuple[Figure, ...]:
        if comparison.kind == "alternative":
            return ()
        if comparison.kind in ("conversion", "seen"):
            lsb, upper = comparison.largest_lsb, comparison.agreement_upper
            if upper >= MIN_AGREEMENT or (lsb is not None and lsb <= MAX_LSB):
                return ()
            return ("agreement",) if lsb is None else ("largest_lsb", "agreement")
        beyond: dict[Figure, bool] = {
            "drop": comparison.drop > self.max_drop,
            "drop_interval": self.confident and comparison.drop_interval[1] > self.max_drop,
            "agreement": self.min_agreement is not None and comparison.agreement < self.min_agreement,
        }
        return tuple(figure for figure, failed in beyond.items() if failed)

    def limit(self, kind: Kind) -> str:
        if kind == "alternative":
            return "none, does not ship"
        if kind in ("conversion", "seen"):
            return f"at most {MAX_LSB} LSB, or no evidence of agreement below {MIN_AGREEMENT:.0%}"
        whole = " with its whole 95 % interval" if self.confident else ""
        agreement = "" if self.min_agreement is None else f", agreement of at least {self.min_agreement:.2%}"
        return f"drop of at most {self.max_drop:.2f} points{whole}{agreement}"


def measured(comparison: Comparison, figure: Figure) -> str:
    if figure == "drop":
        return f"drops {comparison.drop:.2f} points"
    if figure == "drop_interval":
        return f"may drop by as much as {comparison.drop_interval[1]:.2f} points (upper end of the 95 % interval)"
    if figure == "largest_lsb":
        return f"differs by {comparison.largest_lsb} LSB"
    share = f"agrees on {comparison.agreement:.2%}"
    if comparison.kind not in ("conversion", "seen"):
        return share
    return f"{share} of {comparison.n:,} images (at most {comparison.agreement_upper:.2%} with 95 % confidence)"


def gate_line(report: Report) -> str:
    line = f"Gate: a drop of at most {report.max_drop:.2f} points; {'passed' if report.passed else 'FAILED'}."
    return " ".join([line, *not_excluded(report)])


def not_excluded(report: Report) -> list[str]:
    """Return a sentence on the largest drop of the gated models that the images do not rule out, if there are any."""
    gated = [item for item in report.comparisons if item.kind not in ("conversion", "alternative", "seen")]
    if not gated:
        return []
    worst = max(gated, key=lambda item: item.drop_upper)
    upper = worst.drop_upper
    line = f"These {worst.n:,} images do not rule out a drop of up to {upper:.2f} points (one-sided 95 % upper bound, {worst.candidate})."
    if upper > report.max_drop:
        line += (
            " That is more than the gate allows: more test images would narrow it, and --confident fails such a result."
        )
    return [line]


def require_parity(report: Report) -> None:
    """Raise ParityError if a comparison failed or, with `confident`, a model is at chance level; then call `require_boards`."""
    failed = [comparison for comparison in report.comparisons if not comparison.passed]
    if failed:
        first = failed[0]
        figures = " and ".join(measured(first, figure) for figure in first.failed)
        raise ParityError(
            f"{first.candidate} does not answer like {first.reference}: it {figures} (limit: {first.limit}); "
            f"{len(failed)} of {len(report.comparisons)} comparisons failed. {REMEDIES[first.kind]}"
        )
    if report.confident and (warning := chance_warning(report)):
        raise ParityError(warning)
    require_boards(report.boards)


def chance_warning(report: Report) -> str | None:
    """Return a warning that names the models not shown to be better than chance, and what to do; None if all are."""
    chance = report.chance
    if not chance.not_better:
        return None
    models = {item.name: item for item in report.models}
    figures = ", ".join(
        "{} {:.2%} ({:.0%} to {:.0%})".format(name, models[name].accuracy, *models[name].accuracy_interval)
        for name in chance.not_better[:2]
    )
    more = f" and {len(chance.not_better) - 2} more" if len(chance.not_better) > 2 else ""
    return (
        f"not shown to be better than chance: {figures}{more}. Always answering {chance.label!r} is right for "
        f"{chance.accuracy:.2%} of these {report.data.test_images:,} images.\n"
        "Parity of such models proves little. Use more images, train longer, or check labels and input range."
    )


def require_boards(rows: Sequence[BoardRow]) -> None:
    """Raise an error for the first board that failed, naming the engine and the remedy.

    Raises:
        EmulatorError: if a process crashed on a board because its packages do not run there.
        ParityError: if the board answers differently from this machine, or its self-test failed.
    """
    failed = [row for row in rows if not row.passed]
    others = f" ({len(failed)} of {len(rows)} failed)" if len(rows) > 1 else ""
    for row in failed:
        if row.error:
            raise EmulatorError(
                f"{row.engine} on {row.target}: {row.error}{others}. "
                "This build does not run on that processor: install another version of it, or use another engine."
            )
    if failed:
        first = failed[0]
        reason = f"the self-test failed: {first.selftest_error}"
        if "largest_difference" in first.failed:
            reason = f"its answers differ from {first.against} here by {first.largest_difference:g} {first.unit} ({first.limit:g} allowed)"
        raise ParityError(
            f"{first.engine} on {first.target} ({first.cpu}): {reason}{others}. "
            "Try another version of the engine, or another engine."
        )
