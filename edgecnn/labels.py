"""Names from outside: whether a class may have one, and how a terminal shows it; counts with their nouns, and tables."""

from collections.abc import Sequence

ABSTAIN = "abstain"
"""The decision if no score reaches the threshold, or two are too close to each other. No class may have this name."""

STRANGER = "stranger"
"""The decision if an image is unlike everything that the classifier was trained on."""

VALIDATION_FOLDERS = ("val", "valid", "validation")
SPLIT_FOLDERS = {"train": "train", **dict.fromkeys(VALIDATION_FOLDERS, "validation"), "test": "test"}
"""The folders that are splits of a dataset, not classes, each with its split. Case does not matter."""

MAX_LABEL_BYTES = 255
"""The longest name that a folder can have."""

LINES_AND_DIRECTIONS = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""The line and paragraph separators, and Unicode's Bidi_Control characters."""


def unsafe(character: str) -> bool:
    """Return whether a character can move a terminal's cursor, start a line or change its direction, or is a surrogate."""
    code = ord(character)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or character in LINES_AND_DIRECTIONS


def utf8(text: str, backslash: str = "\\") -> str:
    """Return a text that UTF-8 can encode, with surrogates as escapes. In JSON text, escapes begin with two backslashes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(f"{backslash}u{ord(char):04x}" if 0xD800 <= ord(char) < 0xE000 else char for char in text)
    return text


def printable(text: str) -> str:
    """Return a name as a terminal shows it on one line: each unsafe character as its escape, such as \\x1b."""
    if text.isprintable():
        return text
    return "".join(char.encode("unicode_escape").decode() if unsafe(char) else char for char in text)


def printable_lines(text: str) -> str:
    """Return a text of several lines with the unsafe characters of each line escaped."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def plural(count: int, noun: str, several: str = "") -> str:
    """Return a count with its noun, or with `several` unless it is one: "1 photo", "1,200 photos", "2 classes"."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def why_not_a_label(label: str) -> str:
    """Return why a class cannot have this name; "" if it can."""
    if not label:
        return "it is empty"
    if label == ABSTAIN:
        return f"{ABSTAIN!r} is the answer when the classifier is unsure"
    if not label.isprintable() and any(map(unsafe, label)):
        return "it contains a control character, or one that changes the direction of text"
    if len(label.encode()) > MAX_LABEL_BYTES:
        return f"it is longer than {MAX_LABEL_BYTES} bytes"
    return ""


NARROWEST = 20
"""Minimum width of a folded cell, in characters."""


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lay out rows under headings, with the first and last columns left-aligned and the others right-aligned.

    If the table is wider than `width` characters, the remaining columns follow in further tables below, each starting with the first
    column. A cell that is too wide by itself is folded.
    """
    import textwrap  # here, since the device's start does not need it
    from itertools import zip_longest

    table = [tuple(map(printable, row)) for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    last = len(headings) - 1
    if width is not None:
        room = max(NARROWEST, width - widths[0] - 2)
        widths = [widths[0], *(min(size, room) for size in widths[1:])]
    blocks: list[list[int]] = [[0]]
    for column in range(1, len(headings)):
        taken = sum(widths[shown] + 2 for shown in blocks[-1])
        if width is not None and len(blocks[-1]) > 1 and taken + widths[column] > width:
            blocks.append([0])
        blocks[-1].append(column)

    def lines(row: Sequence[str], block: Sequence[int]) -> list[str]:
        cells = [row[i : i + 1] if len(row[i]) <= widths[i] else textwrap.wrap(row[i], widths[i]) for i in block]
        return [
            "  ".join(
                part.ljust(widths[column]) if column in (0, last) else part.rjust(widths[column])
                for column, part in zip(block, parts, strict=True)
            ).rstrip()
            for parts in zip_longest(*cells, fillvalue="")
        ]

    shown = (table[0], ["-" * size for size in widths], *table[1:])
    return "\n\n".join("\n".join(line for row in shown for line in lines(row, block)) for block in blocks)


SPLITS_CSV = "edgecnn-splits.csv"


SOURCES_CSV = "edgecnn-sources.csv"
