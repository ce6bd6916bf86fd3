"""Tables on stdout: literal text, wrapped between words where the terminal is narrow, never wrapped in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_CHARACTERS = 10_000
"""Width of a pipe or a log file, which have no edge to wrap at."""


def visible(text: str) -> str:
    """A text with its control characters written out, so that no name can move the cursor or colour a terminal."""
    return "".join(c if c.isprintable() or c == " " else repr(c)[1:-1] for c in text)


def print_table(header: Sequence[str], rows: Iterable[Sequence[Any]], console: Console | None = None) -> None:
    """Print a table; None is an empty cell.

    Parameters
    ----------
    header : Sequence[str]
        One name a column.
    rows : Iterable[Sequence[Any]]
        One value a column; shown as they are, brackets and colons too.
    console : Console, optional
        Where to print; stdout by default.
    """
    cells = [["" if value is None else visible(str(value)) for value in row] for row in rows]
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPE_CHARACTERS
    columns = list(zip(header, *cells, strict=True))
    words = [max(len(word) for text in column for word in (text.split() or [""])) for column in columns]
    # Words stay whole as long as all of them fit side by side.
    whole = sum(words) + 2 * len(words) <= console.width
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, word in zip(header, words, strict=True):
        table.add_column(Text(name), overflow="fold", min_width=word if whole else None)
    for row in cells:
        table.add_row(*(Text(text) for text in row))
    console.print(table)
