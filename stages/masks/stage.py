"""Masks: one mask and one masked image for every image, from stored proposals, a supplied mask, or none.

A useless mask falls back to the whole image, so the fallback itself can tell classes apart: the supplied masks of
BUSI's class `normal` are all black, and every image of that class, and no other, is seen whole. The report warns of it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.readers import BYTES_PER_PIXEL, MAX_PIXELS, ImageSource
from manifests.types import (
    ArraySpec,
    ChunkArrays,
    ImageRow,
    ItemOutcome,
    StageIdentity,
    Status,
    UnitResult,
    expect_array,
)
from stages.base import StageContext, empty_arrays, read_each, status_array
from stages.images import Placement, composite, content, letterbox
from stages.masks.policies import (
    FROM_PROPOSALS,
    Final,
    ImageProposals,
    border_fraction,
    finish,
    usable,
    whole_image,
)
from stages.masks.settings import CROPS_TOGETHER, MasksSettings
from stages.models.card import ACTIVATION_BYTES
from stages.models.weights import WeightsFolder
from stages.shape import SHAPE, mask_shape

if TYPE_CHECKING:
    from stages.masks.ranking import Ranker

NAN = float("nan")
MOST_CANDIDATES = 256
"""Upper limit of `proposals.max_candidates`."""
LARGEST_IMAGE_BYTES = MAX_PIXELS * (BYTES_PER_PIXEL + 3)
"""One image of the readers' limit, as decoded and as RGB."""


LEDGER = ("candidates", "usable", "border_fraction", "stability", "margin")
"""Columns of the ledger: how many proposals there were and how many could be used, then what was chosen."""


class _Item(NamedTuple):
    """What one image gets, before it goes into the arrays."""

    final: Final
    masked_image: NDArray[np.uint8]
    score: float
    placement: Placement
    ledger: tuple[float, ...]


class Masks:
    """Turn one chunk of images into masks and masked images.

    Parameters
    ----------
    settings : MasksSettings
        Policy, compositing and limits.
    context : StageContext
        Fingerprint of the proposals, for the policies that use them.
    """

    name: ClassVar[str] = "masks"
    version: ClassVar[int] = 3

    def __init__(self, settings: MasksSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.ranker: Ranker | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Proposals, unless the policy makes its mask without them."""
        return ("proposals",) if self.settings.policy in FROM_PROPOSALS else ()

    def identity(self) -> StageIdentity:
        """The settings that the policy uses, the proposals' fingerprint, and the digests of the ranking model.

        Raises
        ------
        WeightsError
            If the policy ranks by a model that is unknown, or whose file was not added.
        """
        upstream = {name: self.context.upstream[name] for name in self.inputs}
        others = () if self._ranks else ("clip_model", "clip_prompts", "clip_top")
        settings = self.settings.model_dump(mode="json", exclude=set(others))
        weights = WeightsFolder().digests(self.settings.clip_model) if self._ranks else {}
        return StageIdentity(self.name, self.version, settings, weights, upstream=upstream)

    def outputs(self) -> tuple[ArraySpec, ...]:
        """Mask, masked image, score, area as a share of the image, ledger, shape, placement in the canvas, status."""
        side = self.settings.canvas_px
        return (
            ArraySpec("mask", (side, side), "bool", ("y", "x"), per_item=True),
            ArraySpec("masked_image", (side, side, 3), "uint8", ("y", "x", "channel"), per_item=True),
            ArraySpec("score", (), "float32", fill=NAN),
            ArraySpec("area_fraction", (), "float32", fill=NAN),
            ArraySpec("ledger", (len(LEDGER),), "float32", ("measure",), NAN),
            ArraySpec("shape", (len(SHAPE),), "float32", ("measure",), NAN),
            ArraySpec("placement", (4,), "int32", ("side",)),
            ArraySpec("status", (), "uint8"),
        )

    def attributes(self) -> Mapping[str, Any]:
        """Policy and compositing, for readers of the store, and the names of measures."""
        return {
            "policy": self.settings.policy,
            "compositing": self.settings.compositing,
            "ledger": list(LEDGER),
            "shape": list(SHAPE),
        }

    def projected_bytes(self, chunk_items: int) -> int:
        """Results and upstream candidates of the chunk, one large image while it is scaled, and what ranks crops."""
        pixels = self.settings.canvas_px**2
        from_upstream = (MOST_CANDIDATES + 2) * pixels // 8 if self.inputs else 0
        ranking = CROPS_TOGETHER * (ACTIVATION_BYTES + 4 * pixels) if self._ranks else 0
        return chunk_items * (4 * pixels + from_upstream) + LARGEST_IMAGE_BYTES + ranking

    def load(self, device: str) -> None:
        """Load the model of `clip-rank`; the other policies have none.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        if self._ranks:
            from stages.masks.ranking import Ranker

            self.ranker = Ranker(self.settings, device)

    def canary(self) -> NDArray[np.float32] | None:
        """What the CLIP that ranks candidates makes of the canary, (D,); None without one."""
        return None if self.ranker is None else self.ranker.canary()

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:
        """Compute one chunk; an image that cannot be read, or failed upstream, is a failed row.

        Parameters
        ----------
        rows : Sequence[ImageRow]
            Rows of the chunk.
        source : ImageSource
            Reads images and supplied masks.
        upstream : Mapping[str, ChunkArrays]
            Arrays of `proposals` for these rows, where the policy needs them.

        Returns
        -------
        UnitResult
            One entry a row; images whose mask is missing, empty, tiny or full have status FALLBACK and a reason.

        Raises
        ------
        ValueError
            If the proposals belong to other images, or live on another canvas.
        """
        started = time.perf_counter()
        arrays = empty_arrays(self.outputs(), len(rows))
        proposals = self._checked(upstream["proposals"], len(rows)) if self.inputs else None
        position = {row.row: index for index, row in enumerate(rows)}

        def fill(row: ImageRow) -> ItemOutcome:
            index = position[row.row]
            item = self._item(row, source, proposals, index)
            _store(arrays, index, item)
            status = Status.FALLBACK if item.final.reason else Status.OK
            return ItemOutcome(row.row, row.image_id, status, item.final.reason, item.final.detail)

        filled, outcomes = read_each(rows, fill, None if proposals is None else proposals["status"])
        items = tuple(done or outcome for done, outcome in zip(filled, outcomes, strict=True))
        arrays["status"] = status_array(items)
        return UnitResult(arrays, items, {"masks": time.perf_counter() - started})

    def _checked(self, proposals: ChunkArrays, n_items: int) -> ChunkArrays:
        side = self.settings.canvas_px
        expect_array("proposals.candidates", proposals["candidates"], (n_items, None, side, side // 8), "uint8")
        expect_array("proposals.candidate_scores", proposals["candidate_scores"], (n_items, None, 4), "float32")
        expect_array("proposals.fixed", proposals["fixed"], (n_items, 2, side, side // 8), "uint8")
        expect_array("proposals.fixed_scores", proposals["fixed_scores"], (n_items, 2, 4), "float32")
        return proposals

    @property
    def _ranks(self) -> bool:
        return self.settings.policy == "clip-rank"

    def _item(self, row: ImageRow, source: ImageSource, proposals: ChunkArrays | None, index: int) -> _Item:
        canvas, placement = letterbox(source.read(row), self.settings.canvas_px)
        counts, chosen = (NAN, NAN), None
        if proposals is not None:
            of_image = self._proposals(proposals, index, placement)
            if self.ranker is not None:
                similarity = self.ranker.similarity(canvas, of_image, placement)
                of_image = dataclasses.replace(of_image, similarity=similarity)
            chosen = FROM_PROPOSALS[self.settings.policy](of_image, self.settings)
            final = finish(chosen.mask, placement, self.settings)
            scores = of_image.candidate_scores
            counts = float((~np.isnan(scores[:, 0])).sum()), float(usable(scores, self.settings).sum())
        elif self.settings.policy == "supplied":
            final = self._supplied(row, source, placement)
        else:
            final = whole_image(content(placement, self.settings.canvas_px))
        masked_image = composite(canvas, final.mask, self.settings.compositing, placement)
        stability, margin = (chosen.stability, chosen.margin) if chosen else (NAN, NAN)
        ledger = (*counts, border_fraction(final.mask, placement), stability, margin)
        score = chosen.score if chosen else 1.0
        return _Item(final, masked_image, NAN if final.reason else score, placement, ledger)

    def _proposals(self, proposals: ChunkArrays, index: int, placement: Placement) -> ImageProposals:
        stored = Placement.of(proposals["placement"][index])
        if stored != placement:
            raise ValueError(f"proposals.placement: expected {placement}, got {stored}")
        names = ("candidates", "candidate_scores", "fixed", "fixed_scores")
        return ImageProposals(*(proposals[name][index] for name in names))

    def _supplied(self, row: ImageRow, source: ImageSource, placement: Placement) -> Final:
        if not row.mask_path:
            whole = content(placement, self.settings.canvas_px)
            return whole_image(whole, "mask.missing", "no mask was supplied for this image")
        mask, _ = letterbox(source.read_mask(row), self.settings.canvas_px)
        return finish(mask, placement, self.settings)


def _store(arrays: dict[str, NDArray[Any]], index: int, item: _Item) -> None:
    arrays["mask"][index] = item.final.mask
    arrays["masked_image"][index] = item.masked_image
    arrays["score"][index] = item.score
    arrays["area_fraction"][index] = item.final.area_fraction
    arrays["ledger"][index] = item.ledger
    arrays["shape"][index] = mask_shape(item.final.mask, item.placement)
    arrays["placement"][index] = item.placement.array()
