"""What is known of a SAM or SAM2 model without loading it: its identity card and what memory it takes; no torch."""

from __future__ import annotations

from typing import Any, Final

from manifests.errors import WeightsError
from stages.models.registry import ModelEntry, entry
from stages.models.weights import WeightsFolder

OUTSIDE: Final = 0
INSIDE: Final = 1
CORNERS: Final = (2, 3)
NOTHING: Final = -1
"""Labels of prompt points, as SAM's prompt encoder numbers them: beside or in the object, the upper left and the lower
right corner of its box, and a point that says nothing."""

DECODER_BYTES: Final = {"cpu": 2**27, "cuda": 2**33}
"""Working memory that one call of the decoder may take, by type of device; a CPU slows down where its cache ends."""
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
        If the model is unknown, makes no masks, or its file was not added.
    """
    known = mask_source(name)
    mean, std = known.mean_std
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


def mask_source(name: str) -> ModelEntry:
    """Look up a model that makes masks, by name.

    Raises
    ------
    WeightsError
        If there is no such model, or it is of another kind.
    """
    known = entry(name)
    if known.kind not in ("sam", "sam2", "clipseg"):
        raise WeightsError(f"{name} is neither SAM nor SAM2 nor CLIPSeg.", "See: pipeline weights list")
    return known


def sam2_entry(name: str) -> ModelEntry:
    """Look up a SAM or SAM2 model by name.

    Raises
    ------
    WeightsError
        If there is no such model, or it is of another kind.
    """
    known = entry(name)
    if known.kind not in ("sam", "sam2"):
        raise WeightsError(f"{name} is neither SAM nor SAM2.", "See: pipeline weights list")
    return known


HIERA_WIDTHS: Final = {"t": 96, "s": 96, "b+": 112, "l": 144}
"""Channels of the first stage of Hiera; every further stage has twice as many."""
VIT_WIDTHS: Final = {"sam_vit_b": 768, "sam_vit_l": 1024, "sam_vit_h": 1280}
NECK_CHANNELS: Final = 256


def depth_channels(name: str) -> tuple[int, ...]:
    """Channels of the encoder's features at five depths, early to late, the neck last; see `sam2_depths`.

    Raises
    ------
    WeightsError
        If the model is unknown, or is neither SAM nor SAM2.
    """
    known = sam2_entry(name)
    if known.kind == "sam":
        return (VIT_WIDTHS[known.architecture],) * 4 + (NECK_CHANNELS,)
    if known.source == "shipped":
        return (24, 40, 112, 320, 112)
    if known.source == "random":
        return (32, 64, 128, 256, 64)
    width = HIERA_WIDTHS[known.architecture.removesuffix(".yaml").rpartition("_")[2]]
    return (width, 2 * width, 4 * width, 8 * width, NECK_CHANNELS)
