"""The card's metadata, read by Hugging Face's own class."""

import json
from dataclasses import replace

import pytest

from edgecnn.bundle.read import read_bundle
from edgecnn.report.card import card
from edgecnn.report.metadata import metadata_block
from edgecnn.tables import build
from edgecnn.verify.confidence import stored_confidence
from edgecnn.verify.parity import parity_report
from edgecnn.verify.parity_report import Report

huggingface_hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is in the dev extra")


def test_a_card_is_read_by_the_hubs_own_class(finished_run):
    report = parity_report(finished_run)
    read = huggingface_hub.ModelCard(card(finished_run, report, stored_confidence(finished_run)))
    assert (read.data.pipeline_tag, read.data.library_name, read.data.model_name) == (
        "image-classification", "edgecnn", "tiny",
    )  # fmt: skip
    assert {result.metric_name: result.metric_value for result in read.data.eval_results} == {
        f"accuracy, {model.name}": model.accuracy for model in report.models
    }
    assert read.text.startswith("\n# tiny\n")


def test_names_that_yaml_would_misread(finished_run):
    report = parity_report(finished_run)
    for name in ("yes", "1e3", 'a: "b"', "- x", "---\nb: c", "\u2028", "{x}"):
        data = replace(report.data, name=name, title=name)
        read = huggingface_hub.ModelCard(metadata_block(name, replace(report, data=data)))
        assert read.data.model_name == name and read.data.eval_results[0].dataset_name == name


def test_shipped_cards_begin_with_their_own_figures(root):
    cards = sorted((root / "models").glob("*/card.md"))
    assert len(cards) == 8
    for path in cards:
        name = path.parent.name
        report = build(
            Report, json.loads(read_bundle(path.parent / f"{name}.edgecnn").files["parity.json"]), ValueError
        )
        assert path.read_text(encoding="utf-8").startswith(metadata_block(name, report)), f"{name}: ship it again"
