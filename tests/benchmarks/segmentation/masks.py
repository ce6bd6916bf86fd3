"""Masks of prompts and of the grid, as the pipeline makes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stages.masks.policies import ImageProposals
from stages.models.sam2 import Segmenter, all_three, single_mask
from stages.proposals.candidates import score_masks
from stages.proposals.propose import CORNERS, INSIDE, Proposer
from stages.proposals.settings import ProposalsSettings
from tests.benchmarks.segmentation.cases import Case
from tests.benchmarks.segmentation.scores import PROMPTS


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model makes of one prompt on each of n objects."""

    prompt: str
    """`click` or `box`."""
    packed: NDArray[np.uint8]
    """(n, m, S, S / 8), m masks an object: three of a click, one of a box."""
    predicted: NDArray[np.float32]
    """(n, m), the model's estimate of their IoU."""

    @property
    def taken(self) -> NDArray[np.uint8]:
        """The mask of each object with the highest predicted IoU, (n, S, S / 8)."""
        return self.packed[np.arange(len(self.packed)), self.predicted.argmax(axis=1)]


def prompted(model: Segmenter, case: Case, settings: ProposalsSettings) -> Iterator[Answer]:
    """Click on every object, then box every object.

    Parameters
    ----------
    model : Segmenter
        Encodes the image once.
    case : Case
        With at least one object.
    settings : ProposalsSettings
        Canvas of the masks.

    Yields
    ------
    Answer
        One for each of `PROMPTS`.
    """
    side = settings.canvas_px
    features = model.encode(torch.from_numpy(case.canvas[None]))
    for prompt, points, labels in zip(PROMPTS, (case.clicks(), case.boxes()), ((INSIDE,), CORNERS), strict=True):
        every = torch.tensor(labels).expand(1, len(points), len(labels))
        wanted = single_mask if prompt == "box" else all_three
        logits, predicted, _ = model.decode(features, torch.from_numpy(points)[None], every, wanted)
        scores = predicted[wanted(predicted)]
        masks = score_masks(logits, scores, case.placement, side, settings.stability_offset).packed
        shape = len(points), len(masks) // max(1, len(points))
        yield Answer(prompt, masks.numpy().reshape(*shape, side, side // 8), scores.view(shape).numpy())


def proposals_of(model: Segmenter, settings: ProposalsSettings, case: Case) -> ImageProposals:
    """Return what the proposals stage would store of one image."""
    candidates, fixed = next(Proposer(model, settings).propose([case.canvas], [case.placement]))
    return ImageProposals(*(t.numpy() for t in (candidates.packed, candidates.scores, fixed.packed, fixed.scores)))
