"""The network chosen for the images, and the figures behind the choice, as a table and a sentence."""

from edgecnn.run_info import Candidate, NetworkChoice

HEADINGS = ("network", "input", "frozen", "tuned", "behind the best", "MACs", "int8 bytes (expected)", "ms here", "")


def choice_rows(choice: NetworkChoice) -> list[tuple[str, ...]]:
    """Return the candidates as rows of text under HEADINGS: tuned ones first, then the others by frozen accuracy."""
    listed = sorted(choice.candidates, key=lambda one: (one.tuned is None, -(one.tuned or 0.0), -one.frozen))
    return [_row(one, choice) for one in listed]


def _row(one: Candidate, choice: NetworkChoice) -> tuple[str, ...]:
    chosen = (one.network, one.height, one.width) == (choice.network, choice.height, choice.width)
    behind = "-"
    if one.behind is not None and one.behind_error is not None:
        behind = f"{100 * one.behind:.1f} ± {100 * one.behind_error:.1f}"
    return (
        one.network,
        f"{one.width}x{one.height}",
        f"{one.frozen:.1%}",
        "-" if one.tuned is None else f"{one.tuned:.1%}",
        behind,
        f"{one.macs:,}",
        f"{one.int8_bytes:,}",
        "-" if one.ms is None else f"{one.ms:.2f}",
        "chosen" if chosen else "" if one.fits else "over the budget",
    )


def judged_line(choice: NetworkChoice) -> str:
    limit = f", within {choice.budget}" if choice.budget else ""
    judged = f"; those on the shortlist were tuned briefly and compared on {choice.judged_by:,} held-out images"
    return (
        f"{choice.network} at {choice.width}x{choice.height} was chosen for {choice.images:,} images{limit}: {choice.why}. "
        f"Cross-validation on frozen features ranked the networks{judged if choice.judged_by else ''}. It took {choice.seconds:,.0f} s."
    )
