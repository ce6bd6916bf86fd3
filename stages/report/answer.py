"""The study's question and its answer in sentences: does the mask help, by how much, and is it more than chance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from stages.methods import ASKED, FOCUS
from stages.report.comparison import LEVEL, with_holm
from stages.report.tables import amount, amounts

CANNOT: Final = (
    "This study cannot say: it needs the method original, and beside it one that sees a mask, such as masked."
)


def answer_of(compared: pd.DataFrame, unflagged: pd.DataFrame, masks: Sequence[str]) -> list[str]:
    """Sentences for the top of a report.

    Asked is the first of `ASKED` that stands beside `original`, under the first mask; and MedFocusCLIP, which also
    fuses class texts. The p values of each are corrected for its own amounts of training data alone.

    Parameters
    ----------
    compared : DataFrame
        What `comparison.compare` returns.
    unflagged : DataFrame
        The same without flagged test images; empty where none is flagged, or none is left.
    masks : Sequence[str]
        Mask policies, the main one first.
    """
    asked = _asked(compared, masks)
    if asked is None:
        return [CANNOT]
    rows = _rows(compared, *asked)
    shown = amounts(rows)
    found = {str(row["training"]): row for row in rows.to_dict("records")}
    sentences = [_sentence(found[training], *asked) for training in dict.fromkeys((shown[-1], shown[0]))]
    sentences.append(_verdict(found))
    clean = _rows(unflagged, *asked) if len(unflagged) else unflagged
    if len(clean):
        largest = {str(row["training"]): row for row in clean.to_dict("records")}[amounts(clean)[-1]]
        sentences.append(f"Without flagged test images: {_numbers(largest, asked[1])}.")
    focus = _rows(compared, asked[0], FOCUS)
    if asked[1] != FOCUS and len(focus):
        largest = {str(row["training"]): row for row in focus.to_dict("records")}[amounts(focus)[-1]]
        sentences.append(_sentence(largest, asked[0], FOCUS))
    return sentences


def _asked(compared: pd.DataFrame, masks: Sequence[str]) -> tuple[str, str] | None:
    """Mask and method that the question is asked of."""
    pairs = set(zip(compared["mask"], compared["method"], strict=True))
    return next(((mask, method) for method in ASKED for mask in masks if mask and (mask, method) in pairs), None)


def _rows(compared: pd.DataFrame, mask: str, method: str) -> pd.DataFrame:
    return with_holm(compared[(compared["mask"] == mask) & (compared["method"] == method)])


def _sentence(row: Mapping[Hashable, Any], mask: str, method: str) -> str:
    whose = ", which also fuses class texts," if method == FOCUS else ""
    return f"With {_of(str(row['training']))} {method} (mask {mask}){whose} {_numbers(row, method)}."


def _numbers(row: Mapping[Hashable, Any], method: str) -> str:
    points = 100 * row["difference"]
    told = f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'}" if abs(points) >= 0.05 else "no difference"
    p = f"corrected p {row['p_holm']:.3f}" if row["p_holm"] >= 0.001 else "corrected p < 0.001"
    other = "a probe on the unmasked image" if method == FOCUS else "the same probe on the unmasked image"
    interval = f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"
    return (
        f"answers {100 * row['accuracy']:.1f} % of {row['n']} test images right, {other} "
        f"{100 * row['reference']:.1f} %: {told} (95 % interval {interval}, {p})"
    )


def _verdict(found: Mapping[str, Mapping[Hashable, Any]]) -> str:
    sure = [row for row in found.values() if row["p_holm"] < LEVEL]
    better = sorted((str(row["training"]) for row in sure if row["difference"] > 0), key=amount)
    worse = sorted((str(row["training"]) for row in sure if row["difference"] < 0), key=amount)
    asked = f"{len(found)} amounts of training data" if len(found) > 1 else "the one amount of training data"
    if not sure:
        return f"At none of {asked} is the difference significant." if len(found) > 1 else "It is not significant."
    parts = [f"better at {', '.join(better)}"] if better else []
    parts += [f"worse at {', '.join(worse)}"] if worse else []
    rest = "" if len(sure) == len(found) else "; elsewhere the difference is not significant"
    return f"Corrected for {asked}, it is significantly {' and '.join(parts)}{rest}."


def _of(training: str) -> str:
    share, number = amount(training)
    if not share:
        return f"{number:g} training images a class"
    return "all training images" if number == 100 else f"{training} of the training images"
