"""One batch of canvases through SAM2: the candidates of a point grid, and the masks of two fixed prompts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.images import Placement
from stages.models.sam2 import all_three, best_of_three, single_mask
from stages.proposals.candidates import ScoredMasks, best, concatenate, distinct, no_masks, score_masks
from stages.proposals.prompts import centre_point, content_box, point_grid
from stages.proposals.settings import ProposalsSettings

if TYPE_CHECKING:
    from stages.models.sam2 import Decoded, ImageFeatures

INSIDE: Final = 1
CORNERS: Final = (2, 3)
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

    def decode(
        self, features: ImageFeatures, points: Tensor, labels: Tensor, wanted: Callable[[Tensor], Tensor]
    ) -> Decoded:
        """Wanted masks of P prompts on each image."""
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
        self._grid = lru_cache(point_grid)

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
        s = self.settings
        grids = np.stack([self._grid(p, s.points_per_side) for p in placements])
        found = self._masks(features, grids, (INSIDE,), placements, self._confident, s.min_stability)
        middles, boxes = (np.stack([f(p) for p in placements]) for f in (centre_point, content_box))
        at_middle = self._masks(features, middles, (INSIDE,), placements, best_of_three)
        in_box = self._masks(features, boxes, CORNERS, placements, single_mask)
        for masks, *fixed in zip(found, at_middle, in_box, strict=True):
            yield best(distinct(masks, s.nms_iou), s.max_candidates), concatenate(fixed)

    def _confident(self, predicted_iou: Tensor) -> Tensor:
        return all_three(predicted_iou) & (predicted_iou > self.settings.min_predicted_iou)

    def _masks(
        self,
        features: ImageFeatures,
        points: NDArray[np.float32],
        labels: tuple[int, ...],
        placements: Sequence[Placement],
        wanted: Callable[[Tensor], Tensor],
        min_stability: float = -1.0,
    ) -> list[ScoredMasks]:
        """Scored masks of prompts, (B, P, n, 2), by image; a mask that misses its image is left out of candidates."""
        s, side = self.settings, self.settings.canvas_px
        step = max(1, self.model.prompts_per_call // len(points))
        parts: list[list[ScoredMasks]] = [[] for _ in placements]
        for start in range(0, points.shape[1], step):
            block = torch.from_numpy(points[:, start : start + step])
            began = time.perf_counter()
            decoded = self.model.decode(features, block, torch.tensor(labels).expand(block.shape[:3]), wanted)
            decoded_at = time.perf_counter()
            counts = decoded.wanted.flatten(1).sum(dim=1).tolist()
            scores = torch.split_with_sizes(decoded.predicted_iou[decoded.wanted], counts)
            for index, logits in enumerate(torch.split_with_sizes(decoded.logits, counts)):
                scored = score_masks(logits, scores[index], placements[index], side, s.stability_offset, min_stability)
                # A mask that misses the image altogether has no stability, and with min_stability 0 it would stay.
                parts[index].append(scored.take(scored.scores[:, 2] > 0) if min_stability >= 0 else scored)
            self.seconds["decode"] += decoded_at - began
            self.seconds["score"] += time.perf_counter() - decoded_at
        return [concatenate(p) if p else no_masks(side) for p in parts]
