"""What a listing reports: how many images cannot be read and which, how far it is, and which images are drawn."""

import numpy as np
import pytest

from edgecnn.data import items
from edgecnn.data.balanced import balanced, some
from edgecnn.data.decoding import Split
from edgecnn.data.items import Meter, array_items, too_many, unreadable_text
from edgecnn.run_info import Unreadable


def broken(count):
    return [Unreadable(source=f"{n}.jpg", split="train", reason=f"cut {n}") for n in range(count)]


def test_one_image_in_twenty_may_be_unreadable_and_five_are_named():
    assert [too_many(broken(count), 60) for count in (0, 3, 4)] == [False, False, True]
    one, five, seven = (unreadable_text(broken(count), 1200) for count in (1, 5, 7))
    assert one == "1 of 1,200 images cannot be read: 0.jpg (cut 0)"
    assert five.endswith("3.jpg (cut 3); 4.jpg (cut 4)") and "more" not in five
    assert seven.startswith("7 of 1,200 images") and seven.endswith("4.jpg (cut 4); and 2 more")


def test_progress_is_shown_at_once_ten_times_a_second_and_at_the_end(monkeypatch):
    now, steps = [50.0], []
    monkeypatch.setattr(items.time, "monotonic", lambda: now[0])
    meter = Meter(lambda *step: steps.append(step), "reading", 9)
    for moment, amount in ((50.0, 1), (50.05, 2), (50.125, 1), (50.2, 1), (50.25, 3), (50.26, 1)):
        now[0] = moment
        meter.advance(amount)
    assert steps == [("reading", 1, 9), ("reading", 4, 9), ("reading", 8, 9), ("reading", 9, 9)]


def test_images_of_an_array_are_numbered_and_hashed_one_by_one():
    pixels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4, 1)
    first, second = array_items("test", "x", pixels, np.array([4, 1]))
    assert (first.source, first.label, second.source, second.label) == ("x[0]", 4, "x[1]", 1)
    assert first.split == "test" and first.hash != second.hash and np.array_equal(second.handle, pixels[1])
    with pytest.raises(ValueError):
        list(array_items("test", "x", pixels, [1]))


def test_as_many_of_each_class_are_drawn_while_they_last():
    """Three, nine and five images; drawn are 1 to 17."""
    classes = np.array([0, 1, 1, 2, 1, 0, 2, 1, 1, 2, 1, 1, 2, 0, 1, 2, 1])
    for count, expected in {
        3: [1, 1, 1],
        7: [3, 2, 2],
        9: [3, 3, 3],
        11: [3, 4, 4],
        15: [3, 7, 5],
        40: [3, 9, 5],
    }.items():
        drawn = balanced(classes, count, 1)
        assert len(set(drawn.tolist())) == min(count, 17)
        assert sorted(np.bincount(classes[drawn], minlength=3)) == sorted(expected), count
    assert classes[balanced(classes, 9, 2)].tolist() == [0, 1, 2] * 3, "interleaved"
    assert balanced(classes, 9, 1).tolist() != balanced(classes, 9, 2).tolist()
    whole = Split(images=np.arange(17), classes=classes, sources=tuple(map(str, range(17))))
    part = some(whole, 6, 1)
    assert part.images.tolist() == sorted(balanced(classes, 6, 1).tolist()) == [int(one) for one in part.sources]
    assert part.classes.tolist() == classes[part.images].tolist()
