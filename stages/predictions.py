"""What a fitted cell says of the test rows, and its scores: the files that every method of a study leaves."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.audit import flagged
from manifests.inventory_file import escaped
from manifests.types import Split
from stages.base import StageData
from stages.scores import score
from stages.splits import Indices, class_indices


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows that a cell is scored on."""

    data: StageData
    """Rows of all drops."""
    rows: Indices
    """Positions of the test rows, (n,)."""
    classes: tuple[str, ...]
    """Class names in the order of the class index, K."""

    @property
    def truth(self) -> Indices:
        """Class index, (n,)."""
        return class_indices(self.data, self.rows, self.classes)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """Rows whose bytes, picture or group also occur in train or val, (n,)."""
        leaks = flagged(self.data.rows, self.data.twins)
        return np.array([self.data.rows[i].image_id in leaks for i in self.rows.tolist()], dtype=bool)

    @property
    def n_failed(self) -> int:
        """Labelled test rows that cannot be scored, because an earlier stage could not use them."""
        return sum(row.split == Split.TEST and bool(row.label) for row in self.data.rows) - len(self.rows)


def write_results(
    out: Path,
    method: str,
    test: ScoredRows,
    probabilities: NDArray[np.float64],
    n_train: int,
    choice: Mapping[str, float | None],
) -> dict[str, float]:
    """Write predictions.csv and scores.json.

    Parameters
    ----------
    out : Path
        Folder of the cell's artifacts.
    method : str
        Name of the method.
    test : ScoredRows
        Rows that are scored.
    probabilities : ndarray of float64, (n, K)
        Rows sum to 1.
    n_train : int
        Rows of the training subset.
    choice : Mapping[str, float or None]
        Hyperparameters that were chosen and how the fit ended; None is null in the file.

    Returns
    -------
    dict[str, float]
        What the commit record shows: every number that is defined.
    """
    truth, leaks = test.truth, test.flagged
    scores = score(probabilities, truth, leaks, n_train)
    _write_predictions(out / "predictions.csv", test, truth, leaks, probabilities)
    content = scores.to_json() | {"method": method, "n_test_failed": test.n_failed, **choice}
    (out / "scores.json").write_text(json.dumps(content, indent=1, allow_nan=False), "utf-8")
    return scores.numbers() | {name: float(value) for name, value in choice.items() if value is not None}


def _write_predictions(
    path: Path, test: ScoredRows, truth: Indices, leaks: NDArray[np.bool_], probabilities: NDArray[np.float64]
) -> None:
    """Write one line a row: image_id, drop, row, label, predicted, flagged (0 or 1), and p_<class> for each.

    As in inventory.csv, a class name that a spreadsheet would run as a formula gets an apostrophe before it.
    """
    shown = [escaped(name) for name in test.classes]
    labels, predicted = truth.tolist(), probabilities.argmax(axis=1).tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image_id", "drop", "row", "label", "predicted", "flagged", *(f"p_{c}" for c in test.classes)))
        for i, position in enumerate(test.rows.tolist()):
            row = test.data.rows[position]
            names = (row.image_id, test.data.drops[position], row.row, shown[labels[i]], shown[predicted[i]])
            writer.writerow((*names, int(leaks[i]), *probabilities[i].tolist()))
