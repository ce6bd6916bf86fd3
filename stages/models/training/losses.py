"""Losses of SAM2 on images (arXiv 2408.00714, section D.2.2): focal and dice on masks, L1 on the predicted IoU.

Of the three masks of an ambiguous prompt only the best is taught; the single mask and the IoU of all are taught always.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

FOCAL_WEIGHT: Final = 20.0
FOCAL_ALPHA: Final = 0.25
FOCAL_GAMMA: Final = 2.0
BESIDE_WEIGHT: Final = 0.3
"""Weight of the predicted IoU of clicks beside every object."""
PRESENCE_WEIGHT: Final = 0.1
"""Weight of the object score."""


def mask_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal and dice loss of every mask, weighted as in SAM2.

    Parameters
    ----------
    logits : Tensor of float, (P, M, h, w)
        M masks of each prompt.
    truth : Tensor of float, (P, h, w)
        Share of each cell that the object covers, 0..1.

    Returns
    -------
    Tensor of float, (P, M)
    """
    target = truth[:, None].expand_as(logits)
    probability = torch.sigmoid(logits)
    crossentropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    hit = probability * target + (1 - probability) * (1 - target)
    alpha = FOCAL_ALPHA * target + (1 - FOCAL_ALPHA) * (1 - target)
    focal = (alpha * (1 - hit) ** FOCAL_GAMMA * crossentropy).mean(dim=(-2, -1))
    overlap, both = (probability * target).sum(dim=(-2, -1)), (probability + target).sum(dim=(-2, -1))
    return FOCAL_WEIGHT * focal + 1 - (2 * overlap + 1) / (both + 1)


@torch.no_grad()
def true_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU of every mask with its object, (P, M), from logits (P, M, h, w) and shares (P, h, w)."""
    masks, target = logits > 0, (truth > 0.5)[:, None]
    union = (masks | target).sum(dim=(-2, -1))
    return (masks & target).sum(dim=(-2, -1)) / union.clamp(min=1)


def object_loss(logits: Tensor, predicted_iou: Tensor, presence: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of prompts that point at an object, and the true IoU of the mask that a user would take.

    Parameters
    ----------
    logits : Tensor of float, (P, 4, h, w)
        The single mask and the three of the multimask output.
    predicted_iou : Tensor of float, (P, 4)
        In 0..1.
    presence : Tensor of float, (P, 1)
        Object score before the sigmoid.
    truth : Tensor of float, (P, h, w)
        Share of each cell that the object covers, 0..1.

    Returns
    -------
    loss : Tensor of float, ()
        Mean over prompts.
    taken : Tensor of float, (P,)
        True IoU of the one of the three with the highest predicted IoU.
    """
    each, quality = mask_losses(logits, truth), true_iou(logits, truth)
    masks = each[:, 0] + each[:, 1:].min(dim=1).values
    scores = F.l1_loss(predicted_iou, quality)
    present = F.binary_cross_entropy_with_logits(presence, torch.ones_like(presence))
    taken = quality[:, 1:].gather(1, predicted_iou[:, 1:].argmax(dim=1, keepdim=True))[:, 0]
    return masks.mean() + scores + PRESENCE_WEIGHT * present, taken


def beside_loss(predicted_iou: Tensor, presence: Tensor) -> Tensor:
    """Loss of clicks beside every object: no mask is right there, so that the predicted IoU should be 0.

    Parameters
    ----------
    predicted_iou : Tensor of float, (P, 4)
        In 0..1.
    presence : Tensor of float, (P, 1)
        Object score before the sigmoid.

    Returns
    -------
    Tensor of float, ()
    """
    absent = F.binary_cross_entropy_with_logits(presence, torch.zeros_like(presence))
    return BESIDE_WEIGHT * predicted_iou.mean() + PRESENCE_WEIGHT * absent
