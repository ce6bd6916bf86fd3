"""The study's question and its answer in sentences: does the mask help, by how much, and is it more than chance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import pandas as pd

from stages.report.comparison import LEVEL, REFERENCE
from stages.report.tables import amount, amounts

ASKED: Final = ("medfocus", "masked", "overlay", "crop", "blur", "roi", "binary")
"""Methods that see a mask, in the order in which the question is asked of them; the first that there is counts."""


def answer_of(summary: pd.DataFrame, compared: pd.DataFrame) -> list[str]:
    """Sentences for the top of a report; none where nothing that sees a mask stands beside the unmasked image.

    Parameters
    ----------
    summary : DataFrame
        What `tables.summarise` returns.
    compared : DataFrame
        What `comparison.compare` returns.
    """
    masked = compared[compared["mask"] != ""]
    method = next((name for name in ASKED if (masked["method"] == name).any()), None)
    if method is None:
        return []
    policies = list(dict.fromkeys(summary["mask"]))
    mask = next(policy for policy in policies if ((masked["method"] == method) & (masked["mask"] == policy)).any())
    rows = masked[(masked["method"] == method) & (masked["mask"] == mask)]
    found = {row["training"]: row for row in rows.to_dict("records")}
    shown = amounts(rows)
    ends = dict.fromkeys((shown[-1], shown[0]))
    return [_sentence(summary, found[training], method, mask) for training in ends] + [_verdict(found)]


def _sentence(summary: pd.DataFrame, row: Mapping[Hashable, Any], method: str, mask: str) -> str:
    training = str(row["training"])
    chosen = summary[summary["training"] == training]
    own = _accuracy(chosen[(chosen["mask"] == mask) & (chosen["method"] == method)])
    other = _accuracy(chosen[chosen["method"] == REFERENCE])
    points = 100 * row["difference"]
    direction = "more" if points > 0 else "fewer"
    p = f"p {row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "p < 0.001"
    return (
        f"With {_of(training)} {method} (mask {mask}) answers {own:.1f} % of {row['n']} test images right, the same "
        f"features of the unmasked image {other:.1f} %: {abs(points):.1f} points {direction} (95 % interval "
        f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}, corrected {p})."
    )


def _verdict(found: Mapping[str, Mapping[Hashable, Any]]) -> str:
    sure = [row for row in found.values() if row["p_holm"] < LEVEL]
    better = sorted((str(row["training"]) for row in sure if row["difference"] > 0), key=amount)
    worse = sorted((str(row["training"]) for row in sure if row["difference"] < 0), key=amount)
    if not sure:
        return "At no amount of training data is the difference significant once all comparisons are corrected for."
    parts = [f"better at {', '.join(better)}"] if better else []
    parts += [f"worse at {', '.join(worse)}"] if worse else []
    rest = "" if len(sure) == len(found) else "; elsewhere the difference is not significant"
    return f"After correction for all comparisons it is significantly {' and '.join(parts)}{rest}."


def _of(training: str) -> str:
    share, number = amount(training)
    if not share:
        return f"{number:g} training images a class"
    return "all training images" if number == 100 else f"{training} of the training images"


def _accuracy(rows: pd.DataFrame) -> float:
    """Of the one row of a summary, in percent."""
    return 100 * float(rows["accuracy_mean"].iloc[0])
