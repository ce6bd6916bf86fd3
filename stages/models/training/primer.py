"""The first steps of training: a box says where an object is, whatever the image shows.

A decoder with fresh weights learns soon to outline what is salient and not to heed the prompt, and takes thousands of
steps to leave that habit. Ellipses in random boxes over images that do not show them teach it positions first.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from stages.models.training.samples import STRIDE, Prompts

BOXES_PER_IMAGE: Final = 48


def hidden_ellipses(images: int, image_px: int, rng: np.random.Generator) -> Prompts:
    """Draw boxes and the ellipses in them, as objects of images that show nothing of them.

    Parameters
    ----------
    images : int
        B.
    image_px : int
        S, side of the images, in pixels.
    rng : numpy.random.Generator
        Decides all.

    Returns
    -------
    Prompts
        `BOXES_PER_IMAGE` boxes for each image.
    """
    n = images * BOXES_PER_IMAGE
    center = rng.random((n, 2)) * image_px
    half = np.exp(rng.uniform(-3.2, -1.0, (n, 2))) * image_px
    boxes = np.clip(np.stack((center - half, center + half), axis=1), 0, image_px)
    center, half = boxes.mean(axis=1), np.maximum(np.diff(boxes, axis=1)[:, 0] / 2, 1)
    pixel = np.arange(image_px) + 0.5
    dx, dy = ((pixel[None] - center[:, [k]]) / half[:, [k]] for k in (0, 1))
    inside = dx[:, None] ** 2 + dy[:, :, None] ** 2 < 1
    truth = F.avg_pool2d(torch.from_numpy(inside).float()[:, None], STRIDE)[:, 0]
    return Prompts(torch.arange(n) // BOXES_PER_IMAGE, torch.from_numpy(boxes.astype(np.float32)), truth)
