"""What does the gate of `edgecnn verify --against` pass, with few photos and with many? Simulated answers, 4,000 draws per cell.

Of two equal models, each is right alone on half of the discordant photos. One that is some points worse also loses that many more, and one
that is better gains them. `rules` has how often a model passes by the usual rule and by --strict. `stated` shows that --strict keeps its
word: a cell starts with some photos, and if they give no verdict, photos are added up to the number that the gate states; its first row
of each rate has half of the photos that would suffice if the rate were known.
"""

from collections import Counter
from typing import Any

import harness
import numpy as np

from edgecnn.verify.against import MAX_LOSS, STRICT, USUAL, WORSE, judge, photos_needed

RATES = (0.02, 0.05, 0.10)
BEGIN = (50, 200, 500)
PHOTOS = (20, 50, 200, 1_000)
POINTS = {"equal": 0.0, "3 worse": 3.0, "10 worse": 10.0, "3 better": -3.0, "10 better": -10.0}
DRAWS = 4_000
SEED = 1

HEADINGS = ("discordant", "photos", *POINTS)


def shares(rate: float, worse: float) -> list[float]:
    """Return the probabilities that only the old model is right on a photo, that only the new one is, and of the others."""
    lost, gained = (rate / 2 + max(0.0, sign * worse) / 100 for sign in (1, -1))
    return [lost, gained, 1 - lost - gained]


def passed(rate: float, n: int, random: np.random.Generator) -> harness.Row:
    """Return by rule how often models pass with `n` photos."""
    row: harness.Row = {"discordant": rate, "photos": n, USUAL: {}, STRICT: {}}
    for name, worse in POINTS.items():
        counts = random.multinomial(n, shares(rate, worse), DRAWS).tolist()
        for rule in (USUAL, STRICT):
            found = [judge(lost, gained, n, rule).verdict for lost, gained, _ in counts]
            row[rule][name] = found.count("passed") / DRAWS
    return row


def verdicts(
    rate: float, worse: float, begin: int, random: np.random.Generator, more: bool
) -> tuple[Counter[str], list[int]]:
    """Return how often each strict verdict occurs, and the numbers of photos stated; `more` adds photos up to those numbers."""
    found: Counter[str] = Counter()
    stated = []
    for counts in random.multinomial(begin, shares(rate, worse), DRAWS):
        lost, gained, _ = counts.tolist()
        made = judge(lost, gained, begin, STRICT)
        if more and made.verdict == "not shown":
            n = max(begin, made.needed)
            stated.append(n)
            lost, gained, _ = (counts + random.multinomial(n - begin, shares(rate, worse))).tolist()
            made = judge(lost, gained, n, STRICT)
        found[made.verdict] += 1
    return found, stated


def stated_cells(random: np.random.Generator) -> list[harness.Row]:
    cells = []
    for rate in RATES:
        for begin, more in [(photos_needed(rate) // 2, False), *((begin, True) for begin in BEGIN)]:
            cell: harness.Row = {"discordant": rate, "begin": begin, "added": more}
            for name, worse in (("equal", 0.0), ("worse", WORSE)):
                found, stated = verdicts(rate, worse, begin, random, more)
                cell[name] = {verdict: found[verdict] / DRAWS for verdict in ("refused", "not shown", "passed")}
                if stated:
                    cell[name]["stated"] = [int(value) for value in np.percentile(stated, (5, 50, 95))]
            if more:
                cell["holds"] = cell["worse"]["refused"] >= 0.95 and cell["equal"]["refused"] <= 0.10
            else:
                cell["holds"] = all(cell[name]["passed"] <= 0.05 for name in ("equal", "worse"))
            cells.append(cell)
    return cells


def rows(report: Any, rule: str) -> list[tuple[str, ...]]:
    """Return how often models pass by a rule, as rows under HEADINGS."""
    return [
        (f"{row['discordant']:.0%}", f"{row['photos']:,}", *(f"{row[rule][name]:.1%}" for name in POINTS))
        for row in report["rules"]
    ]


STATED = ("discordant", "photos at first", "stated as enough", "equal model refused", "3 points worse refused")


def stated_rows(report: Any) -> list[tuple[str, ...]]:
    """Return how well --strict keeps its word, as rows under STATED."""
    return [
        (
            f"{cell['discordant']:.0%}",
            f"{cell['begin']:,}",
            f"{cell['worse']['stated'][1]:,}",
            *(f"{cell[name]['refused']:.1%}" for name in ("equal", "worse")),
        )
        for cell in report["stated"]
        if cell["added"] and "stated" in cell["worse"]
    ]


def main() -> None:
    given = harness.parser(__doc__, "gate_draws").parse_args()
    random = np.random.default_rng(SEED)
    report = harness.about("gate_draws", draws=DRAWS, seed=SEED, max_loss=MAX_LOSS, worse=WORSE)
    report["rules"] = [passed(rate, n, random) for rate in (*RATES, 0.2) for n in PHOTOS]
    report["stated"] = stated_cells(random)
    shown = [(rule, *row) for rule in (USUAL, STRICT) for row in rows(report, rule)]
    harness.finish(given.out, report, ("rule", *HEADINGS), shown)


if __name__ == "__main__":
    main()
