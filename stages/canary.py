"""One picture that every process shows its model before any other: whoever sees something else may not go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stages.models.registry import Features

SIDE_PX: Final = 256
TOLERANCE: Final = {"float32": 2e-3, "bfloat16": 5e-2}
"""Largest distance of two processes' vectors, relative to their length, by precision.

Processors, GPUs and versions of torch add numbers up in different orders; see docs/cluster.md for what was measured.
"""


def canary_image() -> NDArray[np.uint8]:
    """A picture of waves, an ellipse and a ramp, (256, 256, 3) uint8; made of integers, so the same everywhere."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    waves = (x * x + 3 * y * y) // 97 % 200
    ellipse = 2 * (x - 110) ** 2 + 5 * (y - 140) ** 2 < 20_000
    return np.stack([waves, np.where(ellipse, 220, waves // 2), (x + y) // 2], axis=-1).astype(np.uint8)


def distance(vector: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Distance of two vectors relative to the reference's length; infinite if they differ in shape or are not finite.

    Parameters
    ----------
    vector, reference : ndarray of float32, (D,)
        What two processes made of the canary.
    """
    if vector.shape != reference.shape or not np.isfinite(vector).all():
        return float("inf")
    return float(np.linalg.norm(vector - reference) / np.linalg.norm(reference))


@dataclass(frozen=True, slots=True)
class Known:
    """What a model makes of the canary, as it was recorded when the model was added to this package."""

    features: Features
    vector: NDArray[np.float32]


def known_canary(model: str) -> Known | None:
    """The recorded vector of an embedded model; None for a model whose weights come from elsewhere."""
    recorded = json.loads((files("stages.models") / "data" / "canary.json").read_text("utf-8"))
    if model not in recorded:
        return None
    return Known(recorded[model]["features"], np.array(recorded[model]["vector"], np.float32))
