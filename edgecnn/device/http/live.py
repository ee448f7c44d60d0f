"""The camera loop's side of the server: a Consumer that starts it, keeps it running, and sends it results, events and pictures."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgecnn.bundle.evidence import read_validation
from edgecnn.device.address import Listener
from edgecnn.device.http import link
from edgecnn.device.http.drift import shown_validation
from edgecnn.device.keep.folder import read_kept
from edgecnn.device.slots.store import about
from edgecnn.device.stream import events
from edgecnn.device.stream.loop import Consumer, Item
from edgecnn.device.stream.settings import Settings
from edgecnn.device.system import environment
from edgecnn.errors import ImageError
from edgecnn.files import canonical_json, sha256, state_home
from edgecnn.images import probe
from edgecnn.region import WHOLE
from edgecnn.runtime.child import how_ended
from edgecnn.runtime.classifier import Classifier

PICTURES_PER_S = 10.0
"""The highest picture rate for viewers: more would cost the camera loop copies and the board processor time."""

PREVIEW_SIDE = 1280  # pixels: a frame twice as large is shared with every second row and column

REPLAYED = 1000  # events that a restarted server receives again

WAITING = 256  # events kept for a server that does not read

RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)

STEADY_S = 60.0  # a server that ran this long is restarted after the shortest delay

LEAST_END_S, END_S = 0.5, 2.0  # time for the server to write its files; the first applies after an interruption too


class Live(Consumer):
    """Runs the server in its own process and sends it the stream's results. Nothing here waits for it."""

    def __init__(self, opening: link.Opening, listener: socket.socket, model: tuple[str, str], region: Any) -> None:
        """Start the server, which listens on `listener`; `model` and `region` are as in `result_line`."""
        self._opening = opening
        self._listener = listener
        self._model, self._region = model, region
        self._shared = link.Shared.create()
        self._decisions: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._replay: deque[str] = deque(maxlen=REPLAYED)
        self._kept: deque[dict[str, Any]] = deque(opening.kept, link.UNSURES)
        self._camera: str | None = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING)
        self._newest: tuple[str, tuple[int, int]] | None = None
        self._frame: events.FrameResult | None = None
        self._unseen = False
        self._size: tuple[int, int] | None = None
        self._sized_at = 0.0
        self._looking = False
        self._shown_at = 0.0
        self._source = ""
        self._failures = 0
        self._due = 0.0
        self._start()

    def take(self, item: Item) -> Iterable[events.Event]:
        self._source = item.source
        if isinstance(item, events.FrameResult):
            self._frame, self._unseen = item, True
            self._decisions[item.decision] += 1
            self._late[item.decision] += 1
            self._newest = events.result_line(item, self._model, self._region), self._size_of(item.image)
            self._flush()
            self._show()
        else:
            self.hear(item)
        return ()

    def hear(self, event: events.Event) -> None:
        if isinstance(event, events.CameraOpenedEvent | events.CameraBackEvent):
            self._size = None
        line = events.event_line(event)
        self._replay.append(line)
        if isinstance(event, events.CameraOpenedEvent | events.CameraBackEvent | events.CameraLostEvent):
            self._camera = line
        self._waiting.append(link.EVENT + line.encode())
        self._flush()

    def kept(self, name: str, result: events.FrameResult) -> None:
        """Report an unsure frame that was kept as `name` in its folder."""
        best = result.top[0] if result.top else None
        known = {"guess": best and best.label, "reason": result.reason, "score": best and round(best.score, 6)}
        entry = {"name": name, "ts": result.ts, **known}
        self._kept.append(entry)
        self._waiting.append(link.UNSURE + link.dumps(entry))
        self._flush()

    def poll(self) -> Iterable[events.Event]:
        """Send waiting messages, note whether somebody is watching, and restart a server that has ended."""
        with contextlib.suppress(OSError):
            while message := self._link.recv(link.MOST_BYTES):
                self._looking = self._unseen = message == link.LOOK
                self._shown_at = 0.0
                self._show()
        self._flush()
        return self._revive()

    def finish(self, wait_s: float) -> Iterable[events.Event]:
        """End the server by closing the link; kill it if it does not end in time."""
        self._link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(LEAST_END_S, min(wait_s, END_S)))
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._listener.close()
        return ()

    def _start(self) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        self._looking = False
        self._waiting.clear()  # like everything else that waits: the next server starts with all of it
        self._late.clear()
        self._newest = None
        heard = {"decisions": self._decisions, "replay": self._heard(), "kept": tuple(self._kept)}
        opening = asdict(self._opening) | heard
        files = (theirs.fileno(), self._listener.fileno(), self._shared.file)
        # the server imports from the working folder only if this process does
        safe = [] if os.getcwd() in sys.path or "" in sys.path else ["-P"]
        command = [sys.executable, *safe, "-m", "edgecnn.device.http.serve", *map(str, files)]
        with theirs, open(os.memfd_create("edgecnn-opening"), "w+b") as text:
            text.write(link.dumps(opening))
            text.seek(0)
            self._process = subprocess.Popen(
                command, stdin=text, stdout=subprocess.DEVNULL, env=environment(), pass_fds=files
            )
        self._started = time.monotonic()

    def _heard(self) -> tuple[str, ...]:
        """Return the events for a new server. They include the camera's last one, however old it is."""
        first = () if self._camera is None or self._camera in self._replay else (self._camera,)
        return (*first, *self._replay)

    def _revive(self) -> Iterable[events.Event]:
        if self._process.poll() is None:
            return ()
        now = time.monotonic()
        if not self._due:
            self._failures = 0 if now - self._started > STEADY_S else self._failures + 1
            again = RETRY_S[min(self._failures, len(RETRY_S) - 1)]
            self._due = now + again
            message = f"the page's server has ended: {how_ended(self._process.returncode)}; it restarts in {again:g} s"
            return [events.ProblemEvent(ts=time.time(), source=self._source, about="http", message=message)]
        if now >= self._due:
            self._due = 0.0
            self._link.close()
            try:
                self._start()
            except OSError as error:  # no process or memory left; the next poll finds the ended server again, and waits
                message = f"the page's server cannot start: {error.strerror}"
                return [events.ProblemEvent(ts=time.time(), source=self._source, about="http", message=message)]
        return ()

    def _flush(self) -> None:
        """Send the waiting events, then the newest result. A message that does not fit waits; a newer result replaces an older one."""
        while self._waiting:
            if not link.send(self._link, self._waiting[0]):
                return
            self._waiting.popleft()
        if self._newest is not None:
            line, size = self._newest
            head = link.dumps([size, self._late])
            if link.send(self._link, b"%b%b\n%b" % (link.RESULT, head, line.encode())):
                self._newest = None
                self._late.clear()

    def _show(self) -> None:
        """Share the newest frame if somebody is watching, it is unseen, and the last one is old enough."""
        now, result = time.monotonic(), self._frame
        if not (self._looking and self._unseen) or result is None or now - self._shown_at < 1 / PICTURES_PER_S:
            return
        self._shown_at, self._unseen = now, False
        image = result.image
        if isinstance(image, np.ndarray) and (step := max(image.shape) // PREVIEW_SIDE) > 1:
            image = image[::step, ::step]
        link.send(self._link, link.PICTURE + link.dumps(self._shared.write(image, result.ts, result.seq)))

    def _size_of(self, image: bytes | np.ndarray) -> tuple[int, int]:
        """Return the upright (width, height) of a frame. An encoded one's header is read at most PICTURES_PER_S times a second."""
        now = time.monotonic()
        if isinstance(image, bytes):
            if self._size is not None and now - self._sized_at < 1 / PICTURES_PER_S:
                return self._size
            try:
                height, width, _ = probe(image)
            except ImageError:
                return 0, 0
        else:
            height, width = image.shape[:2]
        self._size = (height, width) if self._opening.rotation in (90, 270) else (width, height)
        self._sized_at = now
        return self._size


def make_opening(
    door: Listener | None,
    settings: Settings,
    classifier: "Classifier",
    choice: Mapping[str, Any],
    *,
    camera: str | None = None,
    kept: Sequence[str] = (),
) -> link.Opening:
    """Return the server's starting data.

    `choice` holds the arguments of `Classifier.load` except the path. `camera` is the stream's address: "" for the first camera that
    works, None without a stream. `kept` lists the unsure frames that an earlier run kept in the settings' folder, oldest first.
    """
    folder, metrics_file = settings.reaction.keep, settings.metrics.file
    return link.Opening(
        port=door.address[1] if door else 0,
        token=door.token if door else None,
        hosts=door.hosts if door else (),
        camera=camera is not None,
        rotation=settings.camera.rotation,
        region=None if classifier.region == WHOLE else tuple(classifier.region),
        model=model_facts(classifier),
        classifier={"path": str(classifier.bundle.path), **choice},
        decision=vars(settings.decision),
        unsure=None if folder is None else str(folder.absolute()),
        kept=tuple(found for name in kept if folder and (found := kept_facts(folder, name))),
        drift=None if camera is None else drift_facts(classifier, settings, camera),
        metrics_file=None if metrics_file is None else str(metrics_file.absolute()),
    )


def drift_facts(classifier: "Classifier", settings: Settings, camera: str) -> dict[str, Any]:
    """Return the reference for a camera's counts, the file that stores them, and a key that changes with the model or the view."""
    strangers, decision = classifier.strangers is not None, settings.decision
    threshold = classifier.threshold if decision.threshold is None else decision.threshold
    made = [classifier.model_sha256, classifier.region, settings.camera.rotation, decision.fit, strangers]
    return {
        "key": sha256(canonical_json(made).encode()),
        "file": str(state_home() / "drift" / f"{sha256(os.fsencode(camera))[:16]}.json"),
        "strangers": strangers,
        "validation": shown_validation(read_validation(classifier.bundle.files), threshold, strangers),
    }


def kept_facts(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the facts about an unsure frame that was kept as `name` in a folder; None if it is gone."""
    kept = read_kept((folder / name).with_suffix(".json"))
    if kept is None:
        return None
    score = kept.scores[0].score if kept.scores else None
    return {"name": name, "ts": kept.ts, "guess": kept.guess, "reason": kept.reason, "score": score}


def model_facts(classifier: "Classifier") -> dict[str, Any]:
    """Return the model's entry in /v1/state, with its verified accuracy and Wilson's 95 % interval."""
    bundle, engine = classifier.bundle, classifier.model.engine
    known = about(bundle)
    files = {digest: name for name, digest in bundle.manifest.files.items()}
    entry = next(model for model in bundle.manifest.models if model.file == files[classifier.model_sha256])
    return {
        "name": classifier.name, "serial": bundle.manifest.serial, "sha256": bundle.sha256, "model_sha256": classifier.model_sha256,
        "labels": list(classifier.labels), "shape": [int(side) for side in engine.input.shape[1:]],
        "engine": f"{engine.name} {engine.version}", "precision": entry.precision,
        "accuracy": known.accuracy, "interval": known.interval, "images": known.images,
    }  # fmt: skip
