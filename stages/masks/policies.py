"""The rules that make one mask of an image's proposals, and the rule that turns a useless mask into the whole image.

All are functions of one image's stored proposals, so a changed rule never runs SAM2 again. None sees a label. The
paper (MedFocusCLIP, arXiv 2501.03839) does not say how an unprompted SAM2 gives one mask; `union` is our reading of
its figures, `center` and `box` are the fixed prompts of the related work, `clip-rank` is that of SaLIP (arXiv
2404.06362) without its tuning, and `saliency` is what most proposals agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.images import Placement, border, content
from stages.masks.settings import MasksSettings

PREDICTED_IOU, STABILITY, AREA_FRACTION, BORDER_FRACTION = range(4)
"""Columns of the score arrays."""
CENTER, BOX = range(2)
"""Rows of `fixed`."""
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class ImageProposals:
    """What the proposals stage stored for one image; masks are packed bits, most significant bit first."""

    candidates: NDArray[np.uint8]
    """(K, S, S/8)."""
    candidate_scores: NDArray[np.float32]
    """(K, 4): predicted IoU, stability, share of the image's area, share of the image's border; NaN where absent."""
    fixed: NDArray[np.uint8]
    """(2, S, S/8): mask of a point at the image's centre, mask of a box around the whole image."""
    fixed_scores: NDArray[np.float32]
    """(2, 4), the same columns."""
    similarity: NDArray[np.float32] | None = None
    """(K,), similarity of each candidate's crop to the prompts of `clip-rank`; None for other policies."""


class Chosen(NamedTuple):
    """One mask and how sure SAM2 was of it."""

    mask: NDArray[np.bool_]
    """(S, S)."""
    score: float
    """Mean of predicted IoU times stability over the proposals used; NaN if none was."""
    stability: float
    """Mean stability over the proposals used; NaN if none was."""
    margin: float
    """How clear the choice was, in the policy's own measure; NaN where nothing was chosen between."""


class Final(NamedTuple):
    """The mask that is stored for an image."""

    mask: NDArray[np.bool_]
    """(S, S); never empty, and nowhere in the padding."""
    area_fraction: float
    """Share of the image, without padding, in (0, 1]."""
    reason: str
    """Why the whole image is used instead (`mask.empty`, `mask.tiny`, `mask.full`); empty if the mask stands."""
    detail: str
    """The rejected mask's area, in words."""


def usable(scores: NDArray[np.float32], settings: MasksSettings) -> NDArray[np.bool_]:
    """Which candidates are neither absent, nor tiny, nor nearly everything, nor background along the border.

    Parameters
    ----------
    scores : ndarray of float32, (K, 4)
        `candidate_scores` of one image.
    settings : MasksSettings
        The limits.

    Returns
    -------
    ndarray of bool, (K,)
    """
    area, border = scores[:, AREA_FRACTION], scores[:, BORDER_FRACTION]
    large_enough = (area >= settings.min_area_fraction) & (area <= settings.max_area_fraction)
    return large_enough & (border <= settings.max_border_fraction) & ~np.isnan(_quality(scores))


def union(proposals: ImageProposals, settings: MasksSettings) -> Chosen:
    """Everything that any usable candidate covers."""
    return _together(proposals, usable(proposals.candidate_scores, settings))


def top1(proposals: ImageProposals, settings: MasksSettings) -> Chosen:
    """The usable candidate with the best predicted IoU times stability; the margin is its lead over the next."""
    return _best(proposals, _quality(proposals.candidate_scores), 1, settings)


def clip_rank(proposals: ImageProposals, settings: MasksSettings) -> Chosen:
    """The `clip_top` usable candidates that CLIP finds most like a lesion or an organ; the margin is as in `top1`."""
    if proposals.similarity is None:
        raise ValueError("similarity: clip-rank needs the similarity of every candidate")
    return _best(proposals, proposals.similarity, settings.clip_top, settings)


def saliency(proposals: ImageProposals, settings: MasksSettings) -> Chosen:
    """Where usable candidates agree: pixels with at least half the weight of the pixel that most of them cover.

    A candidate's weight is its predicted IoU times stability. The margin is the mean share of the weight inside the
    mask minus that in the rest of what any candidate covers.
    """
    kept = usable(proposals.candidate_scores, settings)
    if not kept.any():
        return _nothing(proposals.candidates)
    weights = _quality(proposals.candidate_scores[kept])
    share = np.tensordot(weights / weights.sum(), _unpack(proposals.candidates[kept]).astype(np.float32), axes=1)
    mask = share >= share.max() / 2
    rest = (share > 0) & ~mask
    margin = float(share[mask].mean() - share[rest].mean()) if rest.any() else NAN
    return Chosen(mask, float(weights.mean()), float(proposals.candidate_scores[kept, STABILITY].mean()), margin)


def center(proposals: ImageProposals, _settings: MasksSettings) -> Chosen:
    """The mask of one point at the image's centre."""
    return _fixed(proposals, CENTER)


def box(proposals: ImageProposals, _settings: MasksSettings) -> Chosen:
    """The mask of one box around the whole image."""
    return _fixed(proposals, BOX)


FROM_PROPOSALS: Mapping[str, Callable[[ImageProposals, MasksSettings], Chosen]] = {
    "union": union,
    "top1": top1,
    "clip-rank": clip_rank,
    "saliency": saliency,
    "center": center,
    "box": box,
}
"""Policies that need the proposals stage; `none` and `supplied` do not."""


def finish(mask: NDArray[np.bool_], placement: Placement, settings: MasksSettings) -> Final:
    """Cut a mask to the image, and use the whole image instead where it is empty, tiny or full.

    Parameters
    ----------
    mask : ndarray of bool, (S, S)
        Mask on the canvas.
    placement : Placement
        Where the image lies in the canvas.
    settings : MasksSettings
        The limits of the area.

    Returns
    -------
    Final
    """
    whole = content(placement, mask.shape[0])
    inside = mask & whole
    area = float(inside.sum() / whole.sum())
    if not inside.any():
        return whole_image(whole, "mask.empty", "no pixel of the image is in the mask")
    if area < settings.min_area_fraction:
        return whole_image(whole, "mask.tiny", f"{area:.3%} of the image, below {settings.min_area_fraction:.3%}")
    if area > settings.max_area_fraction:
        return whole_image(whole, "mask.full", f"{area:.1%} of the image, above {settings.max_area_fraction:.1%}")
    return Final(inside, area, "", "")


def border_fraction(mask: NDArray[np.bool_], placement: Placement) -> float:
    """Share of the image's outermost pixels that a mask covers, 0..1."""
    return float(mask[border(placement, mask.shape[0])].mean())


def whole_image(whole: NDArray[np.bool_], reason: str = "", detail: str = "") -> Final:
    """The mask that covers all of the image, by policy or, with a reason, instead of a useless one."""
    return Final(whole, 1.0, reason, detail)


def _quality(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return scores[..., PREDICTED_IOU] * scores[..., STABILITY]


def _best(proposals: ImageProposals, order: NDArray[np.float32], n: int, settings: MasksSettings) -> Chosen:
    """Union of the n usable candidates that come first by a measure; the first of equals."""
    kept = usable(proposals.candidate_scores, settings)
    ranked = np.argsort(-np.where(kept, order, -np.inf), kind="stable")[: int(kept.sum())]
    taken = np.zeros(len(kept), dtype=bool)
    taken[ranked[:n]] = True
    margin = float(order[ranked[n - 1]] - order[ranked[n]]) if len(ranked) > n else NAN
    return _together(proposals, taken)._replace(margin=margin)


def _together(proposals: ImageProposals, taken: NDArray[np.bool_]) -> Chosen:
    if not taken.any():
        return _nothing(proposals.candidates)
    scores = proposals.candidate_scores[taken]
    covered = np.bitwise_or.reduce(proposals.candidates[taken], axis=0)
    return Chosen(_unpack(covered), float(_quality(scores).mean()), float(scores[:, STABILITY].mean()), NAN)


def _fixed(proposals: ImageProposals, prompt: int) -> Chosen:
    scores = proposals.fixed_scores[prompt]
    return Chosen(_unpack(proposals.fixed[prompt]), float(_quality(scores)), float(scores[STABILITY]), NAN)


def _nothing(candidates: NDArray[np.uint8]) -> Chosen:
    return Chosen(np.zeros((candidates.shape[1], candidates.shape[2] * 8), dtype=bool), NAN, NAN, NAN)


def _unpack(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.unpackbits(packed, axis=-1).astype(bool)
