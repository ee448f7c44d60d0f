"""`edgecnn networks --data`: what training would choose."""

import dataclasses
import json

import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.cli.networks import print_costs
from edgecnn.networks import NETWORKS
from edgecnn.networks.describe import LayerCost, NetworkCost


def test_the_input_of_each_network_and_the_one_that_training_chooses(edgecnn, monkeypatch, capfd):
    few = ("article", "resnet8", "efficientnet_lite0_150kb")
    monkeypatch.setattr("edgecnn.networks.NETWORKS", {name: NETWORKS[name] for name in few})
    found = json.loads(edgecnn("networks", "--data", "digits", "--json").out)
    assert set(found) == set(few)
    assert [name for name, entry in found.items() if entry["chosen"]] == ["article"]
    assert found["article"]["input"] == [8, 8, 1] and found["efficientnet_lite0_150kb"]["input"] == [160, 160, 1]
    assert "edgecnn train chooses article" in edgecnn("networks", "resnet8", "--data", "digits").out
    cost = NetworkCost(layers=(), parameters=12_345, macs=6_789_012, int8_bytes=14_321)
    capfd.readouterr()
    print_costs({"article": cost}, {"article": (28, 20, 1)}, layers=False)
    heading, _, row = capfd.readouterr().out.splitlines()
    assert heading.split()[:5] == ["network", "input", "parameters", "MACs", "int8"]
    assert " ".join(row.split()) == "article 28x20x1 12,345 6,789,012 14,321 random weights"
    layers = (LayerCost(name="conv", kind="Conv2D", shape=(14, 10, 8), parameters=1_080, macs=151_200),)
    print_costs({"article": dataclasses.replace(cost, layers=layers)}, {"article": (28, 20, 1)}, layers=True)
    name, heading, _, row = capfd.readouterr().out.splitlines()[-4:]
    assert (name, heading.split()) == ("article", ["layer", "output", "parameters", "MACs", "kind"])
    assert " ".join(row.split()) == "conv (14, 10, 8) 1,080 151,200 Conv2D"
    shown = json.loads(edgecnn("networks", "article", "--height", 28, "--width", 20, "--channels", 1, "--json").out)
    assert shown["article"]["input"] == [28, 20, 1]


def test_a_budget_needs_a_choice_by_the_images(edgecnn):
    result = edgecnn("networks", "--max-kb", "500")
    assert result.code == 2 and "give --data too" in " ".join(result.err.split())
    result = edgecnn("train", "--data", "digits", "--network", "resnet8", "--max-macs", "2e8")
    assert result.code == 2 and "leave --network out" in " ".join(result.err.split())
