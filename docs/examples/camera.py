"""Print each change of a camera's state, and report when the camera is lost."""

import sys

from edgecnn.device import open_stream
from edgecnn.device.stream.events import CameraLostEvent, EndedEvent, StateChangedEvent
from edgecnn.runtime import Classifier

source = sys.argv[1] if len(sys.argv) > 1 else None  # None looks for a camera
with open_stream(source, Classifier.load("photos.edgecnn"), smooth="3") as stream:
    for item in stream:
        match item:
            case StateChangedEvent(state=str() as state, score=float() as score):
                print(f"{state}: {score:.0%}")
            case CameraLostEvent():
                print(item.message)
            case EndedEvent():
                print(f"{item.frames} frames")
