"""The stage that runs the choosers: it loads training and validation images, never test images, and stores the choices."""

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from edgecnn.bundle.evidence import BOUNDS, VALIDATION, ValidationScores, score_counts
from edgecnn.calibrate.confidence import (
    ChosenConfidence,
    ChosenStrangers,
    fit_confidence,
    known_codes,
    least_count,
    limit_of,
    similar_to,
)
from edgecnn.calibrate.input_range import Labelled
from edgecnn.data import Dataset, Progress, Split
from edgecnn.data.dataset import require_split
from edgecnn.data.decoding import balanced
from edgecnn.evaluate.answers import device_model, in_chunks, input_contract, require_held_out
from edgecnn.export import export_path
from edgecnn.files import npy, sha256, write_atomic
from edgecnn.labels import plural
from edgecnn.runs import CONFIDENCE, KNOWN, STRANGERS, Run, write_json
from edgecnn.runtime.decision import Strangers, softmax
from edgecnn.runtime.model import Model
from edgecnn.verify.predictions import known_features

KNOWN_IMAGES = 1_000
"""Maximum number of known training images, the same number per class: each image to classify is compared with each of them."""

RANGE_IMAGES = 200
"""Images to try input ranges on, the same number per class."""

ENOUGH = 100
"""With this many validation images, no training images are needed for that."""


class Choosing:
    """The choices of a run, made with one export and stored in the run."""

    def __init__(self, run: Run, dataset: Dataset, export: tuple[str, str], progress: Progress) -> None:
        self.run, self.dataset, self.progress = run, dataset, progress
        self.format, precision = export
        self.bytes = export_path(run, *export).read_bytes()
        self.held = require_held_out(run) if run.info.folds or run.info.head_ships else None
        validation = self.held.sha256 if self.held else dataset.hashes["validation"]
        self.made: dict[str, Any] = {
            "model": f"models/{precision}.{self.format}",
            "model_sha256": sha256(self.bytes),
            "validation_sha256": validation,
        }
        """The basis of a choice: the file in a bundle, its SHA-256, and that of the validation split or of the folds' answers."""

    def confidence(self, target_error: float | None) -> ChosenConfidence:
        """Choose temperature and, for a target error in (0, 1), threshold, and write `confidence.json`; ThresholdError if none fits."""
        logits, _, classes = self.validation
        chosen = replace(fit_confidence(logits, classes, target_error), **self.made)
        write_json(self.run.file(CONFIDENCE), chosen)
        return chosen

    def strangers(self, temperature: float) -> ChosenStrangers | None:
        """Choose the strangers' limit, and write `strangers.json` and `known.npy`; None if not requested or without features."""
        if not self.features:
            return None
        run, rate, train_sha256 = self.run, self.run.recipe.stranger.rate, self.dataset.hashes["train"]
        codes = self.known
        logits, similar, classes = self.validation
        scores = softmax(logits / np.float32(temperature)).max(axis=1)
        limit, known = limit_of(scores, similar, rate, codes), npy(codes)
        few = f"{plural(len(classes), 'validation image')}; refusing {rate:.0%} needs at least {least_count(rate)}"
        chosen = ChosenStrangers(
            limit=limit,
            not_fitted=None if limit else few,
            validation_images=len(classes),
            known_images=len(codes),
            known_sha256=sha256(known),
            temperature=temperature,
            rate=rate,
            train_sha256=train_sha256,
            **self.made,
        )
        write_atomic(run.file(KNOWN), known)
        write_json(run.file(STRANGERS), chosen)
        return chosen

    def scores(self, confidence: ChosenConfidence, strangers: ChosenStrangers | None) -> None:
        """Count the best scores of the validation images and a device's decisions about them, and write `validation.json`."""
        run, limit = self.run, strangers.limit if strangers else None
        threshold, temperature = confidence.threshold, confidence.temperature
        logits, similar, _ = self.validation
        scores = softmax(logits / np.float32(temperature)).max(axis=1)
        refused = np.zeros(len(scores), bool)
        if limit:
            refused = Strangers(limit, known_features(run)).familiarity_of(scores, similar) < limit.limit
        below = scores.astype(np.float64) < threshold
        found = ValidationScores(
            images=len(scores),
            bounds=BOUNDS,
            counts=score_counts(scores),
            below=int(np.sum(below & ~refused)),
            strangers=int(np.sum(refused)),
            strangers_below=int(np.sum(below & refused)),
            threshold=threshold,
            temperature=temperature,
            limit=limit.limit if limit else None,
            **self.made,
        )
        write_json(run.file(VALIDATION), found)

    @cached_property
    def model(self) -> Model:
        return device_model(self.bytes, self.format, input_contract(self.run))

    @cached_property
    def features(self) -> bool:
        return bool(self.run.recipe.stranger.rate) and self.model.engine.features is not None

    @cached_property
    def known(self) -> np.ndarray:
        """Features of training images as a bundle keeps them, int8 (images, length)."""
        train = self._load("train")
        drawn = np.sort(balanced(train.classes, KNOWN_IMAGES, self.run.recipe.seed))
        return known_codes(self.answers(train.images[drawn], "known images")[1])

    @cached_property
    def validation(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Logits, float32 (n, num_classes), similarities to the known images, (n,), and true classes (n,) of the images to choose on.

        These are the validation split, or with folds all images, each answered by a model that never saw it. If the head ships, these are
        the photos of training and validation, answered in the same way.
        """
        if self.held:
            return self.held.int8, self.held.similarity, self.held.classes
        split = self._load("validation")
        logits, features = self.answers(split.images, "validation")
        return logits, similar_to(features, self.known) if self.features else np.empty(0), split.classes

    def _load(self, split: str) -> Split:
        require_split(self.run, self.dataset, split)
        size = vars(self.run.info.input)
        return self.dataset.load((split,), **size, stage="choose", progress=self.progress)[split]

    def answers(self, images: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return logits and features; features have length 0 if they are not needed."""
        if not self.features:
            return in_chunks(self.model.logits, images, name, self.progress), np.empty((len(images), 0), np.float32)
        both = in_chunks(lambda part: np.hstack(self.model.logits_and_features(part)), images, name, self.progress)
        logits, features = np.split(both, [len(self.run.info.data.labels)], axis=1)
        return logits, features


def splits_to_try(dataset: Dataset) -> tuple[str, ...]:
    """Return the splits to try input ranges on: never the test split."""
    usual = ("validation",) if dataset.sizes["validation"] >= ENOUGH else ("validation", "train")
    return tuple(split for split in usual if dataset.sizes[split])


def labelled(splits: dict[str, Split], compared: Split | None = None, most: int = RANGE_IMAGES) -> Labelled:
    """Draw `most` images, the same number per class, from the loaded `splits_to_try`, or from `compared` if those are empty."""
    loaded = {name: split for name, split in splits.items() if len(split.classes)}
    name = " and ".join({"validation": "validation", "train": "training"}[split] for split in loaded) + " images"
    if not loaded:
        assert compared is not None
        loaded, name = {"test": compared}, "of the compared images, since there are no others"
    parts = list(loaded.values())
    classes = np.concatenate([part.classes for part in parts])
    chosen = balanced(classes, most, 1)
    images = np.empty((len(chosen), *parts[0].images.shape[1:]), np.uint8)
    start = 0
    for part in parts:
        inside = (chosen >= start) & (chosen < start + len(part.classes))
        images[inside] = part.images[chosen[inside] - start]
        start += len(part.classes)
    return Labelled(images=images, classes=classes[chosen], name=f"{len(chosen)} {name}")
