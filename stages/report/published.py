"""Accuracies that the MedFocusCLIP paper prints (arXiv 2501.03839), and whether its test set can give them."""

from __future__ import annotations

from importlib.resources import files
from io import StringIO
from typing import Final

import pandas as pd

from stages.report.tables import Entry, Table

NOTE: Final = "no count out of {n} gives it"


def published(table: str) -> pd.DataFrame:
    """Rows of one of the paper's tables, as far as they are known here: method, fraction, percent, n_test, source.

    `percent` is text, because its digits say how it was rounded.
    """
    text = (files("stages.report") / "published.csv").read_text("utf-8")
    frame = pd.read_csv(StringIO(text), dtype={"percent": str})
    return frame[frame["table"] == table].drop(columns="table").reset_index(drop=True)


def count_of(percent: str, n: int) -> int | None:
    """Number of correct answers out of n that is printed so, rounded or cut off; None if there is none.

    Parameters
    ----------
    percent : str
        As printed, such as `71.15`.
    n : int
        Size of the test set.
    """
    digits = len(percent.partition(".")[2])
    unit = 10.0**-digits
    nearest = round(float(percent) / 100 * n)
    for count in (nearest, nearest - 1, nearest + 1):
        share = 100 * count / n
        rounded, cut = abs(share - float(percent)) <= unit / 2 + 1e-9, 0 <= share - float(percent) < unit - 1e-9
        if 0 <= count <= n and (rounded or cut):
            return count
    return None


def published_table(table: str) -> Table:
    """The paper's numbers as a table; those that the stated test set cannot give are marked."""
    rows = []
    for row in published(table).to_dict("records"):
        n, count = int(row["n_test"]), count_of(row["percent"], int(row["n_test"]))
        counts = NOTE.format(n=n) if count is None else f"{count}/{n}"
        naming = (Entry(row["method"]), Entry(f"{row['fraction'] * 100:.4g} %"))
        rows.append((*naming, Entry(f"{row['percent']} %"), Entry(counts), Entry(row["source"])))
    return Table(tuple(Entry(text) for text in ("method", "training data", "accuracy", "k/n", "where")), tuple(rows), 2)
