"""What is known of a SAM2 model without loading it: its identity card and what memory it takes; no torch."""

from __future__ import annotations

from typing import Any, Final

from manifests.errors import WeightsError
from stages.models.registry import ModelEntry, entry
from stages.models.weights import WeightsFolder

IMAGENET: Final = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of Meta's SAM2, for pixels in 0..1."""
HALF: Final = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of EfficientNet-Lite0, for pixels in 0..1."""

DECODER_BYTES: Final = {"cpu": 2**29, "cuda": 2**33}
"""Working memory that one call of the decoder may take, by type of device."""
ENCODER_BYTES_PER_PIXEL: Final = 600
"""Working memory of the encoder for one pixel of the square that the model sees."""


def segmenter_card(name: str, precision: str) -> dict[str, Any]:
    """JSON values that say what a model's masks depend on; reads no weights.

    Parameters
    ----------
    name : str
        Name in the registry.
    precision : str
        `float32` or `bfloat16`.

    Raises
    ------
    WeightsError
        If the model is unknown, is no SAM2, or its file was not added.
    """
    known = sam2_entry(name)
    mean, std = HALF if known.source == "shipped" else IMAGENET
    return {
        "name": name,
        "weights": WeightsFolder().digests(name),
        "architecture": known.architecture,
        "note": known.note,
        "image_px": known.image_px,
        "mean": list(mean),
        "std": list(std),
        "precision": precision,
        "hole_filling": False,
    }


def sam2_entry(name: str) -> ModelEntry:
    """Look up a SAM2 model by name.

    Raises
    ------
    WeightsError
        If there is no such model, or it is of another kind.
    """
    known = entry(name)
    if known.kind != "sam2":
        raise WeightsError(f"{name} is no SAM2 model.", "See: pipeline weights list")
    return known
