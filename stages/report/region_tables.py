"""Tables about masks: the ledger, who was right with and without them, and where classifiers looked."""

from __future__ import annotations

import pandas as pd

from stages.report.tables import UNDEFINED, Entry, Table


def mask_table(ledger: pd.DataFrame) -> Table:
    """Images by mask policy, split and class: with a mask, fallen back to the whole image, failed."""
    names = ("mask", "split", "class", "images", "ok", "fallback", "failed", "fallback rate", "mean area of ok masks")
    rows = []
    for row in ledger.to_dict("records"):
        naming = (row["mask"], str(row["split"]), row["class"] or "(no label)")
        counts = (str(row[column]) for column in ("n", "ok", "fallback", "failed"))
        area = UNDEFINED if pd.isna(row["mean_area"]) else f"{row['mean_area'] * 100:.1f} %"
        rate = f"{100 * row['fallback'] / row['n']:.1f} %" if row["n"] else UNDEFINED
        rows.append(tuple(Entry(text) for text in (*naming, *counts, rate, area)))
    return Table(tuple(Entry(text) for text in names), tuple(rows), names=3)


def outcome_table(outcomes: pd.DataFrame) -> Table:
    """Test images by policy and class: who was right, of the method that sees the mask and the one that does not."""
    names = ("mask", "class", "test images", "both right", "only with mask", "only without", "neither")
    rows = [tuple(Entry(str(value)) for value in row) for row in outcomes.itertuples(index=False)]
    return Table(tuple(Entry(text) for text in names), tuple(rows), names=2)


def attention_table(attention: pd.DataFrame) -> Table:
    """How often maps point into supplied masks, beside what chance gives."""
    names = ("mask", "method", "map", "images", "maximum inside", "sum inside", "mask's area", "blank maps")
    rows = []
    for row in attention.to_dict("records"):
        shares = (
            UNDEFINED if pd.isna(row[name]) else f"{100 * row[name]:.1f} %" for name in ("hits", "energy", "area")
        )
        texts = (row["mask"] or UNDEFINED, row["method"], row["kind"], str(row["n"]), *shares, str(row["blank"]))
        rows.append(tuple(Entry(text) for text in texts))
    return Table(tuple(Entry(text) for text in names), tuple(rows), names=3)
