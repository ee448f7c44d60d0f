"""Bursts: frames of one board that follow each other and are alike, at a door whose background makes all frames alike."""

import numpy as np

from edgecnn.inspect.bursts import ALIKE_AS_A_WHOLE, GAP_S, LONGEST_S, bursts


def linked(people, apart_s=4.0, times=None, background=3.0, thumbs=None):
    """Return the pairs of neighbouring frames that are linked; each frame shows one of the `people` before one background."""
    random = np.random.default_rng(2)
    looks = {one: random.normal(size=50) / 50**0.5 for one in sorted(set(people))}
    frames = np.stack([looks[one] for one in people]) + random.normal(size=(len(people), 50)) * 0.05
    frames[:, 0] += background
    features = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).astype(np.float32)
    taken = [(float(moment), f"{n}") for n, moment in enumerate(times or apart_s * np.arange(len(people)))]
    rows = {name: len(people) - 1 - n for n, (_, name) in enumerate(taken)}
    thumbs = np.zeros((len(people), 4, 4, 3), np.uint8) if thumbs is None else thumbs
    return [(int(link.first), int(link.second)) for link in bursts(taken, rows, thumbs, features[::-1])]


def test_each_frame_is_compared_with_its_neighbours_before_the_usual_view():
    assert linked(range(28)) == [], "28 people, 4 s apart"
    people = [0, 0, 0, 1, 2, 2, *range(3, 20)]
    assert linked(people) == [(0, 1), (1, 2), (4, 5)]
    assert linked([0, 1, 0, 1, *range(2, 20)]) == [], "somebody who comes back is another burst"


def test_without_frames_of_other_moments_only_the_whole_frames_are_known():
    assert linked([0] * 6) == [(n, n + 1) for n in range(5)], "one person for 20 s"
    cosine = 9 / (9 + 1)
    assert cosine >= ALIKE_AS_A_WHOLE and linked([0, 1], background=1.0) == []


def test_a_gap_ends_a_burst_and_so_does_its_length():
    times = [0.0, GAP_S, 2 * GAP_S + 0.1, *(1000.0 + 100 * n for n in range(8))]
    assert linked([0, 0, 0, *range(1, 9)], times=times) == [(0, 1)]
    many = int(LONGEST_S / 10) + 4
    found = linked([0] * many + list(range(1, 20)), apart_s=10.0)
    assert (int(LONGEST_S / 10), int(LONGEST_S / 10) + 1) not in found and found[0] == (0, 1)


def test_without_features_small_pictures_are_compared():
    random = np.random.default_rng(1)
    background = random.integers(0, 256, (8, 8, 3))
    thumbs = []
    for person in [0, 0, *range(1, 15)]:
        frame, own = background.copy(), np.random.default_rng(person)
        top, left = own.integers(0, 5, 2)
        frame[top : top + 3, left : left + 3] = own.integers(0, 256, (3, 3, 3))
        thumbs.append(frame)
    taken = [(4.0 * n, str(n)) for n in range(16)]
    rows = {str(n): n for n in range(16)}
    found = [(link.first, link.second) for link in bursts(taken, rows, np.stack(thumbs).astype(np.uint8), None)]
    assert ("0", "1") in found and len(found) <= 2


def test_a_board_with_one_frame_has_no_burst():
    assert linked([0]) == []
