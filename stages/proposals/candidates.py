"""From SAM2's logits to scored masks: upscale, restrict to the image, score, and keep the best of each object.

Scores and their thresholds are those of SAM2's automatic mask generator (facebookresearch/sam2, `utils/amg.py`),
computed on the canvas. All of it happens on the device of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.images import Placement, border
from stages.proposals.arrays import SCORES, UPSCALED_TOGETHER
from stages.proposals.bits import areas, boxes, pack

SLACK: Final = 0.1
"""How far stability on the logits' own grid may lie below the threshold, for the mask to be upscaled at all."""


@dataclass(frozen=True, slots=True)
class ScoredMasks:
    """Masks of one image on its canvas, n in all; on the device of the model."""

    packed: Tensor
    """(n, S, S // 8) uint8, bits in big-endian order; zero outside the image."""
    scores: Tensor
    """(n, 4) float32, columns as in `SCORES`."""
    boxes: Tensor
    """(n, 4) float32, x0, y0, x1, y1 in pixels of the canvas, the last two exclusive; zeros for an empty mask."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, which: Tensor) -> ScoredMasks:
        """Masks by index or by a mask of booleans."""
        return ScoredMasks(self.packed[which], self.scores[which], self.boxes[which])


def score_masks(
    logits: Tensor,
    predicted_iou: Tensor,
    placement: Placement,
    canvas_px: int,
    stability_offset: float,
    min_stability: float = -1.0,
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
    min_stability : float
        Masks below are left out, none if it is negative. Those that are far below on the logits' own grid are never
        upscaled.

    Returns
    -------
    ScoredMasks
        At most n masks in the same order.
    """
    if min_stability > SLACK:
        rows, columns = (_coarser(s, logits.shape[1] / canvas_px) for s in placement.slices)
        inside = logits[:, rows, columns].flatten(1)
        above, all_of_it = ((inside > offset).sum(dim=1) for offset in (stability_offset, -stability_offset))
        promising = above >= (min_stability - SLACK) * all_of_it
        logits, predicted_iou = logits[promising], predicted_iou[promising]
    parts = [no_masks(canvas_px, logits.device)]
    for start in range(0, len(logits), UPSCALED_TOGETHER):
        block = slice(start, start + UPSCALED_TOGETHER)
        scored = _score_block(logits[block], predicted_iou[block], placement, canvas_px, stability_offset)
        parts.append(scored.take(scored.scores[:, 1] >= min_stability) if min_stability > 0 else scored)
    return concatenate(parts)


def no_masks(canvas_px: int, device: torch.device | str = "cpu") -> ScoredMasks:
    """Return zero masks of one image."""
    return ScoredMasks(
        torch.zeros((0, canvas_px, canvas_px // 8), dtype=torch.uint8, device=device),
        torch.zeros((0, len(SCORES)), device=device),
        torch.zeros((0, 4), device=device),
    )


def concatenate(parts: Sequence[ScoredMasks]) -> ScoredMasks:
    """Masks of several calls for the same image, in order; at least one part."""
    return ScoredMasks(
        torch.cat([p.packed for p in parts]),
        torch.cat([p.scores for p in parts]),
        torch.cat([p.boxes for p in parts]),
    )


def distinct(masks: ScoredMasks, nms_iou: float) -> ScoredMasks:
    """Of masks whose boxes overlap much, keep the one with the highest predicted IoU; highest first.

    Parameters
    ----------
    masks : ScoredMasks
        Equal ones keep their order.
    nms_iou : float
        Of two masks whose boxes have a greater IoU, the better stays.
    """
    from torchvision.ops import nms

    order = masks.scores[:, 0].argsort(descending=True, stable=True)
    # Ranks instead of scores: whatever sorting nms does, ties stay in the order of their prompts.
    ranks = torch.arange(len(order), 0, -1, dtype=torch.float64, device=order.device)
    # The generator's boxes end on their last pixel, so that each is one pixel smaller than ours.
    corners = masks.boxes[order].double() - masks.boxes.new_tensor([0, 0, 1, 1])
    return masks.take(order[nms(corners, ranks, nms_iou)])


def best(masks: ScoredMasks, at_most: int) -> ScoredMasks:
    """Keep at most so many masks, by predicted IoU times stability, best first; equal ones keep their order."""
    quality = masks.scores[:, 0].double() * masks.scores[:, 1]
    return masks.take(quality.argsort(descending=True, stable=True)[:at_most])


def measured(packed: Tensor, predicted_iou: Tensor, stability: Tensor, placement: Placement) -> ScoredMasks:
    """Measure packed masks, (n, S, S // 8), whose other scores, (n,), are known: area, border share and box."""
    edge = pack(torch.from_numpy(border(placement, packed.shape[1])).to(packed.device))[None]
    area = areas(packed) / (placement.height * placement.width)
    touching = areas(packed & edge) / areas(edge)
    return ScoredMasks(packed, torch.stack((predicted_iou, stability, area, touching), dim=1).float(), boxes(packed))


def _score_block(
    logits: Tensor, predicted_iou: Tensor, placement: Placement, canvas_px: int, offset: float
) -> ScoredMasks:
    """Packed masks, their scores and boxes, of a few masks."""
    rows, columns = placement.slices
    upscaled = F.interpolate(logits[:, None], (canvas_px, canvas_px), mode="bilinear", align_corners=False)
    inside = upscaled[:, 0, rows, columns]

    def above(threshold: float) -> Tensor:
        canvas = torch.zeros(upscaled.shape[::2] + upscaled.shape[3:], dtype=torch.bool, device=logits.device)
        canvas[:, rows, columns] = inside > threshold
        return pack(canvas)

    stability = areas(above(offset)) / areas(above(-offset)).clamp(min=1)
    return measured(above(0), predicted_iou, stability, placement)


def _coarser(span: slice, scale: float) -> slice:
    return slice(int(span.start * scale), max(int(span.start * scale) + 1, int(span.stop * scale)))
