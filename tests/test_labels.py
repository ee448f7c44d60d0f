"""Hostile names stay on their line, and ordinary names stay unchanged."""

from edgecnn.labels import plural, printable, printable_lines, why_not_a_label

SEEN = ("dög", "Katze 2", "猫", "قط", "חתול", "T-shirt/top", "👩\u200d🚀", "it's", "e\u0301", "a\u00a0b")


def test_ordinary_text_is_shown_unmodified():
    for text in SEEN:
        assert printable(text) == text and why_not_a_label(text) == "", text


def test_control_characters_are_shown_as_escapes():
    for text, shown in (
        ("a\x1b[2J", r"a\x1b[2J"),
        ("a\nb", r"a\nb"),
        ("a\0", r"a\x00"),
        ("\x1f", r"\x1f"),
        ("\x9b2J", r"\x9b2J"),
        ("\x9f", r"\x9f"),
        ("\x7f", r"\x7f"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\u2028", r"\u2028"),
        ("caf\udce9", r"caf\udce9"),
        ("👩\u200d🚀\n", "👩\u200d🚀\\n"),
    ):
        assert printable(text) == shown and why_not_a_label(text), text
        shown.encode()
    assert printable_lines("one\ntwo\x1b[1A\r") == "one\ntwo\\x1b[1A\\r", "lines stay lines"


def test_a_class_has_a_name_of_at_most_255_bytes_that_is_no_decision():
    for label in ("", "abstain", "x" * 256, "é" * 128):
        assert why_not_a_label(label), label
    for label in ("abstained", "x" * 255, "é" * 127 + "x"):
        assert why_not_a_label(label) == "", label


def test_one_of_a_thing_is_singular_and_thousands_have_a_comma():
    counts = [plural(count, "picture") for count in (0, 1, 2, 1234)]
    assert counts == ["0 pictures", "1 picture", "2 pictures", "1,234 pictures"]
