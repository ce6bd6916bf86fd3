"""Trainings of prompts on drawn vectors."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from stages.baselines.prompts import ConditionalPrompts, Prompts
from stages.baselines.schedule import Fit, Steps
from stages.models.clip import ClipModel

NAMES = ["benign tumor", "malignant tumor", "normal tissue"]
WIDTH = 1280


def fit_of(model: ClipModel, n: int, seed: int, steps: Steps) -> Fit:
    """CoCoOp where a step takes one image, else CoOp, on n images drawn about a centre for each class."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % len(NAMES)
    centres = torch.randn((len(NAMES), WIDTH), generator=torch.Generator().manual_seed(0))
    images = normalize(centres[labels] + torch.randn((n, WIDTH), generator=random))
    start = (model, NAMES, "a photo of a", "trunk", 100.0)
    prompts = ConditionalPrompts(*start, width=WIDTH, generator=random) if steps.batch == 1 else Prompts(*start)
    return Fit(prompts, images.numpy(), labels.numpy(), steps, seed)
