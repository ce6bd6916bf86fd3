"""What a head says of each image of a source: class, how sure, the mask it saw, and what is like it in training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manifests.types import Split, Status
from pipeline.arrivals import Arrivals
from pipeline.calibrating import Calibration
from pipeline.head import Head
from stages.base import StageData
from stages.features import unit_rows, view_vectors
from stages.prediction.calibration import tempered
from stages.prediction.neighbours import distances, nearest, threshold
from stages.splits import Indices, usable

ABSENT = "unit.failed"
"""Reason of an image whose chunk failed for good."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One image of the training subset."""

    image_id: str
    label: str
    similarity: float
    """Cosine of the two vectors."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said of one image that could be used."""

    predicted: str
    probabilities: tuple[float, ...]
    """By class, exactly as the study would give them."""
    calibrated: float
    """Probability of the predicted class at the head's temperature."""
    nearest: tuple[Neighbour, ...]
    distance: float
    """To the third nearest training image of the study, in [0, 2]."""
    unlike: bool
    """Whether it is farther away than the threshold."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image of the source."""

    image_id: str
    file: str
    """Path in the source; shown only where it is asked for."""
    status: str
    """`ok`, `fallback`, `failed` or `absent`."""
    reason: str
    mask_status: str
    mask_area: float | None
    """Share of the image; None without a mask."""
    answer: Answer | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """The training images of a study as points on the unit sphere."""

    view: str
    training: NDArray[np.float64]
    """All usable training images, (m, D)."""
    threshold: float

    @classmethod
    def of(cls, data: StageData) -> Likeness:
        """Whatever the training subset: labels take no part, and few images do not tell what is usual."""
        views = list(data.attributes["views"])
        view = "original" if "original" in views else str(views[0])
        rows = training_rows(data)
        training = unit_rows(view_vectors(data, view)[rows])
        groups = [data.rows[i].group_id for i in rows.tolist()]
        return cls(view, training, threshold(training, groups))


def training_rows(data: StageData) -> Indices:
    """Every usable image of the train split, (m,)."""
    train = np.array([row.split == Split.TRAIN for row in data.rows], dtype=bool)
    return np.flatnonzero(usable(data) & train).astype(np.int64)


def answer_all(head: Head, arrivals: Arrivals, calibration: Calibration, likeness: Likeness) -> list[Prediction]:
    """One prediction a file of the source, in the order of image ids."""
    answers: dict[int, Answer] = {}
    if arrivals.features is not None:
        known = np.isin(arrivals.features.status, (Status.OK, Status.FALLBACK))
        positions = [position for position in arrivals.places.values() if known[position]]
        rows = np.array(sorted(positions), dtype=np.int64)
        data = _stage_data(head, arrivals)
        answers = dict(zip(rows.tolist(), _answers(head, data, rows, calibration, likeness), strict=True))
    by_id = sorted(arrivals.files.items(), key=lambda item: (item[1], item[0]))
    return [_prediction(arrivals, image_id, file, answers) for file, image_id in by_id]


def _stage_data(head: Head, arrivals: Arrivals) -> StageData:
    """The images as the head's stage sees those of the study."""
    told = arrivals.features
    if told is None:
        raise ValueError("arrivals: expected at least one committed chunk, got none")
    drops = tuple(arrivals.drop_of())
    return StageData(arrivals.rows, drops, told.status, told.arrays, told.attributes, head.data.artifacts)


def _answers(head: Head, data: StageData, rows: Indices, calibration: Calibration, likeness: Likeness) -> list[Answer]:
    if not len(rows):
        return []
    features = head.stage.features(head.cell.method, data, rows)
    probabilities = head.probe.probabilities(features)
    sure = tempered(head.probe.logits(features), calibration.temperature)
    vectors = unit_rows(view_vectors(data, likeness.view)[rows])
    subset = unit_rows(view_vectors(head.data, likeness.view)[head.subset])
    near, cosines = nearest(vectors, subset)
    far = distances(vectors, likeness.training)
    found = []
    for i, likely in enumerate(probabilities.argmax(axis=1).tolist()):
        shown = [head.data.rows[j] for j in head.subset[near[i]].tolist()]
        similar = zip(shown, cosines[i].tolist(), strict=True)
        found.append(
            Answer(
                predicted=head.classes[likely],
                probabilities=tuple(probabilities[i].tolist()),
                calibrated=float(sure[i, likely]),
                nearest=tuple(Neighbour(row.image_id, row.label, cosine) for row, cosine in similar),
                distance=float(far[i]),
                unlike=bool(far[i] > likeness.threshold),
            )
        )
    return found


def _prediction(arrivals: Arrivals, image_id: str, file: str, answers: dict[int, Answer]) -> Prediction:
    at = arrivals.places.get(image_id)
    if at is None or arrivals.features is None:
        return Prediction(image_id, file, "absent", ABSENT, "absent", None, None)
    area = float(arrivals.mask_area[at])
    return Prediction(
        image_id,
        file,
        status=Status(int(arrivals.features.status[at])).name.lower(),
        reason=arrivals.reasons.get((arrivals.drop_of()[at], arrivals.rows[at].row), ""),
        mask_status=Status(int(arrivals.mask_status[at])).name.lower(),
        mask_area=area if np.isfinite(area) else None,
        answer=answers.get(at),
    )
