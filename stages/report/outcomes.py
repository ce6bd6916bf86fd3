"""Test images by what the mask did to their answer, and which of them a gallery shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pandas as pd

OUTCOMES: Final[Mapping[str, str]] = {
    "gained": "Right with the mask, wrong without",
    "lost": "Wrong with the mask, right without",
    "fallback": "Without a usable mask",
    "worst": "Worst masks",
    "first": "First of each class, whatever came of them",
}
"""Groups of the gallery in the order in which they are shown; an image is in the first that it belongs to."""
TEST_COLUMNS: Final = ("image", "label", "status", "with_mask", "without", "quality")
"""Of a test image under one policy: whether the method that sees the mask was right, whether the one that does not was
(boolean, missing where that is not known), and how good the mask is, more is better (NaN where that is not known)."""
COUNT_COLUMNS: Final = ("mask", "class", "n", "both", "gained", "lost", "neither")


def groups(test: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of each of `OUTCOMES`, a row perhaps in several; the worst masks first, all else in the order given.

    Parameters
    ----------
    test : DataFrame
        Test images that did not fail, with `TEST_COLUMNS`.
    """
    seen, blind = test["with_mask"], test["without"]
    judged = test[test["quality"].notna() & (test["status"] == "ok")]
    return {
        "gained": test[(seen & ~blind).fillna(value=False)],
        "lost": test[(~seen & blind).fillna(value=False)],
        "fallback": test[test["status"] == "fallback"],
        "worst": judged.sort_values("quality", kind="stable"),
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


def counts(mask: str, test: pd.DataFrame) -> pd.DataFrame:
    """Test images of each class by who was right, with `COUNT_COLUMNS`; those whose answers are not known left out."""
    known = test[test["with_mask"].notna() & test["without"].notna()]
    rows = []
    for label, found in known.groupby("label", sort=False):
        seen, blind = found["with_mask"].astype(bool), found["without"].astype(bool)
        shares = (seen & blind, seen & ~blind, ~seen & blind, ~seen & ~blind)
        rows.append((mask, label, len(found), *(int(share.sum()) for share in shares)))
    return pd.DataFrame(rows, columns=list(COUNT_COLUMNS))
