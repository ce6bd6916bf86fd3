"""What a report shows, gathered before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manifests.audit import Audit
from stages.report.embedding_map import MapPoints
from stages.report.outcomes import COUNT_COLUMNS

SCORE_COLUMNS: Final = (
    "mask",
    "method",
    "training",
    "seed",
    "n_train",
    "n_test",
    "correct",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "ece",
    "brier",
    "interval_low",
    "interval_high",
    "n_test_unflagged",
    "correct_unflagged",
)
ANSWER_COLUMNS: Final = (
    *("mask", "method", "training", "seed"),
    *("image", "image_id", "label", "group", "flagged", "correct", "predicted"),
)
"""Of one test image in one cell; `image` names its row, because copies of a file share an image_id; `label` is its
class, and `predicted` the index of the class that it was answered."""
PROBABILITY_COLUMNS: Final = ("mask", "method", "training", "seed", "image", "truth", "predicted")
"""Of one test image in one cell of its method's largest training subset; `truth` and `predicted` are class indices, and
`p_0`, `p_1`, ... follow, the probabilities of the classes."""
ATTENTION_COLUMNS: Final = ("mask", "method", "kind", "n", "hits", "energy", "area", "blank")
"""How the maps of one method lie to supplied masks: hits, energy and area are means over n images, in [0, 1], energy
over those whose map is not blank; blank counts maps that are zero everywhere. `mask` is empty for one without masks."""
MASK_COLUMNS: Final = ("mask", "split", "class", "status", "area", "score", "iou")
"""Of one image under one policy; area as a share of the image, and NaN where a number is not known."""
LEDGER_COLUMNS: Final = ("mask", "split", "class", "n", "ok", "fallback", "failed", "mean_area")
FAILURE_COLUMNS: Final = ("stage", "status", "reason", "n")


@dataclass(frozen=True, slots=True)
class Heat:
    """Where one method looked in an image."""

    method: str
    values: NDArray[np.float32]
    """(T, T) in [0, 1], T = `THUMBNAIL_PX`, over the whole canvas."""


@dataclass(frozen=True, slots=True)
class GalleryItem:
    """One image of the gallery, on its canvas."""

    image: NDArray[np.uint8] | None
    """(S, S, 3), RGB; None if the source file can no longer be read."""
    mask: NDArray[np.bool_]
    """(S, S)."""
    masked: NDArray[np.uint8]
    """(S, S, 3), RGB: what the masks stage made of the image and its mask."""
    label: str
    """True class."""
    predicted: str
    """Predicted class; empty if no prediction is known."""
    status: str
    """`ok` or `fallback`."""
    caption: str
    """Pseudonymous name, such as the image_id."""
    policy: str
    """Mask policy."""
    outcome: str = "first"
    """One of `stages.report.outcomes.OUTCOMES`."""
    without: str = ""
    """Class predicted without any mask; empty if that is not known."""
    proposals: NDArray[np.bool_] | None = None
    """Candidates of the segmenter, (k, T, T), T = `THUMBNAIL_PX`, the surest first; None where none was asked."""
    shown: str = "masked"
    """How `masked` was composed, one of `stages.images.COMPOSITING`."""
    kind: str = ""
    """What tells good masks of its policy from bad ones: `IoU` with supplied ones, else `score`; empty if nothing."""
    quality: float | None = None
    """By that, more is better; None if it is not known."""
    heats: tuple[Heat, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that the page, the tables and the figures show.

    Raises
    ------
    ValueError
        If a table lacks a column, or there is no score.
    """

    dataset: str
    drops: Sequence[Mapping[str, Any]]
    """`id`, `n_items` and `created` of every drop in order of arrival."""
    classes: Sequence[str]
    command: str
    """Command line that makes this report again, without any path of the machine."""
    fingerprint: str
    """Digest of what the report shows, hexadecimal."""
    created: str
    """UTC time, ISO 8601."""
    scores: pd.DataFrame
    """A row for each (mask, method, training, seed) with `SCORE_COLUMNS`; auroc may be missing."""
    answers: pd.DataFrame
    """A row for each test image of each cell with `ANSWER_COLUMNS`."""
    probabilities: pd.DataFrame
    """A row for each test image of each cell of a method's largest training subset with `PROBABILITY_COLUMNS`."""
    cards: Sequence[Mapping[str, Any]]
    """Identity cards of the models."""
    ledger: pd.DataFrame
    """Images by mask policy, split and class with `LEDGER_COLUMNS`; mean_area over images whose status is ok."""
    failures: pd.DataFrame
    """Failed and fallback images by stage, status and reason with `FAILURE_COLUMNS`."""
    gallery: Sequence[GalleryItem]
    masks: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(MASK_COLUMNS)))
    """A row for each image and policy with `MASK_COLUMNS`."""
    outcomes: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COUNT_COLUMNS)))
    """Test images by policy, class and who was right, with `stages.report.outcomes.COUNT_COLUMNS`."""
    asked: tuple[str, str] = ("", "")
    """The methods with and without mask whose answers the outcomes and the gallery tell."""
    attention: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(ATTENTION_COLUMNS)))
    """A row for each policy, method and kind of map with `ATTENTION_COLUMNS`."""
    unseen: Sequence[str] = ()
    """Sentences that say which maps are missing, and why."""
    points: MapPoints | None = None
    """Images of the map; None where there is none."""
    published: str = "none"
    """Table of the paper that is shown beside, see `published`."""
    incomplete: Mapping[str, str] = field(default_factory=dict)
    """What each unfinished mask policy lacks, such as `3 of 5 chunks of masks`."""
    unreadable: Mapping[str, int] = field(default_factory=dict)
    """Pictures of the gallery whose source file could not be read, by reason."""
    audits: Sequence[tuple[str, Audit]] = ()
    """Name and audit of every drop."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the results follow from, as JSON values: drops, withdrawals, and the identity of every stage."""

    def __post_init__(self) -> None:
        for name, frame, columns in (
            ("scores", self.scores, SCORE_COLUMNS),
            ("answers", self.answers, ANSWER_COLUMNS),
            ("probabilities", self.probabilities, PROBABILITY_COLUMNS),
            ("ledger", self.ledger, LEDGER_COLUMNS),
            ("failures", self.failures, FAILURE_COLUMNS),
            ("masks", self.masks, MASK_COLUMNS),
            ("outcomes", self.outcomes, COUNT_COLUMNS),
            ("attention", self.attention, ATTENTION_COLUMNS),
        ):
            missing = [column for column in columns if column not in frame.columns]
            if missing:
                raise ValueError(f"{name}: expected the columns {', '.join(columns)}; missing: {', '.join(missing)}")
        if self.scores.empty:
            raise ValueError("scores: expected at least one row, got none")
