"""What few validation images cost: a simulation of the temperature fitted on them, and of a threshold chosen where the epoch was chosen.

No model and no data: logits are drawn whose truth is known. Of 1,000 draws, where no temperature was needed, one fitted on 100 images cost
0.15 nats at most (0.006 on average), on 50 up to 0.84, on 20 up to 2.4. Where scores say nothing, 0.3 % of the promises were false with one
epoch, 2.9 % with 20 and 7.0 % with 60; where scores tell errors, at most 0.3 % (Python 3.11.7, numpy 2.4.6).

    python tools/bench/small_validation.py                 # both tables, about four minutes on two CPUs
    python tools/bench/small_validation.py --draws 200     # faster, and coarser

Temperature: logits of normal noise whose softmax is the truth, multiplied by a planted temperature. `worse` is the share of the draws in
which the fitted temperature has a larger negative log-likelihood on 20,000 other images than no temperature at all, by more than
0.01 nats; `mean gain` is the mean over the draws of what it gains there, in nats.

Epoch: the answers of every epoch are drawn independently at the same true error, the worst case: epochs that agree leave less to
choose from. The epoch with the most right answers is kept, and `choose_threshold` chooses on the same images. A promise is false where
the true error of what it answers is above the target. 5 % may be.
"""

import argparse
import platform

import numpy as np

from edgecnn.errors import ThresholdError
from edgecnn.report.table import text_table
from edgecnn.runtime.decision import softmax
from edgecnn.verify.temperature import fit_temperature, nll
from edgecnn.verify.threshold import choose_threshold

SIZES = (8, 20, 50, 100, 200, 500)
TASKS = {"2 classes": (2, 3.0), "10 classes": (10, 2.5)}
"""Number of classes and standard deviation of the true logits."""

PLANTED = (1.0, 1.5, 2.5)
EPOCHS = (1, 5, 20, 60)
TARGET = 0.1
SLACK = 0.01


def drawn(random: np.random.Generator, n: int, classes: int, spread: float, planted: float):
    """Draw logits of a model that is too sure by the factor `planted`, and the true classes."""
    logits = random.normal(scale=spread, size=(n, classes))
    cumulated = np.cumsum(softmax(logits), axis=1)
    true = (random.random((n, 1)) > cumulated).sum(axis=1).clip(max=classes - 1)
    return (planted * logits).astype(np.float32), true


def temperature_rows(draws: int) -> list[tuple[str, ...]]:
    """Return, for each task, planted temperature and number of images, how often and by how much fitting was worth it."""
    rows: list[tuple[str, ...]] = []
    for task, (classes, spread) in TASKS.items():
        for planted in PLANTED:
            fresh, true = drawn(np.random.default_rng(0), 20_000, classes, spread, planted)
            grid = np.geomspace(0.05, 20, 241)
            losses = np.array([nll(fresh, true, float(value)) for value in grid])
            without = nll(fresh, true)
            accuracy = np.mean(fresh.argmax(axis=1) == true)
            for n in SIZES:
                gains = []
                for seed in range(draws):
                    logits, given = drawn(np.random.default_rng(1 + seed), n, classes, spread, planted)
                    right = (logits.argmax(axis=1) == given).all()
                    found = 1.0 if right else fit_temperature(logits, given)
                    gains.append(without - np.interp(np.log(found), np.log(grid), losses))
                worse = np.mean(np.array(gains) < -SLACK)
                rows.append(
                    (task, f"{accuracy:.0%}", f"{planted:g}", f"{n}", f"{worse:.1%}", f"{np.mean(gains):+.3f}", f"{min(gains):+.2f}")
                )  # fmt: skip
    return rows


def epoch_rows(draws: int) -> list[tuple[str, ...]]:
    """Return, for each way in which scores tell errors and each number of epochs, the share of false promises."""
    rows: list[tuple[str, ...]] = []
    for task, informative in (("scores that say nothing", False), ("scores that tell errors", True)):
        for n in (600, 2000):
            for epochs in EPOCHS:
                false = 0
                for seed in range(draws):
                    random = np.random.default_rng(seed)
                    if informative:
                        scores = random.beta(5, 1, (epochs, n)).astype(np.float32)
                        right = random.random((epochs, n)) < scores.astype(np.float64) ** 2
                    else:
                        scores = random.random((epochs, n)).astype(np.float32)
                        right = random.random((epochs, n)) >= 1.02 * TARGET
                    best = int(np.argmax(right.sum(axis=1)))
                    try:
                        choice = choose_threshold(scores[best], right[best], TARGET)
                    except ThresholdError:
                        continue
                    # the density of a score s is 5 s⁴, and it is right with probability s²
                    low = choice.threshold
                    error = 1 - (5 / 7) * (1 - low**7) / (1 - low**5) if informative else 1.02 * TARGET
                    false += error > TARGET
                rows.append((task, f"{n}", f"{epochs}", f"{false / draws:.1%}"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="of each case")
    draws = parser.parse_args().draws
    print(f"{draws} draws of each case; Python {platform.python_version()}, numpy {np.__version__}")
    headings = ("task", "accuracy", "planted", "images", "worse", "mean gain", "worst")
    print(text_table(headings, temperature_rows(draws)), flush=True)
    print(text_table(("task", "images", "epochs", "false promises"), epoch_rows(draws)))


if __name__ == "__main__":
    main()
