"""Metrics that follow Prometheus's conventions: the board's whole state, and histograms of the results that arrive here."""

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from edgecnn import __version__
from edgecnn.bundle.validation import BOUNDS
from edgecnn.device.http.board import Board
from edgecnn.device.sensors import BITS

INFERENCE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

AGE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

DRIFT_WEEKS = ("today", "validation", "accepted")


class Histogram:
    """Counts of observations per upper bound, cheap enough for a device at any rate."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self, name: str, about: str) -> Metric:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, itertools.accumulate(self._counts)), strict=True))
        return HistogramMetricFamily(name, about, buckets=buckets, sum_value=self._sum)


class Metrics(Collector):
    """Collects the metrics of a board; `registry` holds nothing else."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._inference, self._age, self._score = Histogram(INFERENCE_S), Histogram(AGE_S), Histogram((*BOUNDS, 1.0))
        board.on_result.append(self._take)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def _take(self, line: Mapping[str, Any], late: Mapping[str, int]) -> None:
        self._inference.observe(line["latency_ms"]["infer"] / 1000)
        self._age.observe(line["age_ms"] / 1000)
        if line["top"]:
            self._score.observe(line["top"][0]["score"])

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        yield from self._about()
        yield from self._machine()
        if self._board.camera != "none":
            yield from self._camera()
        if drift := self._board.drift():
            yield from drift_families(drift)

    def text(self) -> bytes:
        """Return the metrics in the text format that node_exporter reads."""
        return generate_latest(self.registry)

    def encoded(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in a format that the client accepts, and its content type."""
        encode, media_type = choose_encoder(accept)
        return encode(self.registry), media_type

    def _about(self) -> Iterator[Metric]:
        model = self._board.model
        facts = {name: str(model[name]) for name in ("name", "serial", "sha256", "engine", "precision")}
        yield InfoMetricFamily("edgecnn_model", "The model in use, from its bundle.", value=facts)
        yield InfoMetricFamily("edgecnn_build", "The version of edgecnn.", value={"version": __version__})
        about = "When edgecnn started, in seconds since the epoch."
        yield GaugeMetricFamily("edgecnn_start_time_seconds", about, value=self._board.opening.started)
        if model["accuracy"] is not None:
            about = "Accuracy of the model on its test images."
            yield GaugeMetricFamily("edgecnn_model_accuracy_ratio", about, value=model["accuracy"])

    def _machine(self) -> Iterator[Metric]:
        machine = self._board.machine
        if machine["temperature_c"] is not None:
            about = "Temperature of the processor."
            yield GaugeMetricFamily("edgecnn_temperature_celsius", about, value=machine["temperature_c"])
        if machine["memory_mib"] is not None:
            memory = machine["memory_mib"] * 2**20
            yield GaugeMetricFamily(
                "edgecnn_resident_memory_bytes", "Memory used by edgecnn's processes.", value=memory
            )
        throttled = GaugeMetricFamily(
            "edgecnn_throttled", "Whether the board is throttled now, by reason.", labels=["reason"]
        )
        for reason in BITS.values():
            throttled.add_metric([reason], float(reason in machine["throttled"]))
        yield throttled
        if update := machine["update"]:
            about = "Whether the last check for a release failed."
            yield GaugeMetricFamily("edgecnn_update_failed", about, value=float(update["reason"] is not None))
            if update["last_good"]:
                about = "When the last successful check for a release was, in seconds since the epoch."
                good = datetime.fromisoformat(update["last_good"]).timestamp()
                yield GaugeMetricFamily("edgecnn_update_last_good_timestamp_seconds", about, value=good)

    def _camera(self) -> Iterator[Metric]:
        board = self._board
        about = "Whether the camera delivers frames."
        yield GaugeMetricFamily("edgecnn_camera_up", about, value=float(board.camera == "open"))
        yield CounterMetricFamily(
            "edgecnn_camera_reconnects", "Number of times that a lost camera came back.", value=board.reconnects
        )
        yield CounterMetricFamily("edgecnn_frames", "Frames that were classified.", value=board.frames)
        decisions = CounterMetricFamily("edgecnn_decisions", "Frames by decision.", labels=["decision"])
        for decision in dict.fromkeys((*board.model["labels"], *board.decisions)):
            decisions.add_metric([decision], board.decisions[decision])
        yield decisions
        about = "Frames that were too old, or replaced by newer ones during a classification."
        yield CounterMetricFamily("edgecnn_frames_dropped", about, value=board.dropped)
        yield CounterMetricFamily("edgecnn_frames_damaged", "Frames that could not be decoded.", value=board.damaged)
        if board.frame:
            about = "When the newest classified frame was complete, in seconds since the epoch."
            yield GaugeMetricFamily("edgecnn_last_frame_timestamp_seconds", about, value=board.frame["ts"])
        yield self._inference.family("edgecnn_inference_seconds", "Inference time per frame.")
        yield self._age.family("edgecnn_frame_age_seconds", "Age of a frame when the decision is made.")
        yield self._score.family("edgecnn_best_score", "Largest softmax score of a frame.")


def drift_families(drift: Mapping[str, Any]) -> Iterator[Metric]:
    """Yield the metrics of `edgecnn.device.http.drift.Drift.document`; `of` is today, the validation images or the accepted week."""
    about = "Whether the scores differ from those of the accepted week."
    yield GaugeMetricFamily("edgecnn_drift_alarm", about, value=float(drift["alarm"] is not None))
    about = "Whether a week can be accepted as the reference for the alarm."
    yield GaugeMetricFamily("edgecnn_drift_can_accept", about, value=float(drift["can_accept"]))
    frames = GaugeMetricFamily("edgecnn_drift_frames", "Number of frames or images in the shares.", labels=["of"])
    about = "Share of frames with this decision."
    decisions = GaugeMetricFamily("edgecnn_drift_decision_ratio", about, labels=["of", "decision"])
    about = "Share of frames whose best score is at most the bound."
    scores = GaugeMetricFamily("edgecnn_drift_score_ratio", about, labels=["of", "bound"])
    for of in DRIFT_WEEKS:
        if (shown := drift[of]) is None:
            continue
        frames.add_metric([of], shown["n"])
        for decision in ("abstain", "stranger"):
            if shown[decision] is not None:
                decisions.add_metric([of, decision], shown[decision])
        for bound, share in zip(drift["bins"][1:], itertools.accumulate(shown["histogram"]), strict=True):
            scores.add_metric([of, floatToGoString(bound)], share)
    yield from (frames, decisions, scores)
