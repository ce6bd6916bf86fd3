"""Score tables: mean and spread over seeds, pooled counts, and the same without flagged test images."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import pandas as pd

from stages.methods import TRAINED, variant_of, views_of
from stages.scores import wilson

METHODS: Final[Mapping[str, str]] = {
    "medfocus": "logistic regression on M = F(T, I), the fusion of class texts and masked image",
    "masked": "logistic regression on the vector of the masked image, no fusion",
    "original": "logistic regression on the vector of the unmasked image, no fusion",
    "overlay": "the same on the image with the mask drawn over it",
    "binary": "the same on the mask alone, in white",
    "crop": "the same on the mask's box, with a margin",
    "blur": "the same on the image with everything outside the mask blurred",
    "roi": "the same on the unmasked image's grid cells, averaged inside the mask",
    "ring": "the same on its grid cells, averaged outside the mask",
    "attn-bias": "the same on the unmasked image, its last attention blocks looking less outside the mask",
    "zero-shot": "the class whose text is most similar to the image, no training",
    "tip-adapter": "zero-shot plus similarity to the training images, which are kept as they are",
    "tip-adapter-f": "the same with trained keys",
    "coop": "zero-shot with learned words before the class name",
    "cocoop": "the same with words that depend on the image",
    "clip-lora": "zero-shot with trained low-rank updates of the attention in both towers",
    "inverted": "control: logistic regression on the vector of all but the mask's part of the image",
    "random-box": "control: logistic regression on the vector of a box of the mask's area somewhere in the image",
    "shuffled": "control: logistic regression on the vector of the image under another patient's mask",
    "roi-random-box": "control: as roi, averaged inside such a box",
    "roi-shuffled": "control: as roi, averaged inside another patient's mask",
    "shape": "control: logistic regression on the mask's area, place and form, without any pixel",
    "constant": "always the most frequent class of the training subset",
}
"""Known methods in the order in which they are shown, and what each is."""
MEASURES: Final[Mapping[str, str]] = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "auroc": "AUROC",
    "ece": "Calibration error",
    "brier": "Brier score",
}
CELL: Final = ("mask", "method", "training")
UNDEFINED: Final = "–"


def place(method: str) -> tuple[float, str]:
    """Sort key of a method: as in `METHODS`; forms of MedFocusCLIP, joined views and backbones where they belong."""
    known = list(METHODS)
    if method in METHODS:
        return known.index(method), method
    if variant_of(method):
        return 0.5, method
    return known.index("zero-shot" if " " not in method else "inverted") - 0.5, method


def amount(training: str) -> tuple[bool, float]:
    """Sort key of the amount of training data: shots before shares, `4-shot` before `5 %`, then by number."""
    number, share, _ = training.partition(" %")
    return bool(share), float(number.removesuffix("-shot"))


def amounts(frame: pd.DataFrame) -> list[str]:
    """Amounts of training data that occur, ascending."""
    return sorted(frame["training"].unique(), key=amount)


def by_kind(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows with shots, then rows with shares of the training data; only what there is."""
    share = frame["training"].map(lambda training: amount(training)[0]).astype(bool)
    return [part for part in (frame[~share], frame[share]) if len(part)]


def description(method: str) -> str:
    """What a method is, in words."""
    if method in METHODS:
        return METHODS[method]
    backbone, _, form = method.rpartition(" ")
    whose = f" of the frozen {backbone}" if backbone else ""
    if variant := variant_of(form):
        read = f", of {' and '.join(views_of(form))}" if views_of(form) else ""
        return f"logistic regression on M of the variant {variant}{read}{whose}"
    if form.startswith("clip-lora@"):
        return f"{METHODS['clip-lora']}, on the {' and '.join(views_of(form))} image"
    if form.partition("@")[0] in TRAINED:
        with_attention = ", with a segmenter's features as channel attention" if form.startswith("slca") else ""
        return f"{backbone} trained end to end on the {' and '.join(views_of(form))} image{with_attention}"
    if backbone:
        return f"logistic regression on the frozen {backbone}'s vector of the {form} image"
    return f"logistic regression on the joined vectors of {', '.join(method.split('+'))}"


class Entry(NamedTuple):
    """One cell of a table: a text, and a smaller one below it."""

    text: str
    note: str = ""
    mark: str = ""
    """`best`, `near` (not significantly worse), `changed` (by more than chance explains), or nothing."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as the page shows it."""

    header: tuple[Entry, ...]
    rows: tuple[tuple[Entry, ...], ...]
    names: int = 1
    """Leading columns that name the row; the others are numbers."""


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Reduce seeds to mean and standard deviation.

    Parameters
    ----------
    scores : DataFrame
        A row for each (mask, method, training, seed) with `SCORE_COLUMNS`.

    Returns
    -------
    DataFrame
        A row for each (mask, method, training), methods in the order of `METHODS`, masks as they first come: `seeds`;
        `n_train_low` and `n_train_high`; `correct` and `n_test`, pooled over seeds (the same test images once a seed);
        `correct_unflagged` and `n_test_unflagged`; `<measure>_mean` and `<measure>_sd` (sample standard deviation,
        missing for one seed) of every measure and of `accuracy_unflagged`. Shares lie in [0, 1].
    """
    frame = scores.assign(mask=scores["mask"].fillna(""))
    measures = [*MEASURES, "accuracy_unflagged"]
    n_clean = frame["n_test_unflagged"].where(frame["n_test_unflagged"] > 0)
    frame["accuracy_unflagged"] = frame["correct_unflagged"] / n_clean
    frame[measures] = frame[measures].apply(pd.to_numeric, errors="coerce").astype("float64")
    counts = ("correct", "n_test", "correct_unflagged", "n_test_unflagged")
    named = {
        "seeds": ("seed", "nunique"),
        "n_train_low": ("n_train", "min"),
        "n_train_high": ("n_train", "max"),
        **{count: (count, "sum") for count in counts},
        **{f"{m}_mean": (m, "mean") for m in measures},
        **{f"{m}_sd": (m, "std") for m in measures},
    }
    summary = frame.groupby(list(CELL), as_index=False).agg(**named)
    return _ordered(summary, list(dict.fromkeys(frame["mask"])))


def summary_table(scores: pd.DataFrame, *, unflagged: bool = False) -> pd.DataFrame:
    """The headline as text for a terminal: a row for each method and mask, a column for each amount of
    training data.

    Parameters
    ----------
    scores : DataFrame
        A row for each (mask, method, training, seed) with `SCORE_COLUMNS`.
    unflagged : bool
        Leave out test images that also occur in training.

    Returns
    -------
    DataFrame
        Columns `method`, `mask`, and one an amount with accuracy in percent, mean ± sd over seeds, and pooled k/n.
    """
    table = headline(summarise(scores), unflagged=unflagged)
    names = [entry.text for entry in table.header]
    parts = [[(entry.text, *entry.note.splitlines()[:1]) for entry in row] for row in table.rows]
    return pd.DataFrame([[" ".join(part) for part in row] for row in parts], columns=names)


def headline(
    summary: pd.DataFrame, *, unflagged: bool = False, marks: Mapping[tuple[str, str, str], str] | None = None
) -> Table:
    """Accuracy by method, mask and training data, from `summarise`; optionally over unflagged test images alone.

    `marks` says which results are the best of their column, by mask, method and training.
    """
    suffix = "_unflagged" if unflagged else ""
    columns = amounts(summary)
    most = int(summary["seeds"].max())
    header = [Entry("method"), Entry("mask"), *(_training_header(summary, column) for column in columns)]
    rows = []
    for mask, method in _pairs(summary):
        of_pair = {row["training"]: row for row in _records(summary, mask, method)}
        cells = [_accuracy(of_pair[c], suffix, most) if c in of_pair else Entry(UNDEFINED) for c in columns]
        found = [(marks or {}).get((mask, method, column), "") for column in columns]
        marked = (cell._replace(mark=mark) for cell, mark in zip(cells, found, strict=True))
        rows.append((Entry(method), Entry(mask or UNDEFINED), *marked))
    return Table(tuple(header), tuple(rows), names=2)


def other_measures(summary: pd.DataFrame) -> Table:
    """Every measure on the largest training subset of each method and mask."""
    header = (Entry("method"), Entry("mask"), Entry("training data"), *(Entry(text) for text in MEASURES.values()))
    rows = []
    for mask, method in _pairs(summary):
        largest = max(_records(summary, mask, method), key=lambda row: amount(row["training"]))
        cells = [Entry(_mean_sd(largest[f"{m}_mean"], largest[f"{m}_sd"], percent=m == "accuracy")) for m in MEASURES]
        rows.append((Entry(method), Entry(mask or UNDEFINED), Entry(largest["training"]), *cells))
    return Table(header, tuple(rows), names=3)


def each_seed(scores: pd.DataFrame) -> Table:
    """One row a fit, with k/n and the 95 % Wilson interval of the accuracy."""
    names = ("method", "mask", "training data", "seed", "training images", "k/n", "accuracy", "95 % interval")
    header = tuple(Entry(text) for text in (*names, *list(MEASURES.values())[1:]))
    frame = scores.assign(mask=scores["mask"].fillna(""))
    frame = _ordered(frame, list(dict.fromkeys(frame["mask"])))
    rows = []
    for row in frame.to_dict("records"):
        rest = [Entry(_number(row[m])) for m in list(MEASURES)[1:]]
        interval = f"{row['interval_low'] * 100:.1f} to {row['interval_high'] * 100:.1f} %"
        naming = (row["method"], row["mask"] or UNDEFINED, row["training"], str(row["seed"]))
        counts = (str(row["n_train"]), f"{row['correct']}/{row['n_test']}", f"{row['accuracy'] * 100:.1f} %", interval)
        rows.append((*(Entry(text) for text in (*naming, *counts)), *rest))
    return Table(header, tuple(rows), names=4)


def plain(frame: pd.DataFrame, columns: Sequence[str], names: int) -> Table:
    """Columns of a frame as they are; the first `names` of them name the row."""
    rows = (tuple(Entry(str(value)) for value in row) for row in frame[list(columns)].itertuples(index=False))
    return Table(tuple(Entry(column) for column in columns), tuple(rows), names)


def n_flagged(scores: pd.DataFrame) -> int:
    """Test images that also occur in training, as themselves or through their group; the most that any fit saw."""
    return int((scores["n_test"] - scores["n_test_unflagged"]).max())


def _ordered(frame: pd.DataFrame, masks: Sequence[str]) -> pd.DataFrame:
    """Sort rows: methods as in `METHODS`, masks as given, then by training data, and by seed where there are seeds."""
    keys: dict[str, Any] = {"method": place, "mask": list(masks).index, "training": amount}
    ranks = frame.assign(**{column: frame[column].map(key) for column, key in keys.items()})
    return frame.loc[ranks.sort_values([*keys, *(["seed"] if "seed" in frame else [])]).index].reset_index(drop=True)


def _pairs(summary: pd.DataFrame) -> Iterable[tuple[str, str]]:
    return dict.fromkeys(zip(summary["mask"], summary["method"], strict=True))


def _records(summary: pd.DataFrame, mask: str, method: str) -> list[dict[Hashable, Any]]:
    return summary[(summary["mask"] == mask) & (summary["method"] == method)].to_dict("records")


def _training_header(summary: pd.DataFrame, training: str) -> Entry:
    rows = summary[summary["training"] == training]
    low, high = int(rows["n_train_low"].min()), int(rows["n_train_high"].max())
    span = str(low) if low == high else f"{low} to {high}"
    return Entry(training, f"{span} training images")


def _accuracy(row: Mapping[Hashable, Any], suffix: str, most_seeds: int) -> Entry:
    if pd.isna(row[f"accuracy{suffix}_mean"]):
        return Entry(UNDEFINED, "no test image")
    seeds = int(row["seeds"])
    missing = "" if seeds == most_seeds else f", {seeds} of {most_seeds} seeds"
    mean, pooled = row[f"accuracy{suffix}_mean"], int(row[f"n_test{suffix}"])
    text = _mean_sd(mean, row[f"accuracy{suffix}_sd"], percent=True)
    n = round(pooled / seeds)
    low, high = wilson(min(mean, 1.0) * n, n)
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    return Entry(text, f"({int(row[f'correct{suffix}'])}/{pooled}{missing})\n{interval}")


def _mean_sd(mean: float, sd: float, *, percent: bool) -> str:
    if math.isnan(mean):
        return UNDEFINED
    scale, digits = (100, 1) if percent else (1, 3)
    spread = "" if math.isnan(sd) else f" ± {sd * scale:.{digits}f}"
    return f"{mean * scale:.{digits}f}{spread}"


def _number(value: float | None) -> str:
    return UNDEFINED if value is None or pd.isna(value) else f"{value:.3f}"
