"""How far MedFocusCLIP is from the study's goal, to beat every baseline at every amount of training data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pandas as pd

from stages.methods import FOCUS, TRAINED, variant_of
from stages.report.comparison import LEVEL, Draws, compare

BASELINES: Final = (
    "original",
    "masked",
    "constant",
    "zero-shot",
    "tip-adapter",
    "tip-adapter-f",
    "coop",
    "cocoop",
    *TRAINED,
)
"""Forms that MedFocusCLIP is measured against, of every backbone; neither its own forms nor controls."""


def forms(methods: Iterable[str]) -> list[str]:
    """Forms of MedFocusCLIP among methods, on the study's own model, the plain one first."""
    return sorted({method for method in methods if variant_of(method)}, key=lambda method: (method != FOCUS, method))


def against_baselines(answers: pd.DataFrame, mask: str, draws: Draws | None = None, form: str = FOCUS) -> pd.DataFrame:
    """Compare a form of MedFocusCLIP under one mask with every baseline, at every amount of training data.

    Parameters
    ----------
    answers : DataFrame
        A row for each test image of each cell with `ANSWER_COLUMNS`.
    mask : str
        Policy of MedFocusCLIP, and of baselines that see a mask.
    draws : Draws, optional
        To share with other comparisons.
    form : str
        One of `forms`.

    Returns
    -------
    DataFrame
        As `comparison.compare` returns it, a row for each baseline; but `accuracy` is MedFocusCLIP's, `reference` the
        baseline's, and the difference is positive where MedFocusCLIP is better. Holm's correction is over these rows.
    """
    own = answers["mask"].isin(("", mask))
    named = answers["method"].map(lambda method: method == form or is_baseline(method)).astype(bool)
    found = compare(answers[own & named], form, draws, mask=mask)
    turned = {"accuracy": found["reference"], "reference": found["accuracy"], "difference": 0 - found["difference"]}
    return found.assign(**turned, low=0 - found["high"], high=0 - found["low"])


def is_baseline(method: str) -> bool:
    """Whether a method is a baseline: `lite0 finetune@masked` is, `lite0 medfocus` and `roi` are not."""
    return method.rpartition(" ")[2].partition("@")[0] in BASELINES


def distance(compared: pd.DataFrame, mask: str, form: str = FOCUS) -> str:
    """One sentence: against how many baselines a form is ahead; empty if there is nothing to compare.

    Parameters
    ----------
    compared : DataFrame
        What `against_baselines` returns.
    mask : str
        Policy of MedFocusCLIP.
    form : str
        The form that was compared.
    """
    if not len(compared):
        return ""
    better, sure = compared["difference"] > 0, compared["p_holm"] < LEVEL
    n_baselines, n_amounts = compared["method"].nunique(), compared["training"].nunique()
    return (
        f"Against {n_baselines} {'baseline' if n_baselines == 1 else 'baselines'} at {n_amounts} "
        f"{'amount' if n_amounts == 1 else 'amounts'} of training data, {form} (mask {mask}) is ahead in "
        f"{int(better.sum())} of {len(compared)} comparisons, significantly in {int((better & sure).sum())}, and "
        f"significantly behind in {int((~better & sure).sum())}."
    )
