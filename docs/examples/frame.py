"""Classify a frame that is already in memory: uint8, (height, width, 3), RGB."""

import numpy as np

from edgecnn.runtime import Classifier

frame = np.full((480, 640, 3), 128, np.uint8)
classifier = Classifier.load("photos.edgecnn")
result = classifier.classify(frame, top_k=2)
print([(item.label, round(item.score, 3)) for item in result.top])
print({stage: round(milliseconds, 2) for stage, milliseconds in result.latency_ms.items()})
