"""One batch of canvases through SAM2: the candidates of a point grid, and the masks of two fixed prompts.

Coarse to fine, a grid with half the points along each side comes first. A point of the full grid is worth asking where
the model thought a mask possible, between the coarse points, and where no small mask that it is sure of lies yet: a
large one may hold others. Last come the boxes of what was found, since a box says more than a point.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.images import Placement
from stages.models.sam2 import all_three, best_of_three, single_mask
from stages.models.sam2_card import CORNERS, INSIDE, NOTHING
from stages.proposals.bits import unpack
from stages.proposals.candidates import ScoredMasks, best, concatenate, distinct, no_masks, score_masks
from stages.proposals.prompts import centre_point, content_box, point_grid
from stages.proposals.regions import cleaned
from stages.proposals.settings import ProposalsSettings

if TYPE_CHECKING:
    from stages.models.sam2 import Decoded, ImageFeatures

SURE: Final = 0.5
"""Predicted IoU from which on a mask hides the points of the full grid that lie in it."""
MOST_HIDDEN: Final = 0.25
"""Share of the image that a mask may cover at most, to hide points."""
HOPE: Final = 0.75
"""Share of `min_predicted_iou` that the coarse points around must reach, for a point of the full grid to be asked."""


class PromptableModel(Protocol):
    """What the stage needs of a loaded SAM2; see `stages.models.sam2.Segmenter`."""

    @property
    def device(self) -> torch.device:
        """Where masks come out."""
        ...

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
        ways = {"dense": self._dense, "coarse-to-fine": self._sparse, "unprompted": self._unprompted}
        found = ways[s.prompting](features, placements)
        middles, boxes = (np.stack([f(p) for p in placements]) for f in (centre_point, content_box))
        at_middle = self._masks(features, middles, (INSIDE,), placements, best_of_three).masks
        in_box = self._masks(features, boxes, CORNERS, placements, single_mask).masks
        for placement, masks, *fixed in zip(placements, found, at_middle, in_box, strict=True):
            clean = cleaned(distinct(masks, s.nms_iou), placement, s.min_region_px)
            yield (
                best(distinct(clean, s.nms_iou), s.max_candidates),
                cleaned(concatenate(fixed), placement, s.min_region_px),
            )

    def _dense(self, features: ImageFeatures, placements: Sequence[Placement]) -> list[ScoredMasks]:
        grids = np.stack([self._grid(p, self.settings.points_per_side) for p in placements])
        return self._masks(features, grids, (INSIDE,), placements, self._confident, self.settings.min_stability).masks

    def _unprompted(self, features: ImageFeatures, placements: Sequence[Placement]) -> list[ScoredMasks]:
        nowhere = np.zeros((len(placements), 1, 1, 2), np.float32)
        return self._masks(features, nowhere, (NOTHING,), placements, single_mask, min_stability=0.0).masks

    def _sparse(self, features: ImageFeatures, placements: Sequence[Placement]) -> list[ScoredMasks]:
        """Coarse to fine."""
        s, per_side = self.settings, -(-self.settings.points_per_side // 2)
        coarse = np.stack([self._grid(p, per_side) for p in placements])
        found = self._masks(features, coarse, (INSIDE,), placements, self._confident, s.min_stability)
        hope = F.interpolate(found.hope.view(-1, 1, per_side, per_side), (s.points_per_side,) * 2, mode="bilinear")
        promising = (hope > HOPE * s.min_predicted_iou).flatten(1).cpu().numpy()
        return [
            self._finer(features.of(i), found.masks[i], self._grid(p, s.points_per_side)[promising[i]], p)
            for i, p in enumerate(placements)
        ]

    def _finer(
        self, features: ImageFeatures, coarse: ScoredMasks, points: NDArray[np.float32], placement: Placement
    ) -> ScoredMasks:
        """Ask one image for those points, (P, 1, 2), that nothing hides, then for the boxes of all that was found."""
        s = self.settings
        hiding = coarse.take((coarse.scores[:, 0] >= SURE) & (coarse.scores[:, 2] <= MOST_HIDDEN))
        x, y = points[:, 0].astype(int).T
        hidden = unpack(hiding.packed)[:, y, x].any(dim=0).cpu().numpy()
        asked = self._masks(features, points[None, ~hidden], (INSIDE,), [placement], self._confident, s.min_stability)
        clicked = concatenate([coarse, *asked.masks])
        boxes = distinct(clicked, s.nms_iou).boxes.view(1, -1, 2, 2).cpu().numpy()
        asked = self._masks(features, boxes, CORNERS, [placement], self._confident_single, s.min_stability)
        return concatenate([clicked, *asked.masks])

    def _confident(self, predicted_iou: Tensor) -> Tensor:
        return all_three(predicted_iou) & (predicted_iou > self.settings.min_predicted_iou)

    def _confident_single(self, predicted_iou: Tensor) -> Tensor:
        return single_mask(predicted_iou) & (predicted_iou > self.settings.min_predicted_iou)

    def _masks(
        self,
        features: ImageFeatures,
        points: NDArray[np.float32],
        labels: tuple[int, ...],
        placements: Sequence[Placement],
        wanted: Callable[[Tensor], Tensor],
        min_stability: float = -1.0,
    ) -> _Found:
        """Scored masks of prompts, (B, P, n, 2), by image; a mask that misses its image is left out of candidates."""
        s, side = self.settings, self.settings.canvas_px
        step = max(1, self.model.prompts_per_call // len(points))
        parts: list[list[ScoredMasks]] = [[no_masks(side, self.model.device)] for _ in placements]
        hope = [torch.zeros((len(points), 0))]
        for start in range(0, points.shape[1], step):
            block = torch.from_numpy(points[:, start : start + step])
            began = time.perf_counter()
            decoded = self.model.decode(features, block, torch.tensor(labels).expand(block.shape[:3]), wanted)
            decoded_at = time.perf_counter()
            hope.append(decoded.predicted_iou.amax(dim=2).cpu())
            counts = decoded.wanted.flatten(1).sum(dim=1).tolist()
            scores = torch.split_with_sizes(decoded.predicted_iou[decoded.wanted], counts)
            for index, logits in enumerate(torch.split_with_sizes(decoded.logits, counts)):
                scored = score_masks(logits, scores[index], placements[index], side, s.stability_offset, min_stability)
                # A mask that misses the image altogether has no stability, and with min_stability 0 it would stay.
                parts[index].append(scored.take(scored.scores[:, 2] > 0) if min_stability >= 0 else scored)
            self.seconds["decode"] += decoded_at - began
            self.seconds["score"] += time.perf_counter() - decoded_at
        return _Found([concatenate(p) for p in parts], torch.cat(hope, dim=1))


class _Found(NamedTuple):
    masks: list[ScoredMasks]
    """By image."""
    hope: Tensor
    """(B, P) float32, the highest predicted IoU of each prompt; on the CPU."""
