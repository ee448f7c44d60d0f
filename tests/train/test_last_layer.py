"""The last layer on arrays: held-out answers, classes that are missing, weights of rare classes, and int8 arithmetic."""

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="the workstation side needs the train extra")

from edgecnn.data.decoding import class_weights
from edgecnn.train.candidates import Images, fit, held_out, log_losses, moved, quantize


def made(features, classes, weights=None):
    return Images(features, classes, np.ones(len(classes)) if weights is None else weights, int(classes.max()) + 1)


def test_no_photo_is_answered_by_a_layer_that_saw_it():
    random = np.random.default_rng(1)
    classes, folds = np.repeat([0, 1], 50), np.arange(100) % 5
    noise = random.normal(size=(100, 400)).astype(np.float32)
    logits, _ = held_out(made(noise, classes), folds)
    assert 0.3 < np.mean(logits.argmax(axis=1) == classes) < 0.7, (
        "more features than photos: fitted ones would be right"
    )
    noise[:, 0] += 20 * classes
    logits, _ = held_out(made(noise, classes), folds)
    assert np.mean(logits.argmax(axis=1) == classes) > 0.95
    twins = made(np.tile(noise[:, 1:], (2, 1)), np.tile(classes, 2))
    apart, together = np.concatenate([folds, (folds + 1) % 5]), np.tile(folds, 2)
    right = [np.mean(held_out(twins, one)[0].argmax(axis=1) == twins.classes) for one in (apart, together)]
    assert right[0] > 0.9 and right[1] < 0.7, "a copy in another fold gives the answer away"


def test_a_class_without_photos_is_never_the_answer():
    features = np.random.default_rng(1).normal(size=(60, 8)).astype(np.float32)
    features[:30, 0] += 9
    for classes in (np.repeat([0, 2], 30), np.repeat([2, 2], 30)):
        layer = fit(Images(features, classes, np.ones(60), 4), 0.1)
        assert set(layer.logits(features).argmax(axis=1).tolist()) == set(classes.tolist())
        assert np.isfinite(log_losses(layer.logits(features), np.full(60, 1))).all()


def test_weights_find_more_of_a_rare_class():
    random = np.random.default_rng(1)
    classes = np.repeat([0, 1], [380, 20])
    features = random.normal(size=(400, 6)).astype(np.float32)
    features[:, 0] += 1.5 * classes
    folds = random.permutation(400) % 5
    plain, weighed = (
        held_out(made(features, classes, weights), folds)[0].argmax(axis=1)
        for weights in (None, class_weights(classes))
    )
    found = [int(np.sum(answer[classes == 1])) for answer in (plain, weighed)]
    assert found[0] <= 5 and found[1] >= 12


def test_a_moved_layer_gives_its_answers_on_changed_features_of_photos_that_it_did_not_see():
    random = np.random.default_rng(1)
    features = random.normal(size=(600, 40)).astype(np.float32)
    classes = (features[:, :3] + 0.5 * random.normal(size=(600, 3))).argmax(axis=1)
    changed = features * random.uniform(0.7, 1.1, 40) + random.normal(size=40) + 0.1 * random.normal(size=(600, 40))
    seen, new = np.split(np.arange(600), [300])
    images = made(features, classes)
    layer = fit(images.some(seen), 0.1)
    expected = layer.logits(features[new]).argmax(axis=1)
    refitted = fit(images._replace(features=changed).some(seen), 0.1)
    agreement = [
        float(np.mean(one.logits(changed[new]).argmax(axis=1) == expected))
        for one in (layer, refitted, moved(layer, features[seen], changed[seen]))
    ]
    assert agreement[0] < 0.85 and agreement[2] > max(agreement[1], 0.93)
    same = moved(layer, features[seen], features[seen])
    assert np.allclose(same.weights, layer.weights) and np.allclose(same.bias, layer.bias)


def test_int8_weights_lie_on_codes_and_the_answers_stay():
    random = np.random.default_rng(1)
    features = np.rint(random.gamma(1, 8, (300, 64))).clip(0, 255).astype(np.float32) * np.float32(0.02)
    classes = (features[:, :3].argmax(axis=1)).astype(np.int64)
    layer = fit(made(features, classes), 1.0)
    int8 = quantize(layer, features)
    codes = int8.layer.weights / int8.step
    assert np.abs(codes - np.rint(codes)).max() < 1e-6 and np.abs(codes).max() <= 127
    logits = int8.logits(features)
    steps = logits / ((int8.ends[1] - int8.ends[0]) / 255)
    assert np.abs(steps - np.rint(steps)).max() < 1e-3, "logits lie on 256 codes"
    assert np.mean(logits.argmax(axis=1) == layer.logits(features).argmax(axis=1)) > 0.97
