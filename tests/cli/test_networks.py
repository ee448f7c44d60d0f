"""`edgecnn networks --data`: what training would choose."""

import json

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.networks import NETWORKS


def test_the_input_of_each_network_and_the_one_that_training_chooses(edgecnn, monkeypatch):
    few = ("article", "resnet8", "efficientnet_lite0_150kb")
    monkeypatch.setattr("edgecnn.networks.NETWORKS", {name: NETWORKS[name] for name in few})
    found = json.loads(edgecnn("networks", "--data", "digits", "--json").out)
    assert set(found) == set(few)
    assert [name for name, entry in found.items() if entry["chosen"]] == ["article"]
    assert found["article"]["input"] == [8, 8, 1] and found["efficientnet_lite0_150kb"]["input"] == [160, 160, 1]
    assert "edgecnn train chooses article" in edgecnn("networks", "resnet8", "--data", "digits").out


def test_a_budget_needs_a_choice_by_the_images(edgecnn):
    result = edgecnn("networks", "--max-kb", "500")
    assert result.code == 2 and "give --data too" in " ".join(result.err.split())
    result = edgecnn("train", "--data", "digits", "--network", "resnet8", "--max-macs", "2e8")
    assert result.code == 2 and "leave --network out" in " ".join(result.err.split())
