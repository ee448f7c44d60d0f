"""Frames that a board kept one after another and that look alike: one person at the door, one part on the belt."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from edgecnn.data.sides import BURST, Link

GAP_S, LONGEST_S = 15.0, 60.0
"""Largest time between two frames of a burst, and between its first and its last: a longer stay gives several bursts."""

ELSEWHERE = 5
"""Fewest frames of other moments, from which the board's usual view is known."""

ALIKE, ALIKE_AS_A_WHOLE = 0.4, 0.9
"""Smallest cosine of two frames from which the board's usual view is subtracted, and of whole frames if that view is not known. On 12
made-up doors, with faces 4 s apart, 95 % of the pairs of one person had 0.43 or more, and 95 % of those of two people 0.53 or less."""


def bursts(
    taken: Sequence[tuple[float, str]], rows: Mapping[str, int], thumbs: np.ndarray, features: np.ndarray | None
) -> Iterator[Link]:
    """Yield links between frames of one board that follow each other in time and are alike.

    At a fixed door the background makes all frames alike, so the mean of the frames of other moments is subtracted first.

    Args:
        taken: the time and the hash of each frame, in order.
        rows: the row of each image, by hash.
        thumbs: small pictures, uint8 (n, side, side, 3), which are compared if there are no features.
        features: float32 (n, length), or None.
    """
    values = thumbs.reshape(len(thumbs), -1).astype(np.float32) if features is None else features
    frames = values[[rows[one] for _, one in taken]]
    times = np.array([moment for moment, _ in taken])
    begun = 0
    for index, (first, second) in enumerate(pairwise(range(len(taken)))):
        if times[second] - times[first] > GAP_S or times[second] - times[begun] > LONGEST_S:
            begun = second
            continue
        elsewhere = np.minimum(abs(times - times[first]), abs(times - times[second])) > GAP_S
        known = elsewhere.sum() >= ELSEWHERE
        usual = frames[elsewhere].mean(axis=0) if known else np.zeros(frames.shape[1], np.float32)
        one, other = frames[index] - usual, frames[index + 1] - usual
        cosine = float(one @ other) / max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-12)
        if cosine >= (ALIKE if known else ALIKE_AS_A_WHOLE):
            yield Link(taken[first][1], taken[second][1], cosine, BURST)
        else:
            begun = second
