"""Does the 95 % interval of accuracy in the field contain the truth? Simulated weeks in which scenes persist for minutes to hours.

A week is a chain of scenes with exponentially distributed durations. Each scene has its own share of frames that the model classifies
correctly, drawn from a Beta distribution around the accuracy, such that SPREAD of the variance of right and wrong lies between scenes. The
random sample's times are drawn like in `edgecnn.device.keep.sample`, and the interval is that of `edgecnn.device.keep.estimate`. Coverage
is reported for two truths: the share of correct frames in the same week, and the long-run accuracy of such weeks. `plain` is Wilson's
interval, as if answers were independent. `unsure` uses the same number of frames, those with the smallest leads.

    python tools/bench/field_estimate.py --weeks 1000
"""

import itertools
from collections.abc import Sequence

import numpy as np
from harness import Row, about, finish, parser

from edgecnn.device.keep.estimate import Answer, field_accuracy
from edgecnn.device.keep.sample import DAY_S
from edgecnn.evaluate.statistics import wilson

PERSISTENCE_MIN = (5, 30, 120, 360)
QUOTA = (5, 20, 100)
ACCURACY = (0.75, 0.9, 0.97)
DAYS = 7
FRAME_S = 5.0

SPREAD = 0.7
"""Share of the variance of right and wrong that lies between scenes: Beta(a, b) with a + b = (1 - SPREAD) / SPREAD."""

HEADINGS = (
    "scene, min",
    "a day",
    "accuracy",
    "n",
    "week's own, of 100",
    "long run, of 100",
    "plain: long run",
    "width",
    "unsure: of 100",
)


def main() -> None:
    """Simulate, print a table and write the figures."""
    made = parser(__doc__, "field_estimate")
    made.add_argument("--weeks", type=int, default=1000, help="weeks for each row (default: 1000)")
    arguments = made.parse_args()
    rows = []
    for number, (minutes, quota, accuracy) in enumerate(itertools.product(PERSISTENCE_MIN, QUOTA, ACCURACY)):
        generator = np.random.default_rng([number, 36])
        weeks = [week(minutes, quota, accuracy, generator) for _ in range(arguments.weeks)]
        rows.append({"minutes": minutes, "quota": quota, "accuracy": accuracy, **summarised(weeks)})
    context = about("field_estimate", weeks=arguments.weeks, spread=SPREAD, days=DAYS)
    finish(arguments.out, {**context, "results": rows}, HEADINGS, map(line, rows))


def week(minutes: float, quota: int, accuracy: float, generator: np.random.Generator) -> Row:
    """Simulate a week and return whether the intervals contain the truths."""
    length = DAYS * DAY_S
    total = (1 - SPREAD) / SPREAD
    ends = np.cumsum(generator.exponential(60 * minutes, int(3 * length / (60 * minutes)) + 50))
    share = generator.beta(total * accuracy, total * (1 - accuracy), len(ends))
    frames = np.arange(0, length, FRAME_S)
    scene = np.searchsorted(ends, frames)
    right = generator.random(len(frames)) < share[scene]
    # a wrong frame is more likely to have a small lead
    lead = np.where(right, generator.beta(5, 2, len(frames)), generator.beta(2, 3, len(frames)))
    times = np.concatenate([day * DAY_S + DAY_S * np.sort(generator.random(quota)) for day in range(DAYS)])
    sampled = np.minimum(np.searchsorted(frames, times), len(frames) - 1)
    answers = [Answer(float(frames[index]), bool(right[index]), "random") for index in sampled]
    found = field_accuracy(answers, len(answers), len(answers))
    assert found is not None
    plain = wilson(int(right[sampled].sum()), len(sampled))
    unsure = np.argsort(lead)[: len(sampled)]
    by_unsure = field_accuracy([Answer(float(frames[index]), bool(right[index]), "random") for index in unsure], 0, 0)
    assert by_unsure is not None
    truth = float(right.mean())
    return {
        "n": len(answers),
        "week": found.low <= truth <= found.high,
        "long": found.low <= accuracy <= found.high,
        "plain": plain[0] <= accuracy <= plain[1],
        "width": found.high - found.low,
        "unsure": by_unsure.low <= truth <= by_unsure.high,
    }


def summarised(weeks: Sequence[Row]) -> Row:
    return {name: float(np.mean([one[name] for one in weeks])) for name in weeks[0]}


def line(row: Row) -> tuple[str, ...]:
    """Return a row of the table."""
    shares = (f"{100 * row[name]:.0f}" for name in ("week", "long", "plain"))
    return (
        f"{row['minutes']:g}", str(row["quota"]), f"{row['accuracy']:.0%}", f"{row['n']:.0f}", *shares, f"{100 * row['width']:.0f}",
        f"{100 * row['unsure']:.0f}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
