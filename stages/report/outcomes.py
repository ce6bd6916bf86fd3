"""Test images by what the mask did to their answer, and which of them a gallery shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pandas as pd

OUTCOMES: Final[Mapping[str, str]] = {
    "gained": "Right with the mask, wrong without",
    "lost": "Wrong with the mask, right without",
    "fallback": "Without a usable mask",
    "worst": "Worst masks not shown above",
    "first": "First of each class, whatever came of them",
}
"""Groups of the gallery in the order in which they are shown; an image is in the first that it belongs to."""
TEST_COLUMNS: Final = ("image", "label", "status", "with_mask", "without", "kind", "quality")
"""Of a test image under one policy: whether the method that sees the mask was right, whether the one that does not was
(boolean, missing where that is not known), and how good the mask is, more is better (NaN where that is not known), by
`kind`: IOU or SCORE, one for all."""
IOU: Final = "IoU"
SCORE: Final = "score"
BAD_IOU: Final = 0.5
"""No mask that overlaps more with a supplied one is among the worst."""
MOST: Final = 96
"""Pictures of a page in all, about 60 kB each."""
COUNT_COLUMNS: Final = ("mask", "class", "n", "both", "gained", "lost", "neither")


def groups(test: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each of `OUTCOMES`, a row perhaps in several; the worst masks first, all else in the order given.

    Worst are masks of an IoU of `BAD_IOU` at most; where there is only a score, those below its median.

    Parameters
    ----------
    test : DataFrame
        Test images that did not fail, with `TEST_COLUMNS`.
    """
    seen, blind = test["with_mask"], test["without"]
    judged = test[test["quality"].notna() & (test["status"] == "ok")]
    bad = (
        (judged["quality"] <= BAD_IOU)
        if (judged["kind"] == IOU).all()
        else judged["quality"] < judged["quality"].median()
    )
    return {
        "gained": test[(seen & ~blind).fillna(value=False)],
        "lost": test[(~seen & blind).fillna(value=False)],
        "fallback": test[test["status"] == "fallback"],
        "worst": judged[bad].sort_values("quality", kind="stable"),
        "first": test,
    }


def pick(test: pd.DataFrame, most: int) -> pd.DataFrame:
    """What a gallery shows: of each outcome up to `most` images a class, none twice.

    Parameters
    ----------
    test : DataFrame
        Test images that did not fail, with `TEST_COLUMNS`; a row an image, the index unique.
    most : int
        Images of one class and outcome.

    Returns
    -------
    DataFrame
        The chosen rows with `outcome`, in the order of `OUTCOMES`.
    """
    chosen: list[pd.DataFrame] = []
    taken: set[object] = set()
    for outcome, rows in groups(test).items():
        found = rows[~rows.index.isin(taken)].groupby("label", sort=False).head(most)
        taken.update(found.index)
        chosen.append(found.assign(outcome=outcome))
    return pd.concat(chosen)


def within(picked: Mapping[str, pd.DataFrame], most: int) -> dict[str, pd.DataFrame]:
    """Of what is picked under each policy, `most` rows in all: those of the first policy, then outcome by outcome.

    Parameters
    ----------
    picked : Mapping[str, DataFrame]
        What `pick` returns, by policy.
    most : int
        Rows that are kept.
    """
    order = list(OUTCOMES)
    places = [
        (number > 0, order.index(outcome), number, at)
        for number, rows in enumerate(picked.values())
        for at, outcome in enumerate(rows["outcome"])
    ]
    kept = {(number, at) for _, _, number, at in sorted(places)[:most]}
    return {
        policy: rows.iloc[[at for at in range(len(rows)) if (number, at) in kept]]
        for number, (policy, rows) in enumerate(picked.items())
    }


def counts(mask: str, test: pd.DataFrame) -> pd.DataFrame:
    """Test images of each class by who was right, with `COUNT_COLUMNS`; those whose answers are not known left out."""
    known = test[test["with_mask"].notna() & test["without"].notna()]
    rows = []
    for label, found in known.groupby("label", sort=False):
        seen, blind = found["with_mask"].astype(bool), found["without"].astype(bool)
        shares = (seen & blind, seen & ~blind, ~seen & blind, ~seen & ~blind)
        rows.append((mask, label, len(found), *(int(share.sum()) for share in shares)))
    return pd.DataFrame(rows, columns=list(COUNT_COLUMNS))
