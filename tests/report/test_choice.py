"""The table and the sentence about the network that was chosen, from a choice made by hand."""

from edgecnn.report.choice import HEADINGS, choice_rows, judged_line
from edgecnn.run_info import Candidate, NetworkChoice


def candidate(network, accuracy, **more):
    return Candidate(
        network=network, height=96, width=128, whole=False, macs=20_000_000, int8_bytes=1_234_567, accuracy=accuracy,
        fits=more.pop("fits", True), **more,
    )  # fmt: skip


CHOICE = NetworkChoice(
    key="0" * 64, images=1_234, balanced=True, budget="7.5 ms here", network="b", height=96, width=128, why="cheaper",
    seconds=61.7,
    candidates=(
        candidate("c", 0.6, ms=9.0), candidate("b", 0.4, behind=0.2, behind_error=0.031, ms=7.456), candidate("e", 0.7, fits=False),
    ),
)  # fmt: skip


def test_each_network_has_a_row_with_its_distance_from_the_best():
    rows = [dict(zip(HEADINGS, row, strict=True)) for row in choice_rows(CHOICE)]
    assert [row["network"] for row in rows] == ["c", "b", "e"]
    assert [row[""] for row in rows] == ["", "chosen", "over the budget"]
    assert rows[1] == {
        "network": "b", "input": "128x96", "accuracy": "40.0%", "behind the best": "20.0 ± 3.1",
        "MACs": "20,000,000", "int8 bytes (expected)": "1,234,567", "ms here": "7.46", "": "chosen",
    }  # fmt: skip
    assert (rows[0]["behind the best"], rows[2]["ms here"]) == ("-", "-")


def test_the_sentence_counts_the_photos_that_chose():
    line = judged_line(CHOICE)
    assert line.startswith("b at 128x96 was chosen for 1,234 images, within 7.5 ms here: cheaper.")
    assert "every class counting the same" in line and line.endswith("It took 62 s.")
