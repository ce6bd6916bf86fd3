"""What changed between the answers of two reports of one data set, fit by fit, image by image, and if by chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.report.comparison import LEVEL, Draws, paired, with_holm
from stages.report.kept import Kept
from stages.report.tables import CELL, amount, place

BEYOND, WITHIN = "beyond chance", "not beyond chance"
CHANGE_COLUMNS: Final = (
    *CELL,
    *("seeds", "correct_a", "n_a", "accuracy_a", "sd_a", "correct_b", "n_b", "accuracy_b"),
    *("n_common", "accuracy_a_common", "accuracy_b_common", "difference", "low", "high", "p", "p_holm", "verdict"),
    *("by_other_images", "right_to_wrong", "wrong_to_right", "answers", "other_answers", "relabelled"),
)
"""Of one (mask, method, training) that both reports have. `correct` and `n` pool the seeds; accuracies are means over
them, `sd_a` is their sample standard deviation in A (missing for one seed). `by_other_images` is what is left of
`accuracy_b` - `accuracy_a` without `difference`. `right_to_wrong` and `wrong_to_right` count images by the majority of
seeds; `answers` counts every one of every seed on the test images of both, `other_answers` those of them that name
another class in B, and `relabelled` the images whose label is another one there. Shares, not percent."""
ALONE_COLUMNS: Final = (*CELL, "where")

Answers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flips:
    """The images whose answer is another one now, of the first method on its largest training subset."""

    mask: str
    method: str
    training: str
    by_class: pd.DataFrame
    """`class`, `n` images of both, `right_to_wrong`, `wrong_to_right`."""
    right_to_wrong: tuple[str, ...]
    """image_ids by class, then by id."""
    wrong_to_right: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that two reports' answers say of each other."""

    table: pd.DataFrame
    """A row for each (mask, method, training) of both with `CHANGE_COLUMNS`: methods and masks as in a report."""
    alone: pd.DataFrame
    """What cannot be compared, with `ALONE_COLUMNS`; `where` says why."""
    flips: Flips | None
    """None where nothing can be compared."""
    unflagged: pd.DataFrame
    """As `table`, without test images of both that either report flags; empty if none is flagged, or none is left."""

    @classmethod
    def of(cls, a: Kept, b: Kept) -> Changes:
        """Compare report B with report A.

        The statistics are those of `comparison.paired`, over the seeds and on the test images that both have, with p
        corrected by Holm's method over the whole table.
        """
        table = _table(a, b)
        both = a.images.index.intersection(b.images.index)
        flagged = set(both[a.images["flagged"][both] | b.images["flagged"][both]])
        unflagged = _table(_without(a, flagged), _without(b, flagged)) if flagged else table.iloc[:0]
        return cls(table, _alone(a, b, table), _flips(a, b, table), unflagged)

    @property
    def sure(self) -> pd.DataFrame:
        """Rows of the table that changed by more than chance explains."""
        return self.table[self.table["verdict"] == BEYOND]

    @property
    def first(self) -> dict[str, Any] | None:
        """The row that the answer is about: the first method on its largest training subset."""
        return first_of(self.table)


def first_of(table: pd.DataFrame) -> dict[str, Any] | None:
    """Row of the first method of a table of changes on its largest training subset; None if the table is empty."""
    if table.empty:
        return None
    same = table[(table["method"] == table["method"].iloc[0]) & (table["mask"] == table["mask"].iloc[0])]
    return {str(k): v for k, v in max(same.to_dict("records"), key=lambda row: amount(row["training"])).items()}


@dataclass(frozen=True, slots=True)
class _Pair:
    """One (mask, method, training) in both reports, over the seeds of both."""

    own_a: Mapping[int, Answers]
    own_b: Mapping[int, Answers]
    """On each report's own test images, by seed."""
    both_a: Mapping[int, Answers]
    both_b: Mapping[int, Answers]
    """On the test images of both, (n,)."""
    images: pd.DataFrame
    """Those images, as B knows them."""
    other_answers: int
    """Answers on those images, over all seeds, that name another class in B."""
    relabelled: int
    """How many of those images have another label in B."""

    @classmethod
    def of(cls, a: Kept, b: Kept, key: tuple[str, str, str]) -> _Pair:
        theirs, ours = a.of_fits(*key), b.of_fits(*key)
        seeds = [seed for seed in theirs if seed in ours]
        common = a.images.index.intersection(b.images.index, sort=False)
        at_a, at_b = a.images.index.get_indexer(common), b.images.index.get_indexer(common)
        asked = np.logical_and.reduce(
            [np.ones(len(common), bool), *((theirs[s][at_a] >= 0) & (ours[s][at_b] >= 0) for s in seeds)]
        )
        at_a, at_b = at_a[asked], at_b[asked]
        right_a, right_b = {s: a.right(theirs[s]) for s in seeds}, {s: b.right(ours[s]) for s in seeds}
        place_in_b = pd.Index(b.classes).get_indexer(pd.Index(a.classes))  # -1 for a class of A alone
        labels_a, labels_b = a.images["label"].to_numpy()[at_a], b.images["label"].to_numpy()[at_b]
        return cls(
            {s: _asked(right_a[s]) for s in seeds},
            {s: _asked(right_b[s]) for s in seeds},
            {s: right_a[s][at_a].astype(float) for s in seeds},
            {s: right_b[s][at_b].astype(float) for s in seeds},
            b.images.loc[common[asked]],
            sum(int((place_in_b[theirs[s][at_a]] != ours[s][at_b]).sum()) for s in seeds),
            int((labels_a != labels_b).sum()),
        )

    @property
    def is_empty(self) -> bool:
        """Whether no seed, or no test image, is in both."""
        return not self.own_a or self.images.empty

    def flipped(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which images of both went from right to wrong, and from wrong to right, by the majority of seeds, (n,)."""
        before, now = (np.mean(list(found.values()), axis=0) > 0.5 for found in (self.both_a, self.both_b))
        return before & ~now, ~before & now

    def row(self, draws: Draws) -> dict[str, Any]:
        """Columns of the table but for the names and what depends on all rows."""
        groups = pd.factorize(self.images["group"])[0].astype(np.int64)
        found = paired(self.both_b, self.both_a, draws.of(groups))
        if found is None:
            raise ValueError("a pair of fits: expected a seed in both, got none")
        accuracies_a = [float(right.mean()) for right in self.own_a.values()]
        accuracy_a, accuracy_b = float(np.mean(accuracies_a)), _mean(self.own_b)
        lost, won = self.flipped()
        return {
            **found,
            **_counts("a", self.own_a),
            **_counts("b", self.own_b),
            "sd_a": float(np.std(accuracies_a, ddof=1)) if len(accuracies_a) > 1 else np.nan,
            "n_common": found["n"],
            "accuracy_a_common": _mean(self.both_a),
            "accuracy_b_common": _mean(self.both_b),
            "by_other_images": accuracy_b - accuracy_a - found["difference"],
            "right_to_wrong": int(lost.sum()),
            "wrong_to_right": int(won.sum()),
            "answers": found["n"] * found["seeds"],
            "other_answers": self.other_answers,
            "relabelled": self.relabelled,
        }


def _table(a: Kept, b: Kept) -> pd.DataFrame:
    draws, rows = Draws(), []
    for key in _keys(a, b):
        pair = _Pair.of(a, b, key)
        if not pair.is_empty:
            rows.append({**dict(zip(CELL, key, strict=True)), **pair.row(draws)})
    frame = with_holm(pd.DataFrame(rows, columns=[c for c in CHANGE_COLUMNS if c not in ("p_holm", "verdict")]))
    frame["verdict"] = np.where(frame["p_holm"].astype(float) < LEVEL, BEYOND, WITHIN)
    # What float arithmetic leaves of nothing is no change.
    frame["by_other_images"] = frame["by_other_images"].astype(float).round(12) + 0.0
    return frame[[*CHANGE_COLUMNS]]


def _alone(a: Kept, b: Kept, table: pd.DataFrame) -> pd.DataFrame:
    compared = set(table[[*CELL]].itertuples(index=False, name=None))
    rows = []
    for key in _keys(a, b):
        seeds_a, seeds_b = set(a.of_fits(*key)), set(b.of_fits(*key))
        if not seeds_a or not seeds_b:
            rows.append((*key, "A alone" if seeds_a else "B alone"))
        elif seeds_a != seeds_b:
            rows += [(*key, f"{_seeds(seeds_a - seeds_b)} in A alone")] if seeds_a - seeds_b else []
            rows += [(*key, f"{_seeds(seeds_b - seeds_a)} in B alone")] if seeds_b - seeds_a else []
        elif key not in compared:
            rows.append((*key, "in both, but no test image is in both"))
    return pd.DataFrame(rows, columns=[*ALONE_COLUMNS])


def _seeds(seeds: set[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, sorted(seeds)))}"


def _flips(a: Kept, b: Kept, table: pd.DataFrame) -> Flips | None:
    row = first_of(table)
    if row is None:
        return None
    pair = _Pair.of(a, b, (row["mask"], row["method"], row["training"]))
    lost, won = pair.flipped()
    place_of = {name: position for position, name in enumerate(b.classes)}
    images = pair.images.assign(lost=lost, won=won, place=pair.images["label"].map(place_of)).sort_index()
    images = images.sort_values("place", kind="stable")
    counted = images.groupby("label", sort=False).agg(n=("lost", "size"), lost=("lost", "sum"), won=("won", "sum"))
    names = {"label": "class", "lost": "right_to_wrong", "won": "wrong_to_right"}
    by_class = counted.reset_index().rename(columns=names)
    ids = [tuple(images["image_id"][images[which]]) for which in ("lost", "won")]
    return Flips(row["mask"], row["method"], row["training"], by_class, *ids)


def _without(kept: Kept, images: set[str]) -> Kept:
    """The same answers but for some images."""
    return kept.of_images(~kept.images.index.isin(list(images)))


def _keys(a: Kept, b: Kept) -> Iterator[tuple[str, str, str]]:
    """Every (mask, method, training) of either: methods in the order of a report, masks as they first come."""
    keys = [(str(m), str(n), str(t)) for kept in (a, b) for m, n, t in kept.fits[[*CELL]].itertuples(index=False)]
    masks = list(dict.fromkeys(mask for mask, _, _ in keys))
    yield from sorted(dict.fromkeys(keys), key=lambda key: (place(key[1]), masks.index(key[0]), amount(key[2])))


def _asked(right: NDArray[np.int8]) -> Answers:
    return right[right >= 0].astype(np.float64)


def _mean(answers: Mapping[int, Answers]) -> float:
    return float(np.mean([right.mean() for right in answers.values()]))


def _counts(report: str, answers: Mapping[int, Answers]) -> dict[str, Any]:
    counted = {"correct": int(sum(right.sum() for right in answers.values())), "n": sum(map(len, answers.values()))}
    return {f"{name}_{report}": count for name, count in counted.items()} | {f"accuracy_{report}": _mean(answers)}
