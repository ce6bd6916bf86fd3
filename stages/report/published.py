"""Accuracies of MedFocusCLIP's authors (arXiv 2501.03839), and whether their test set can give them.

The five fractions are those of their README (github.com/AADYA-ARORA/MedFocusClip), which has no row of CLIP, CoOp or
CoCoOp; of CLIP the abstract has one value a set.
"""

from __future__ import annotations

from importlib.resources import files
from io import StringIO
from typing import Final

import pandas as pd

from stages.report.tables import UNDEFINED, Entry, Table

NOTE: Final = "no count out\nof {n} gives it"


def published(table: str) -> pd.DataFrame:
    """Rows of one of their tables: method, fraction, percent, n_test, source.

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
    """The paper's numbers, a row for each method; those that the stated test set cannot give are marked."""
    frame = published(table)
    fractions = sorted(frame["fraction"].unique())
    rows = []
    for (method, source), found in frame.groupby(["method", "source"], sort=False):
        entries = {row["fraction"]: _entry(row["percent"], int(row["n_test"])) for row in found.to_dict("records")}
        values = [entries.get(one, Entry(UNDEFINED)) for one in fractions]
        rows.append((Entry(str(method)), Entry(str(source)), *values))
    header = (Entry("method"), Entry("where"), *(Entry(f"{100 * one:.4g} %") for one in fractions))
    return Table(header, tuple(rows), 2)


def _entry(percent: str, n: int) -> Entry:
    count = count_of(percent, n)
    return Entry(percent, NOTE.format(n=n) if count is None else f"{count}/{n}")
