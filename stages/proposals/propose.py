"""One batch of canvases through SAM2: the candidates of a point grid, and the masks of two fixed prompts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.images import Placement
from stages.proposals.candidates import ScoredMasks, best_distinct, concatenate, no_masks, score_masks
from stages.proposals.prompts import centre_point, content_box, point_grid
from stages.proposals.settings import ProposalsSettings

if TYPE_CHECKING:
    from stages.models.sam2 import ImageFeatures

INSIDE = 1
CORNERS = (2, 3)
"""Labels of prompt points, as SAM2's prompt encoder numbers them."""


class PromptableModel(Protocol):
    """What the stage needs of a loaded SAM2; see `stages.models.sam2.Segmenter`."""

    @property
    def prompts_per_call(self) -> int:
        """Prompts that one call of `decode` should hold."""
        ...

    def encode(self, images: Tensor) -> ImageFeatures:
        """Encode canvases, (B, S, S, 3) uint8."""
        ...

    def decode(self, features: ImageFeatures, index: int, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (P, 3, h, w) and predicted IoU (P, 3) of prompts on one image."""
        ...


class Proposer:
    """A loaded model and the rules that make candidates of its masks.

    Parameters
    ----------
    model : PromptableModel
        Encodes canvases and decodes prompts.
    settings : ProposalsSettings
        Grid, thresholds and limits.
    """

    def __init__(self, model: PromptableModel, settings: ProposalsSettings) -> None:
        self.model = model
        self.settings = settings
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """Time spent by step, since the start."""

    def propose(
        self, canvases: Sequence[NDArray[np.uint8]], placements: Sequence[Placement]
    ) -> Iterator[tuple[ScoredMasks, ScoredMasks]]:
        """Candidates, best first, and fixed masks of each image.

        Parameters
        ----------
        canvases : Sequence[ndarray of uint8, (S, S, 3)]
            At least one; RGB.
        placements : Sequence[Placement]
            Where each image lies in its canvas.

        Returns
        -------
        Iterator[tuple[ScoredMasks, ScoredMasks]]
            Up to `max_candidates` masks, and one for each of `FIXED`.
        """
        began = time.perf_counter()
        features = self.model.encode(torch.from_numpy(np.stack(canvases)))
        self.seconds["encode"] += time.perf_counter() - began
        for index, placement in enumerate(placements):
            yield self._candidates(features, index, placement), self._fixed(features, index, placement)

    def _candidates(self, features: ImageFeatures, index: int, placement: Placement) -> ScoredMasks:
        """Masks of the point grid that pass both thresholds, without near duplicates."""
        s = self.settings
        grid = point_grid(placement, s.points_per_side)
        step = self.model.prompts_per_call
        parts = [no_masks(s.canvas_px)]
        for start in range(0, len(grid), step):
            logits, predicted = self._decode(features, index, grid[start : start + step], (INSIDE,))
            good = predicted >= s.min_predicted_iou
            scored = self._score(logits[good], predicted[good], placement)
            # A mask that misses the image altogether has no stability, and with min_stability 0 it would still stay.
            parts.append(scored.take((scored.scores[:, 1] >= s.min_stability) & (scored.scores[:, 2] > 0)))
        return best_distinct(concatenate(parts), s.nms_iou, s.max_candidates)

    def _fixed(self, features: ImageFeatures, index: int, placement: Placement) -> ScoredMasks:
        """Mask of each fixed prompt: of its three the one with the highest predicted IoU, whatever its scores."""
        parts = []
        for points, labels in ((centre_point(placement), (INSIDE,)), (content_box(placement), CORNERS)):
            logits, predicted = self._decode(features, index, points, labels)
            best = predicted[0].argmax()[None]
            parts.append(self._score(logits[0, best], predicted[0, best], placement))
        return concatenate(parts)

    def _decode(
        self, features: ImageFeatures, index: int, points: NDArray[np.float32], labels: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        began = time.perf_counter()
        every = torch.tensor([labels]).expand(len(points), len(labels))
        decoded = self.model.decode(features, index, torch.from_numpy(points), every)
        self.seconds["decode"] += time.perf_counter() - began
        return decoded

    def _score(self, logits: Tensor, predicted: Tensor, placement: Placement) -> ScoredMasks:
        began = time.perf_counter()
        scored = score_masks(logits, predicted, placement, self.settings.canvas_px, self.settings.stability_offset)
        self.seconds["score"] += time.perf_counter() - began
        return scored
