"""inventory.csv: the rows of a drop as text that reads back exactly and is safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields

from manifests.errors import InventoryError
from manifests.types import ImageRow, Split

COLUMNS = tuple(field.name for field in fields(ImageRow))
OLD_COLUMNS = tuple(name for name in COLUMNS if name != "frame")
"""Of drops that came before files of many pictures were read."""
INTEGERS = frozenset({"row", "bytes", "width", "height", "frame"})
ESCAPED = ("=", "+", "-", "@", "\t", "\r", "'")
"""First characters that a spreadsheet takes for a formula, and the apostrophe that escapes them."""


def format_rows(rows: Iterable[ImageRow]) -> bytes:
    """Write rows as UTF-8 CSV; every text cell is quoted, and one that a spreadsheet would run is escaped."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in COLUMNS])
    return text.getvalue().encode("utf-8")


def format_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Write a table for others as UTF-8 CSV whose text cells no spreadsheet runs as a formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([escaped(value) if isinstance(value, str) else value for value in row])
    return text.getvalue().encode("utf-8")


def parse_rows(data: bytes) -> tuple[ImageRow, ...]:
    """Read what `format_rows` wrote.

    Raises
    ------
    InventoryError
        If it was not written by this version of the tool.
    """
    try:
        records = list(csv.reader(io.StringIO(data.decode("utf-8"), newline=""), strict=True))
        columns = tuple(records[0]) if records else ()
        if columns not in (COLUMNS, OLD_COLUMNS):
            raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
        return tuple(_row(columns, cells) for cells in records[1:])
    except (ValueError, csv.Error) as error:
        raise InventoryError(f"inventory.csv cannot be read: {error}.", "Restore the drop from your backup.") from error


def escaped(text: str) -> str:
    """A text as a CSV cell that no spreadsheet runs as a formula."""
    return f"'{text}" if text.startswith(ESCAPED) else str(text)


def _cell(value: str | int) -> str | int:
    return escaped(value) if isinstance(value, str) else value


def _row(columns: Sequence[str], cells: Sequence[str]) -> ImageRow:
    if len(cells) != len(columns):
        raise ValueError(f"a line has {len(cells)} cells, expected {len(columns)}")
    value: dict[str, str | int | Split] = {}
    for name, cell in zip(columns, cells, strict=True):
        value[name] = int(cell) if name in INTEGERS else cell.removeprefix("'")
    value["split"] = Split(str(value["split"]))
    return ImageRow(**value)  # type: ignore[arg-type]
