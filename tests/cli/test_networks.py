"""`edgecnn networks --data`: what training would choose, and estimates of time on boards that were measured."""

import dataclasses
import json

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.boards import targets
from edgecnn.networks import build_network
from edgecnn.networks.describe import describe

FIGURES = targets.Reference(
    model="a",
    hardware="b",
    versions={},
    n=100,
    p50_ms=4.0,
    p90_ms=5.0,
    network="article",
    height=8,
    width=8,
    channels=1,
)


@pytest.fixture
def measured(monkeypatch):
    """Give targets reference figures: one of a known network, one of another, one without a network."""
    given = {
        "rpi4": FIGURES,
        "rpi5": dataclasses.replace(FIGURES, network="somebody's"),
        "rpi3": dataclasses.replace(FIGURES, network="", height=0, width=0, channels=0),
    }
    all_targets = [dataclasses.replace(item, reference=given.get(item.name)) for item in targets.list_targets()]
    monkeypatch.setattr(targets, "list_targets", lambda: all_targets)


def test_times_are_in_proportion_to_the_figure_of_the_board(edgecnn, measured):
    found = json.loads(edgecnn("networks", "--data", "digits", "--json").out)
    assert sum(entry["chosen"] for entry in found.values()) == 1
    assert {tuple(entry["ms"]) for entry in found.values()} == {("rpi4",)}
    assert found["article"]["input"] == [8, 8, 1] and found["article"]["ms"]["rpi4"] == pytest.approx(4, rel=0.01)
    macs = [describe(build_network(name, 8, 8, 1, 10)).macs for name in ("article", "resnet8")]
    assert found["resnet8"]["ms"]["rpi4"] == pytest.approx(4 * macs[1] / macs[0], rel=0.01)
    table = edgecnn("networks", "--data", "digits").out
    assert "rpi4, ms" in table and "rpi5" not in table and "estimates" in table


def test_without_figures_it_says_how_to_have_them(edgecnn):
    result = edgecnn("networks", "resnet8", "--data", "digits")
    assert "ms" not in result.out.splitlines()[1] and "edgecnn benchmark --save" in result.out
    assert "benchmark" not in edgecnn("networks", "resnet8").out
