"""Which rows a cell trains on, chooses its hyperparameters on, and is scored on."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from manifests.errors import InventoryError, RefusedError, UnitError
from manifests.types import Cell, Split, Status
from stages.base import StageData

Indices = NDArray[np.int64]
LARGEST_DENOMINATOR = 1_000_000
"""0.1 + 0.2 is read as 3/10 and 1 / 3 as 1/3, so that float error never adds an image."""


def usable(data: StageData) -> NDArray[np.bool_]:
    """Rows that have features (status OK or FALLBACK) and a label, (N,) bool."""
    labelled = np.array([bool(row.label) for row in data.rows], dtype=bool)
    return labelled & np.isin(data.status, (Status.OK, Status.FALLBACK))


def train_indices(data: StageData, cell: Cell) -> Indices:
    """Training subset of a cell: stratified by class, nested in the fraction or shots, stable when a drop is added.

    A seed orders all that follows: other seeds give other subsets. Rows that failed are left out after the choice, so
    that a failure never changes which other rows are chosen.

    Parameters
    ----------
    data : StageData
        Rows of all drops.
    cell : Cell
        Fraction or shots, and the seed.

    Returns
    -------
    ndarray of int64, (n_train,)
        Positions in `data.rows`, ascending; the same rows whatever the order of files inside a drop.

    Raises
    ------
    ValueError
        If the fraction is out of range.
    UnitError
        If no row is left to train on.
    """
    chosen = _shots(data, cell.shots, cell.seed) if cell.shots else _fraction(data, cell.fraction, cell.seed)
    kept = np.array(sorted(chosen), dtype=np.int64)
    kept = kept[usable(data)[kept]]
    if not len(kept):
        raise UnitError(
            f"None of {len(data.rows)} images is left to train on: {len(chosen)} chosen, of which all failed.",
            "Ingest with a train split and labels; see why images failed: pipeline status",
        )
    return kept


def _fraction(data: StageData, fraction: float, seed: int) -> list[int]:
    """The first groups of each class.

    For each drop, and each class in it, the training groups are ordered by sha256 of ``seed:group_id`` and the first
    ceil(fraction x groups), at least one, are taken with all their rows of that class. A group belongs to the drop
    that brought it first; its later images follow it. The order is one a drop, not one over all drops, because else
    the groups of a new drop would push chosen groups out of the first ceil(fraction x groups); see
    ``docs/decisions/0002-fractions-per-drop.md``.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a value in (0, 1], got {fraction}")
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for position, (row, drop) in enumerate(zip(data.rows, data.drops, strict=True)):
        if row.split == Split.TRAIN and row.label:
            unit = (row.label, row.group_id)
            if unit not in members:
                strata[drop, row.label].append(row.group_id)
            members[unit].append(position)
    chosen: list[int] = []
    for (_, label), groups in strata.items():
        for group in sorted(groups, key=lambda g: _rank(seed, g))[: _share(fraction, len(groups))]:
            chosen += members[label, group]
    return chosen


def _shots(data: StageData, shots: int, seed: int) -> list[int]:
    """So many images of each class, of as many groups as possible.

    Every group gives one image before any gives a second; groups, and the images of a group, are ordered by sha256.
    Images of a later drop come after all of the earlier ones, so that they are taken only where those are too few.
    """
    turns: Counter[tuple[str, str]] = Counter()
    ordered: dict[str, list[tuple[tuple[int, int, str], int]]] = defaultdict(list)
    drops = {drop: number for number, drop in enumerate(dict.fromkeys(data.drops))}
    of_train = [i for i, row in enumerate(data.rows) if row.split == Split.TRAIN and row.label]
    for i in sorted(of_train, key=lambda i: (drops[data.drops[i]], _rank(seed, data.rows[i].image_id), i)):
        label, group = data.rows[i].label, data.rows[i].group_id
        ordered[label].append(((drops[data.drops[i]], turns[label, group], _rank(seed, group)), i))
        turns[label, group] += 1
    return [i for of_class in ordered.values() for _, i in sorted(of_class)[:shots]]


def test_indices(data: StageData) -> Indices:
    """Test rows that can be scored: split is test, with a label and features.

    Returns
    -------
    ndarray of int64, (n_test,)
        Positions in `data.rows`, ascending.

    Raises
    ------
    RefusedError
        If there is none.
    """
    mask = usable(data) & np.array([row.split == Split.TEST for row in data.rows], dtype=bool)
    if not mask.any():
        found = Counter(row.split.value for row in data.rows)
        counts = ", ".join(f"{found[s]} {s}" for s in sorted(found)) or "no image at all"
        raise RefusedError(
            f"The data set has no usable test image to score on (splits: {counts}).",
            "Ingest it with a test folder, or with a split column in --labels CSV, as a new data set.",
        )
    return np.flatnonzero(mask).astype(np.int64)


def check_fit_rows(data: StageData, indices: Indices, *, allow_val: bool = False) -> None:
    """Refuse to fit on a row that is not of the train split: the guard that every fit calls.

    Parameters
    ----------
    data : StageData
        Rows of all drops.
    indices : ndarray of int64, (n,)
        Rows that the fit will see.
    allow_val : bool
        Validation rows may be seen, too.

    Raises
    ------
    ValueError
        If any row is of another split, or no row is given; names the first.
    """
    allowed = {Split.TRAIN, Split.VAL} if allow_val else {Split.TRAIN}
    if not len(indices):
        raise ValueError("fit rows: expected at least one, got none")
    for position in indices.tolist():
        row = data.rows[position]
        if row.split not in allowed:
            raise ValueError(f"fit rows: expected split {sorted(allowed)}, got {row.split} for image {row.image_id}")


def class_indices(data: StageData, indices: Indices, classes: Sequence[str]) -> Indices:
    """Class index of each of the rows.

    Parameters
    ----------
    data : StageData
        Rows of all drops.
    indices : ndarray of int64, (n,)
        Labelled rows.
    classes : Sequence[str]
        Class names in the order of the class index.

    Returns
    -------
    ndarray of int64, (n,)
        In [0, len(classes)).

    Raises
    ------
    InventoryError
        If a label is not among the classes.
    """
    order = {name: index for index, name in enumerate(classes)}
    labels = [data.rows[position].label for position in indices.tolist()]
    if unknown := sorted(set(labels) - order.keys()):
        raise InventoryError(
            f"Labels {unknown} are not among the classes {list(classes)} of the data set.",
            "Correct them in the labels CSV and ingest again.",
        )
    return np.array([order[label] for label in labels], dtype=np.int64)


def inner_folds(
    labels: Indices, groups: Sequence[str], folds: int, seed: int
) -> tuple[tuple[Indices, Indices], ...] | None:
    """Split a training subset into stratified folds that keep groups together.

    Each group counts for its most frequent class; a class's groups are ordered by sha256 and dealt out in turn. As no
    class has fewer groups than there are folds, the fit part of every fold has every class.

    Parameters
    ----------
    labels : ndarray of int64, (n,)
        Class index of each row of the subset.
    groups : Sequence[str]
        group_id of each row, n.
    folds : int
        Wanted number; the number of groups of the smallest class if that is less.
    seed : int
        Other seeds deal in another order.

    Returns
    -------
    tuple of (fit, held) pairs of ndarray of int64, or None
        Positions in the subset, ascending; None if a class has fewer than two groups.
    """
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for label, group in zip(labels.tolist(), groups, strict=True):
        votes[group][label] += 1
    by_class: dict[int, list[str]] = {label: [] for label in sorted(set(labels.tolist()))}
    for group, count in votes.items():
        by_class[min(count, key=lambda label: (-count[label], label))].append(group)
    number = min([folds, *(len(members) for members in by_class.values())])
    if number < 2:
        return None
    dealt = [g for members in by_class.values() for g in sorted(members, key=lambda g: _rank(seed, f"fold:{g}"))]
    fold_of = {group: turn % number for turn, group in enumerate(dealt)}
    fold = np.array([fold_of[group] for group in groups], dtype=np.int64)
    return tuple((np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(number))


def _rank(seed: int, group_id: str) -> str:
    """Position of a group in the order that belongs to a seed."""
    return hashlib.sha256(f"{seed}:{group_id}".encode()).hexdigest()


def _share(fraction: float, number: int) -> int:
    """ceil(fraction x number), at least one."""
    return max(1, math.ceil(Fraction(fraction).limit_denominator(LARGEST_DENOMINATOR) * number))
