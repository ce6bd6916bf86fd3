"""Sentences that a reader must see before the numbers: what may make them mislead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manifests.audit import Audit
from manifests.errors import WeightsError
from stages.models.registry import entry
from stages.report.data import ReportData
from stages.report.tables import n_flagged

SIGNIFICANT: Final = 0.05
"""p below which fallback rates depend on the class."""
LEAST_GAP: Final = 0.01
"""Difference of fallback rates between classes below which even a sure one gives no class away."""
WIDE_GAP: Final = 0.2
"""Difference that is warned of without a test, if every class has `ENOUGH` images."""
ENOUGH: Final = 20


def warnings_of(data: ReportData) -> tuple[str, ...]:
    """Everything about these results that calls for caution, the gravest first."""
    return (
        *_untrained(data.cards),
        *_incomplete(data.incomplete),
        *_failed(data.ledger),
        *_class_dependent_fallback(data.ledger),
        *_flagged(data.scores),
        *_audited(data.audits),
        *_missing_seeds(data.scores),
    )


def model_note(card: Mapping[str, Any]) -> str:
    """What the registry says of a card's model; empty for one that it does not know."""
    try:
        return entry(str(card.get("name", ""))).note
    except WeightsError:
        return ""


def is_untrained(card: Mapping[str, Any]) -> bool:
    """Whether a card's model has random weights."""
    if card.get("untrained"):
        return True
    try:
        return entry(str(card.get("name", ""))).source == "random"
    except WeightsError:
        return False


def _untrained(cards: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"The model {card.get('name')} is untrained: its weights are random numbers, and every result that depends on "
        "it means nothing. It is there to test the pipeline."
        for card in cards
        if is_untrained(card)
    ]


def _incomplete(incomplete: Mapping[str, str]) -> list[str]:
    return [
        f"Mask policy {mask} is not complete; {lacking} are not committed. What is missing is not shown. Complete it "
        "with: pipeline run --stage all"
        for mask, lacking in incomplete.items()
    ]


def _failed(ledger: pd.DataFrame) -> list[str]:
    return [
        f"Mask policy {mask}: {int(rows['failed'].sum())} of {int(rows['n'].sum())} images failed. They take part in "
        "no number of its rows. Reasons are listed under Images that failed or fell back."
        for mask, rows in ledger.groupby("mask", sort=False)
        if rows["failed"].sum() > 0
    ]


def _class_dependent_fallback(ledger: pd.DataFrame) -> list[str]:
    labelled = ledger[(ledger["class"] != "") & (ledger["n"] > 0)]
    out = []
    for (mask, split), rows in labelled.groupby(["mask", "split"], sort=False):
        rate = rows["fallback"] / rows["n"]
        gap, p = float(rate.max() - rate.min()), _p_value(rows["fallback"].to_numpy(), rows["n"].to_numpy())
        if (p < SIGNIFICANT and gap >= LEAST_GAP) or (gap > WIDE_GAP and rows["n"].min() >= ENOUGH):
            shares = ", ".join(f"{r['class']} {r['fallback']}/{r['n']}" for r in rows.to_dict("records"))
            out.append(
                f"Mask policy {mask}, split {split}: how often the mask fell back to the whole image depends on the "
                f"class ({shares}; up to {100 * gap:.0f} points apart, p = {p:.2g}). A classifier can read the class "
                "off the mere presence of a mask, so scores of this policy may overstate what it sees in the image."
            )
    return out


def _p_value(fallback: NDArray[np.int64], n: NDArray[np.int64]) -> float:
    """That all classes fall back equally often: Fisher's exact test of two classes, the chi-squared test of more."""
    from scipy.stats import chi2_contingency, fisher_exact

    table = np.stack([fallback, n - fallback])
    if len(n) < 2 or not table.sum(axis=1).all():
        return 1.0
    return float((fisher_exact(table) if len(n) == 2 else chi2_contingency(table)).pvalue)


def _flagged(scores: pd.DataFrame) -> list[str]:
    most = n_flagged(scores)
    if not most:
        return []
    n_test = int(scores["n_test"].max())
    return [
        f"Up to {most} of {n_test} test images also occur in training, as the same file or picture or through the same "
        "patient. The second table leaves them out."
    ]


def _audited(audits: Sequence[tuple[str, Audit]]) -> list[str]:
    """What the audits say of the data, beside leaks."""
    out = []
    for drop, audit in audits:
        out += [
            f"{drop}: {confound.probed} alone tell the classes with a balanced accuracy of "
            f"{confound.balanced_accuracy:.0%} (chance {confound.chance:.0%}). Scores may come from where images were "
            "taken, not from what they show."
            for confound in audit.confounded
        ]
        if audit.label_conflicts:
            out.append(f"{drop}: {len(audit.label_conflicts)} images show pictures that carry two labels.")
        if audit.masks_as_images:
            out.append(f"{drop}: {len(audit.masks_as_images)} images look like masks.")
    return out


def _missing_seeds(scores: pd.DataFrame) -> list[str]:
    seeds = scores.assign(mask=scores["mask"].fillna("")).groupby(["mask", "method", "training"])["seed"].nunique()
    short = int((seeds < seeds.max()).sum())
    return [f"{short} of {len(seeds)} table cells lack seeds: the study is not complete."] if short else []
