"""The histogram of scores: a bound belongs to the bin that it ends, on the workstation and on the board."""

import numpy as np

from edgecnn.bundle.validation import BINS, bin_of, counted

SCORES = [0.0, 0.1, 0.1000001, 0.2, 0.95, 0.951, 0.999, 0.9991, 1.0]
IN_BINS = [0, 0, 1, 1, 9, 10, 14, 15, 15]


def test_a_score_at_a_bound_is_in_the_lower_bin_and_both_counts_agree():
    assert [bin_of(score) for score in SCORES] == IN_BINS
    counts = counted(np.array(SCORES))
    assert counts == (2, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2) and len(counts) == BINS
    assert counted(np.array([0.3])) == (0, 0, 1, *[0] * 13), "bins without scores at the end are counted too"
