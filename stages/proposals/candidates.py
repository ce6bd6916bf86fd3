"""From SAM2's logits to scored masks: upscale, restrict to the image, score, and keep the best of each object.

Scores are those of SAM2's automatic mask generator (facebookresearch/sam2, `utils/amg.py`), computed on the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.images import Placement
from stages.proposals.arrays import SCORES, UPSCALED_TOGETHER


@dataclass(frozen=True, slots=True)
class ScoredMasks:
    """Masks of one image on its canvas, n in all."""

    packed: NDArray[np.uint8]
    """(n, S, S // 8), bits in big-endian order; zero outside the image."""
    scores: NDArray[np.float32]
    """(n, 4), columns as in `SCORES`."""
    boxes: NDArray[np.float32]
    """(n, 4), x0, y0, x1, y1 in pixels of the canvas, the last two exclusive; zeros for an empty mask."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, which: NDArray[Any]) -> ScoredMasks:
        """Masks by index or by a mask of booleans."""
        return ScoredMasks(self.packed[which], self.scores[which], self.boxes[which])


def score_masks(
    logits: Tensor, predicted_iou: Tensor, placement: Placement, canvas_px: int, stability_offset: float
) -> ScoredMasks:
    """Upscale masks to the canvas, a few at a time, restrict them to the image and score them.

    Parameters
    ----------
    logits : Tensor of float32, (n, h, w)
        Of the whole canvas.
    predicted_iou : Tensor of float32, (n,)
        SAM2's own estimate.
    placement : Placement
        Where the image lies in its canvas.
    canvas_px : int
        S.
    stability_offset : float
        Stability is the area above +offset over the area above -offset; 0 where both are empty.

    Returns
    -------
    ScoredMasks
        n masks in the same order, on the CPU.
    """
    parts = [
        _score_block(logits[start : start + UPSCALED_TOGETHER], placement, canvas_px, stability_offset)
        for start in range(0, len(logits), UPSCALED_TOGETHER)
    ]
    if not parts:
        return no_masks(canvas_px)
    packed, measured, boxes = (np.concatenate(p) for p in zip(*parts, strict=True))
    scores = np.concatenate((predicted_iou.cpu().numpy()[:, None], measured), axis=1)
    return ScoredMasks(packed, scores.astype(np.float32), boxes)


def no_masks(canvas_px: int) -> ScoredMasks:
    """Return zero masks of one image."""
    return ScoredMasks(
        np.zeros((0, canvas_px, canvas_px // 8), np.uint8),
        np.zeros((0, len(SCORES)), np.float32),
        np.zeros((0, 4), np.float32),
    )


def concatenate(parts: Sequence[ScoredMasks]) -> ScoredMasks:
    """Masks of several calls for the same image, in order; at least one part."""
    return ScoredMasks(
        np.concatenate([p.packed for p in parts]),
        np.concatenate([p.scores for p in parts]),
        np.concatenate([p.boxes for p in parts]),
    )


def best_distinct(masks: ScoredMasks, nms_iou: float, at_most: int) -> ScoredMasks:
    """Keep the best masks whose boxes overlap little, by predicted IoU times stability, best first.

    Parameters
    ----------
    masks : ScoredMasks
        Equal ones keep their order.
    nms_iou : float
        Of two masks whose boxes have a greater IoU, the better stays.
    at_most : int
        Number of masks to keep.

    Returns
    -------
    ScoredMasks
        At most `at_most` masks.
    """
    from torchvision.ops import nms

    quality = masks.scores[:, 0].astype(np.float64) * masks.scores[:, 1]
    order = np.argsort(-quality, kind="stable")
    # Ranks instead of scores: whatever sorting nms does, ties stay in the order of their prompts.
    ranks = torch.arange(len(order), 0, -1, dtype=torch.float64)
    kept = nms(torch.from_numpy(masks.boxes[order]).double(), ranks, nms_iou).numpy()
    return masks.take(order[kept[:at_most]])


def _score_block(
    logits: Tensor, placement: Placement, canvas_px: int, offset: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Packed masks, the three measured scores, and boxes of a few masks."""
    rows, columns = placement.slices
    upscaled = F.interpolate(logits[:, None], (canvas_px, canvas_px), mode="bilinear", align_corners=False)
    inside = upscaled[:, 0, rows, columns]

    def pack(threshold: float) -> NDArray[np.uint8]:
        canvas = np.zeros((len(logits), canvas_px, canvas_px), dtype=bool)
        canvas[:, rows, columns] = (inside > threshold).cpu().numpy()
        return np.packbits(canvas, axis=-1)

    masks = pack(0)
    stability = _area(pack(offset)) / np.maximum(_area(pack(-offset)), 1)
    border = np.packbits(_border(placement, canvas_px), axis=-1)
    fractions = (_area(masks) / (placement.height * placement.width), _area(masks & border) / _area(border[None]))
    return masks, np.stack((stability, *fractions), axis=1).astype(np.float32), _boxes(masks)


def _area(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels of each mask, (n,); counted on packed bits, which is many times faster than on booleans."""
    counts: NDArray[np.int64] = np.bitwise_count(packed).sum(axis=(1, 2), dtype=np.int64)
    return counts


def _border(placement: Placement, canvas_px: int) -> NDArray[np.bool_]:
    """Outermost pixels of the image, (S, S)."""
    edge = np.zeros((canvas_px, canvas_px), dtype=bool)
    inside = edge[placement.slices]
    inside[[0, -1], :] = True
    inside[:, [0, -1]] = True
    return edge


def _boxes(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """x0, y0, x1, y1 of each mask, the last two exclusive; zeros for an empty one."""
    columns: NDArray[np.bool_] = np.unpackbits(np.bitwise_or.reduce(packed, axis=1), axis=-1).astype(bool)
    rows: NDArray[np.bool_] = np.bitwise_or.reduce(packed, axis=2) > 0
    spans = []
    for line in (columns, rows):
        first, last = line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)
        spans.append(np.where(line.any(axis=1), (first, last), 0))
    (x0, x1), (y0, y1) = spans
    return np.stack((x0, y0, x1, y1), axis=1).astype(np.float32)
