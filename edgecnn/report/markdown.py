"""Text for a Markdown document that shows names an attacker may have chosen: classes, files, folders."""

import re
from collections.abc import Sequence

from edgecnn.labels import printable
from edgecnn.report.table import markdown_table

MARKUP = re.compile(r"[&<>|\\`*\[\]~$]|(?<!\w)_|_(?!\w)")
"""Characters that start HTML, an entity, a cell, code, emphasis, a link or a formula. An underscore within a word starts nothing."""


def plain(text: str) -> str:
    """Return one line of text that every Markdown renderer shows literally: markup characters become entities."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under headings as a Markdown table that shows each cell literally. Use this for any table that prints names."""
    return markdown_table([plain(heading) for heading in headings], [[plain(cell) for cell in row] for row in rows])
