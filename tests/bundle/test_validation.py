"""The histogram of scores: a bound belongs to the bin that it ends, on the workstation and on the board."""

import json
from dataclasses import replace

import numpy as np
import pytest

from edgecnn.bundle.validation import BINS, BOUNDS, VALIDATION, ValidationScores, bin_of, counted, read_validation
from edgecnn.errors import BundleError
from edgecnn.tables import to_json

SCORES = [0.0, 0.1, 0.1000001, 0.2, 0.95, 0.951, 0.999, 0.9991, 1.0]
IN_BINS = [0, 0, 1, 1, 9, 10, 14, 15, 15]


def test_a_score_at_a_bound_is_in_the_lower_bin_and_both_counts_agree():
    assert [bin_of(score) for score in SCORES] == IN_BINS
    counts = counted(np.array(SCORES))
    assert counts == (2, 2, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 2) and len(counts) == BINS
    assert counted(np.array([0.3])) == (0, 0, 1, *[0] * 13), "bins without scores at the end are counted too"


SCORES_OF_50 = ValidationScores(
    model="m", model_sha256="a", validation_sha256="b", temperature=1.0, threshold=0.5, limit=-3.0, images=50, bounds=BOUNDS,
    counts=(20, *[0] * (BINS - 2), 30), below=4, strangers=7, strangers_below=2,
)  # fmt: skip


def test_a_device_that_does_not_recognise_strangers_abstains_on_those_below_the_threshold():
    assert SCORES_OF_50.shares(0.5, strangers=True) == (4 / 50, 7 / 50)
    assert SCORES_OF_50.shares(0.5, strangers=False) == (6 / 50, 0)
    assert SCORES_OF_50.shares(0.75, strangers=True) == (None, 7 / 50), "another threshold than the counted one"


def test_scores_of_more_images_than_there_are_are_refused():
    def read(**change):
        return read_validation({VALIDATION: json.dumps(to_json(replace(SCORES_OF_50, **change))).encode()})

    assert read() == SCORES_OF_50 and read_validation({}) is None
    read(below=43), read(strangers=46), read(strangers_below=50)
    for wrong in ({"below": 44}, {"strangers": 47}, {"strangers_below": 51}, {"images": 51}, {"images": 49}):
        with pytest.raises(BundleError):
            read(**wrong)
    none = [0] * (BINS - 2)
    for counts in ((20, 30), (20, *none[1:], 30), (20, 0, *none, 30), (20, -1, 1, *none[2:], 30)):
        with pytest.raises(BundleError):
            read(counts=counts)
