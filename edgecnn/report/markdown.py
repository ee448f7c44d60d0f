"""Text in a Markdown document that shows names an enemy may have chosen: classes, files, folders."""

import re
from collections.abc import Sequence

from edgecnn.labels import printable
from edgecnn.report.table import markdown_table

MARKUP = re.compile(r"[&<>|\\`*\[\]~$]|(?<!\w)_|_(?!\w)")
"""What begins HTML, an entity, a cell, code, emphasis, a link or a formula; an underscore within a word begins nothing."""


def plain(text: str) -> str:
    """Return text of one line that every Markdown renderer shows as it is: markup as entities, which none of them reads as markup."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", printable(text))


def plain_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out rows under headings as a Markdown table, each cell shown as it is. Of a table that prints a name, this is the function."""
    return markdown_table([plain(heading) for heading in headings], [[plain(cell) for cell in row] for row in rows])
