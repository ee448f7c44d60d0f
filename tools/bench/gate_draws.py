"""Does the gate of `edgecnn verify --against` refuse worse models, but no equal ones? Simulated answers, 4,000 draws per cell.

Of two equal models, each is right alone on half of the discordant photos; one that is 3 points worse also loses that many more. A cell
starts with some photos. If they give no verdict, the gate states how many are enough, and photos are added up to that number: these are
the figures "from the stated photos". First, a cell with half of the photos that would suffice if the rate were known shows the effect of
too few.
"""

from collections import Counter

import harness
import numpy as np

from edgecnn.verify.against import MAX_LOSS, WORSE, judge, photos_needed

RATES = (0.02, 0.05, 0.10)
BEGIN = (50, 200, 500)
DRAWS = 4_000
SEED = 1


def verdicts(
    rate: float, worse: float, begin: int, random: np.random.Generator, more: bool
) -> tuple[Counter[str], list[int]]:
    """Return how often each verdict occurs, and the numbers of photos stated; `more` adds photos up to those numbers."""
    shares = [rate / 2 + worse / 100, rate / 2, 1 - rate - worse / 100]
    found: Counter[str] = Counter()
    stated = []
    for counts in random.multinomial(begin, shares, DRAWS):
        lost, gained, _ = counts.tolist()
        made = judge(lost, gained, begin, False)
        if more and made.verdict == "not shown":
            n = max(begin, made.needed)
            stated.append(n)
            lost, gained, _ = (counts + random.multinomial(n - begin, shares)).tolist()
            made = judge(lost, gained, n, False)
        found[made.verdict] += 1
    return found, stated


def main() -> None:
    given = harness.parser(__doc__, "gate_draws").parse_args()
    random, results = np.random.default_rng(SEED), []
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
            results.append(cell)
    report = harness.about("gate_draws", draws=DRAWS, seed=SEED, max_loss=MAX_LOSS, worse=WORSE) | {"results": results}
    headings = (
        "discordant",
        "photos",
        "stated (median)",
        "equal: refused",
        "not shown",
        "passed",
        "worse: refused",
        "not shown",
        "passed",
        "holds",
    )
    rows = [
        (
            f"{cell['discordant']:.0%}",
            f"{cell['begin']:,}",
            f"{cell['worse']['stated'][1]:,}" if cell["added"] else "-",
            *(
                f"{cell[name][verdict]:.1%}"
                for name in ("equal", "worse")
                for verdict in ("refused", "not shown", "passed")
            ),
            "yes" if cell["holds"] else "NO",
        )
        for cell in results
    ]
    harness.finish(given.out, report, headings, rows)


if __name__ == "__main__":
    main()
