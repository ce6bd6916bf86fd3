"""Whether classes can be told from what is no finding: the margins of the images, or how bright they are.

A classifier that scores well on such a set may have learned the scanner, the hospital or a burned-in marker (DeGrave et
al. 2021, doi:10.1038/s42256-021-00338-7). The probe is cheap and coarse: it warns, it proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from manifests.looks import THUMBNAIL_PX, Looks
from manifests.types import ImageRow

MARGIN_PX = 2
"""Width of the margin on each side of a thumbnail: 6 % of the image's side."""
BINS = 16
"""Bins of the histogram of grey levels."""
FOLDS = 5
MOST_IMAGES = 3000
"""Images that the probe is fitted on at most."""
CONFOUNDED = 0.5
"""Share of the way from chance to certainty, in balanced accuracy, from which on a set is reported."""

Probed = Literal["margins", "grey levels"]


class Confound(BaseModel):
    """How well a linear probe tells classes from what is no finding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probed: Probed
    balanced_accuracy: float
    """Mean recall over classes, over folds that keep groups together."""
    chance: float
    """What guessing gives: one in the number of classes."""
    n_images: int

    @property
    def is_confounded(self) -> bool:
        """Whether it is so good that scores on this set must be doubted."""
        return self.balanced_accuracy - self.chance >= CONFOUNDED * (1 - self.chance)


def find_confounds(rows: Sequence[ImageRow], looks: Looks, groups: Sequence[str]) -> tuple[Confound, ...]:
    """Fit a linear probe on margins and on grey levels.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        Rows of one drop.
    looks : Looks
        One for every row.
    groups : Sequence[str]
        What must stay in one fold, for every row: patients, and copies of one picture.

    Returns
    -------
    tuple[Confound, ...]
        None if fewer than two classes have at least as many groups as there are folds.
    """
    from sklearn.metrics import balanced_accuracy_score

    kept = _usable(rows, looks, groups)
    labels = np.array([rows[i].label for i in kept])
    if len(set(labels.tolist())) < 2:
        return ()
    of_group = np.array([groups[i] for i in kept])
    pictures = looks.thumbnails[kept].astype(np.float64) / 255
    found = []
    probed: tuple[tuple[Probed, NDArray[np.float64]], ...] = (
        ("margins", _margins(pictures)),
        ("grey levels", _levels(pictures)),
    )
    for name, features in probed:
        predicted = _predict(features, labels, of_group)
        accuracy = float(balanced_accuracy_score(labels, predicted))
        chance = 1 / len(set(labels.tolist()))
        found.append(
            Confound(probed=name, balanced_accuracy=round(accuracy, 4), chance=round(chance, 4), n_images=len(kept))
        )
    return tuple(found)


def _usable(rows: Sequence[ImageRow], looks: Looks, groups: Sequence[str]) -> list[int]:
    """Positions of labelled images of classes with enough groups; no more than `MOST_IMAGES`, in order of image_id."""
    labelled = [i for i, row in enumerate(rows) if row.label and looks.seen[i]]
    sizes = Counter(label for label, _ in {(rows[i].label, groups[i]) for i in labelled})
    kept = [i for i in labelled if sizes[rows[i].label] >= FOLDS]
    return sorted(kept, key=lambda i: rows[i].image_id)[:MOST_IMAGES]


def _margins(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), dtype=bool)
    inner[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] = True
    outer: NDArray[np.float64] = pictures[:, ~inner]
    return outer


def _levels(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = [np.histogram(picture, bins=BINS, range=(0, 1))[0] / picture.size for picture in pictures]
    return np.array(counts, dtype=np.float64)


def _predict(features: NDArray[np.float64], labels: NDArray[np.str_], groups: NDArray[np.str_]) -> NDArray[np.str_]:
    """Class of each image by a ridge classifier that was fitted on the other folds."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    predicted = labels.copy()
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, held_out in folds.split(features, labels, groups):
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=10.0, class_weight="balanced"))
        predicted[held_out] = probe.fit(features[train], labels[train]).predict(features[held_out])
    return predicted
