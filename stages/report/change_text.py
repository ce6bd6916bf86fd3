"""What changed between two reports, as sentences and tables."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Final

import pandas as pd

from stages.report.changes import BEYOND, Changes, first_of
from stages.report.tables import UNDEFINED, Entry, Table, amount, plain

SHOWN: Final = 3
"""Differences of what went in that the answer names."""


def answer_of(changes: Changes, origins: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences for the top: how much changed by more than chance explains, and what went in that differs.

    Parameters
    ----------
    changes : Changes
        What the answers of both reports say.
    origins : Mapping[str, Sequence[str]]
        What went in that differs, by kind.
    """
    row = changes.first
    if row is None:
        return ["The two reports share no accuracy that could be compared.", _inputs(origins)]
    return [*_headline(changes, row), *_own_images(changes, row), *_without_flagged(changes), _inputs(origins)]


def is_same(changes: Changes) -> bool:
    """Whether every answer of every fit names the same class for every test image of both."""
    return bool((changes.table["other_answers"] == 0).all())


def cautions_of(changes: Changes, origins: Mapping[str, Sequence[str]]) -> list[str]:
    """What a reader must see before the numbers."""
    if any(origins.values()) or is_same(changes):
        return []
    return [
        "Nothing that went in differs, and yet answers do. This should not happen: the same inputs, settings, weights "
        "and software give the same answers. Look for altered files with: pipeline verify"
    ]


def change_table(changes: Changes) -> Table:
    """One row an accuracy of both, those that changed by more than chance explains first."""
    order = (changes.table["verdict"] != BEYOND).sort_values(kind="stable").index
    rows = changes.table.loc[order].to_dict("records")
    others = has_other_images(changes)
    names = ("accuracy on both", "other images") if others else ()
    header = ("method", "mask", "training", "verdict", "difference", "accuracy A ± sd", "accuracy B", *names)
    return Table(tuple(Entry(name) for name in header), tuple(_row(row, others=others) for row in rows), names=4)


def has_other_images(changes: Changes) -> bool:
    """Whether any accuracy was measured on other test images in A than in B."""
    per_seed = changes.table[["n_a", "n_b"]].div(changes.table["seeds"], axis=0)
    return bool(per_seed.ne(changes.table["n_common"], axis=0).any(axis=None))


def flip_table(changes: Changes) -> Table | None:
    """Answers of the first method that are other ones now, by class; None where nothing could be compared."""
    if changes.flips is None:
        return None
    names = {"class": "class", "n": "images of both", "right_to_wrong": "right, now wrong"}
    names["wrong_to_right"] = "wrong, now right"
    return plain(changes.flips.by_class.rename(columns=names), list(names.values()), names=1)


def alone_table(changes: Changes) -> Table | None:
    """What could not be compared; None where everything could."""
    if changes.alone.empty:
        return None
    frame = changes.alone.assign(mask=changes.alone["mask"].replace("", UNDEFINED))
    return plain(frame.rename(columns={"training": "training data"}), ["method", "mask", "training data", "where"], 4)


def named(row: Mapping[Any, Any]) -> str:
    """An accuracy in words: `medfocus (mask union) at 100 %`."""
    mask = f" (mask {row['mask']})" if row["mask"] else ""
    share, number = amount(row["training"])
    return f"{row['method']}{mask} at {row['training'] if share else f'{number:g} images a class'}"


def _headline(changes: Changes, row: Mapping[str, Any]) -> list[str]:
    relabelled = int(changes.table["relabelled"].max())
    if is_same(changes) and not relabelled:
        return [f"No answer changed: {_answers(changes)}."]
    labels = f"; {_counted(relabelled, 'test image')} of both got another label" if relabelled else ""
    return [_counts(changes, row), f"Answer by answer: {_answers(changes)}{labels}."]


def _answers(changes: Changes) -> str:
    """How many answers name another class, over all accuracies."""
    total, others = (int(changes.table[name].sum()) for name in ("answers", "other_answers"))
    told = f"{others or 'none'} {'name' if others > 1 else 'names'} another class"
    return (
        f"of {_counted(total, 'answer')} behind {_counted(len(changes.table), 'accuracy')}, compared fit by fit and "
        f"image by image on the test images of both, {told}"
    )


def _counts(changes: Changes, row: Mapping[str, Any]) -> str:
    total, sure = len(changes.table), changes.sure
    on_both = f"on the {row['n_common']} test images of both"
    up, down = int((sure["difference"] > 0).sum()), int((sure["difference"] < 0).sum())
    how = f" ({up} up, {down} down)" if up and down else f" ({'up' if up else 'down'})" if up or down else ""
    return (
        f"{len(sure) or 'None'} of {_counted(total, 'accuracy')} changed by more than chance explains{how}; "
        f"{named(row)}: {_difference(row, on_both)}."
    )


def _difference(row: Mapping[str, Any], on_both: str) -> str:
    return (
        f"{_percent(row['accuracy_a_common'])} to {_percent(row['accuracy_b_common'])} % {on_both} "
        f"({_points(row['difference'])} points, 95 % interval {_points(row['low'])} to {_points(row['high'])}, "
        f"corrected {_p(row['p_holm'])})"
    )


def _own_images(changes: Changes, row: Mapping[str, Any]) -> list[str]:
    if not has_other_images(changes):
        return []
    n_a, n_b = row["n_a"] // row["seeds"], row["n_b"] // row["seeds"]
    return [
        f"Each on its own test images, it is {_percent(row['accuracy_a'])} % of {n_a} in A and "
        f"{_percent(row['accuracy_b'])} % of {n_b} in B: of these {_points(row['accuracy_b'] - row['accuracy_a'])} "
        f"points, {_points(row['by_other_images'])} come from other test images and {_points(row['difference'])} from "
        "other answers."
    ]


def _without_flagged(changes: Changes) -> list[str]:
    row = first_of(changes.unflagged)
    if row is None:
        return []
    left = f"on the {row['n_common']} others"
    return [f"Without test images that either report flags, because training has them too: {_difference(row, left)}."]


def _inputs(origins: Mapping[str, Sequence[str]]) -> str:
    told = [line for lines in origins.values() for line in lines]
    if not told:
        return "Nothing that went in differs: neither images, settings, weights nor software."
    more = f"; and {len(told) - SHOWN} more, see below" if len(told) > SHOWN else ""
    return f"What went in differs: {'; '.join(told[:SHOWN])}{more}."


def _row(row: Mapping[Hashable, Any], *, others: bool) -> tuple[Entry, ...]:
    mark = "changed" if row["verdict"] == BEYOND else ""
    interval = f"{_points(row['low'])} to {_points(row['high'])}\n{_p(row['p_holm'])}"
    spread = "" if pd.isna(row["sd_a"]) else f" ± {_percent(row['sd_a'])}"
    on_both = f"{_percent(row['accuracy_a_common'])} to {_percent(row['accuracy_b_common'])}"
    between = (Entry(on_both, f"{row['n_common']} images"), Entry(_points(row["by_other_images"])))
    return (
        Entry(row["method"]),
        Entry(row["mask"] or UNDEFINED),
        Entry(row["training"], _counted(row["seeds"], "seed")),
        Entry(row["verdict"], f"{row['other_answers']} of {_counted(row['answers'], 'answer')} differ"),
        Entry(_points(row["difference"]), interval, mark),
        Entry(f"{_percent(row['accuracy_a'])}{spread}", f"({row['correct_a']}/{row['n_a']})"),
        Entry(_percent(row["accuracy_b"]), f"({row['correct_b']}/{row['n_b']})"),
        *(between if others else ()),
    )


def _counted(n: int, what: str) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{n} {what if n == 1 else plural}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(share: float) -> str:
    """Percentage points with their sign; none before a zero."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _p(value: float) -> str:
    return f"p {value:.3f}" if value >= 0.001 else "p < 0.001"
