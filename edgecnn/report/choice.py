"""The network chosen for the images, and the figures behind the choice, as a table and a sentence."""

from edgecnn.run_info import Candidate, NetworkChoice, Tuning

HEADINGS = ("network", "input", "accuracy", "behind the best", "MACs", "int8 bytes (expected)", "ms here", "")


def choice_rows(choice: NetworkChoice) -> list[tuple[str, ...]]:
    """Return the candidates as rows of text under HEADINGS, best first."""
    return [_row(one, choice) for one in choice.candidates]


def _row(one: Candidate, choice: NetworkChoice) -> tuple[str, ...]:
    chosen = (one.network, one.height, one.width) == (choice.network, choice.height, choice.width)
    return (
        one.network,
        f"{one.width}x{one.height}",
        f"{one.accuracy:.1%}",
        f"{100 * one.behind:.1f} ± {100 * one.behind_error:.1f}" if one.behind or one.behind_error else "-",
        f"{one.macs:,}",
        f"{one.int8_bytes:,}",
        "-" if one.ms is None else f"{one.ms:.2f}",
        "chosen" if chosen else "" if one.fits else "over the budget",
    )


def judged_line(choice: NetworkChoice) -> str:
    limit = f", within {choice.budget}" if choice.budget else ""
    every = ", every class counting the same," if choice.balanced else ""
    return (
        f"{choice.network} at {choice.width}x{choice.height} was chosen for {choice.images:,} images{limit}: {choice.why}. "
        f"Frozen networks with a fitted last layer were compared{every} on images that did not fit it. It took {choice.seconds:,.0f} s."
    )


def tuning_line(tuning: Tuning) -> str:
    """Return the verdict between head and fine-tuned model as one line."""
    every = ", every class counting the same" if tuning.balanced else ""
    photos = (
        f"{tuning.head_accuracy:.1%}, fine-tuned {tuning.tuned_accuracy:.1%} of {tuning.n:,} validation photos{every}"
    )
    if not tuning.epochs:
        return f"head {tuning.head_accuracy:.1%} of {tuning.n:,} validation photos: head ships, fine-tuning cannot win"
    why = {"accuracy": "", "log loss": " by log loss", None: ", since the difference may be chance"}[tuning.decided_by]
    return f"head {photos}: {tuning.ships} ships{why}"
