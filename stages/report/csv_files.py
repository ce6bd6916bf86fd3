"""Tables beside the page as CSV whose text cells no spreadsheet runs as a formula."""

from __future__ import annotations

import pandas as pd

from manifests.inventory_file import escaped


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV without its index; text that a spreadsheet would run is escaped, as in inventories."""
    safe = table.copy()
    for column in table.select_dtypes(exclude=["number", "bool"]).columns:
        safe[column] = table[column].map(lambda value: escaped(value) if isinstance(value, str) else value)
    text: str = safe.to_csv(index=False, lineterminator="\n")
    return text
