"""The loop over images: each has one outcome, whatever happens to one of them."""

import functools

from edgecnn.device.stream.sources import for_each_image
from edgecnn.errors import ImageError


def test_a_broken_image_is_an_outcome_and_the_loop_continues(fake_classifier, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "broken.jpg").write_bytes(b"x")
    work = functools.partial(fake_classifier.classify, top_k=2, threshold=0.5)
    outcomes = list(for_each_image(work, ["b.jpg", "broken.jpg", "none.jpg", "A.PNG"], []))
    assert [outcome.source for outcome in outcomes] == ["b.jpg", "broken.jpg", "none.jpg", "A.PNG"]
    assert [outcome.result and outcome.result.decision for outcome in outcomes] == ["cat", None, None, "cat"]
    assert [type(outcome.error) for outcome in outcomes] == [type(None), ImageError, ImageError, type(None)]
    assert fake_classifier.calls == [(name, 2, 0.5, 0.0) for name in ("b.jpg", "broken.jpg", "A.PNG")]


def test_decisions(fake_classifier, folder, monkeypatch):
    monkeypatch.chdir(folder)
    for options, decision in (
        ({"threshold": 0.75}, ("cat", None)),
        ({"threshold": 0.76}, ("abstain", "below_threshold")),
        ({"threshold": 0.0, "margin": 0.5}, ("cat", None)),
        ({"threshold": 0.0, "margin": 0.51}, ("abstain", "below_margin")),
        ({}, ("abstain", "below_threshold")),
    ):
        fake_classifier.threshold = 0.8  # the bundle's threshold
        (outcome,) = for_each_image(functools.partial(fake_classifier.classify, **options), ["b.jpg"], [])
        assert (outcome.result.decision, outcome.result.reason) == decision
        assert [item.label for item in outcome.result.top] == ["cat", "dog"]


def test_outcomes_come_one_by_one(fake_classifier, folder, monkeypatch):
    monkeypatch.chdir(folder)
    outcomes = for_each_image(fake_classifier.classify, ["b.jpg", "A.PNG"], [])
    assert next(outcomes).source == "b.jpg"
    assert len(fake_classifier.calls) == 1
