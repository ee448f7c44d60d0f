"""Hostile names stay on their line, and ordinary names stay unchanged."""

import pytest

from edgecnn.labels import printable, printable_lines, why_not_a_label

SEEN = ("dög", "Katze 2", "猫", "قط", "חתול", "T-shirt/top", "👩\u200d🚀", "it's", "e\u0301", "a\u00a0b")


@pytest.mark.parametrize("text", SEEN)
def test_ordinary_text_is_shown_unmodified(text):
    assert printable(text) == text and why_not_a_label(text) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb", r"a\nb"),
        ("a\0", r"a\x00"),
        ("\x9b2J", r"\x9b2J"),
        ("\x7f", r"\x7f"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2028", r"\u2028"),
        ("caf\udce9", r"caf\udce9"),
        ("👩\u200d🚀\n", "👩\u200d🚀\\n"),
    ],
)
def test_control_characters_are_shown_as_escapes(text, shown):
    assert printable(text) == shown and why_not_a_label(text)
    shown.encode()


def test_lines_stay_lines():
    assert printable_lines("one\ntwo\x1b[1A\r") == "one\ntwo\\x1b[1A\\r"


@pytest.mark.parametrize("label", ["", "abstain", "x" * 256, "é" * 128])
def test_invalid_class_names(label):
    assert why_not_a_label(label)
    assert not why_not_a_label(label[:-1] + "X" if label else "x") or len(label.encode()) > 255
