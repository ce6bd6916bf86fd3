"""IoU, means by group, how predicted IoU ranks, and the table of one set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

GOOD: Final = 0.7
"""True IoU of a mask that a high predicted IoU should tell from the others."""
PROMPTS: Final = ("click", "box")
ORDER: Final = (
    *("objects", "click", "box", "best_proposal", "proposals", "policy", "fallback", "oracle"),
    *("predicted", "spearman", "auroc", "untrained", "otsu", "ellipse", "whole"),
)
"""Beginnings of the measures' names, in the order of the table."""


def iou(masks: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Intersection over union of several masks with one, all as packed bits.

    Parameters
    ----------
    masks : ndarray of uint8, (m, S, S / 8)
    truth : ndarray of uint8, (S, S / 8)

    Returns
    -------
    ndarray of float64, (m,)
        0 where both are empty.
    """
    both, either = (np.bitwise_count(f(masks, truth)).sum(axis=(1, 2)) for f in (np.bitwise_and, np.bitwise_or))
    quotient: NDArray[np.float64] = both / np.maximum(either, 1)
    return quotient


class Measurements:
    """Values by measure, each with the group of its image."""

    def __init__(self) -> None:
        self._values: defaultdict[str, list[tuple[str, float]]] = defaultdict(list)

    def add(self, measure: str, group: str, values: Iterable[float]) -> None:
        """Keep values of one image."""
        self._values[measure] += [(group, float(value)) for value in values]

    def values(self, measure: str, group: str = "") -> NDArray[np.float64]:
        """Return all values of a measure, or those of one group, in the order of coming."""
        return np.array([value for g, value in self._values[measure] if group in ("", g)])

    def means(self, group: str = "") -> dict[str, float]:
        """Mean of every measure that has a value."""
        found = {measure: self.values(measure, group) for measure in list(self._values)}
        return {measure: float(values.mean()) for measure, values in found.items() if len(values)}

    def groups(self) -> list[str]:
        """Return all groups, sorted."""
        return sorted({group for values in self._values.values() for group, _ in values})


def ranking(kept: Measurements, group: str = "") -> dict[str, float | None]:
    """How well predicted IoU ranks the masks of click and box by their true IoU.

    Parameters
    ----------
    kept : Measurements
        With `click`, `box` and, in the same order, `predicted_click`, `predicted_box`.
    group : str
        Empty for all.

    Returns
    -------
    dict[str, float or None]
        Spearman's correlation, and the area under the ROC of telling masks of at least `GOOD` from the others; over
        both prompts and for each; None where it is not defined.
    """
    found: dict[str, float | None] = {}
    for ending, prompts in (("", PROMPTS), *((f"_{p}", (p,)) for p in PROMPTS)):
        true, predicted = (np.concatenate([kept.values(k + p, group) for p in prompts]) for k in ("", "predicted_"))
        varied = len(np.unique(true)) > 1 and len(np.unique(predicted)) > 1
        found[f"spearman{ending}"] = float(spearmanr(true, predicted).statistic) if varied else None
        both = len(np.unique(true >= GOOD)) == 2
        found[f"auroc{ending}"] = float(roc_auc_score(true >= GOOD, predicted)) if both else None
    return found


def summary(kept: Measurements) -> dict[str, Any]:
    """Return the numbers of one set, over all and by group; `grids` counts the images whose grid was measured."""

    def part(group: str) -> dict[str, Any]:
        counts = {"objects": len(kept.values("box", group)), "grids": len(kept.values("proposals", group))}
        return {**counts, **kept.means(group), **ranking(kept, group)}

    return {**part(""), "groups": {group: part(group) for group in kept.groups()}}


def print_table(title: str, numbers: dict[str, Any]) -> None:
    """Print the numbers of one set, a column for every group.

    Parameters
    ----------
    title : str
        Name of the set.
    numbers : dict[str, Any]
        Its `summary`.
    """
    columns = {"all": numbers, **numbers["groups"]}
    print(f"\n{title}\n{'':24}" + "".join(f"{name[:11]:>12}" for name in columns))
    for measure in sorted(numbers.keys() - {"groups"}, key=_order):
        cells = (column.get(measure) for column in columns.values())
        texts = ("" if c is None else f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells)
        print(f"{measure:24}" + "".join(f"{text:>12}" for text in texts))


def _order(measure: str) -> tuple[int, str]:
    return next((i for i, beginning in enumerate(ORDER) if measure.startswith(beginning)), 0), measure
