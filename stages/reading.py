"""Images and their masks brought together, a batch of a chunk at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
from manifests.readers import ImageSource
from manifests.types import ChunkArrays, ImageRow, ItemOutcome, Status, expect_array
from stages.base import read_each
from stages.images import Placement, content, fit_mask, letterbox
from stages.views import MaskedCanvas, donors


@dataclass(frozen=True, slots=True)
class MaskedReader:
    """Reads the images of one chunk under their masks, S = canvas side.

    Raises
    ------
    ValueError
        If an array of the masks has another shape or type.
    """

    rows: Sequence[ImageRow]
    """All rows of the chunk, n."""
    source: ImageSource
    masks: ChunkArrays
    """What the masks stage committed: mask (n, S, S) bool, masked_image (n, S, S, 3) uint8, placement, status."""
    canvas_px: int
    """S, in pixels."""
    needs_source: bool
    """Whether a view shows more than the stored masked image."""
    shuffled: bool
    """Whether a view shows an image under another's mask."""
    lenders: list[int] = field(init=False)
    """Where `shuffled`, the row whose mask each row is shown under; else empty."""

    def __post_init__(self) -> None:
        n, side = len(self.rows), self.canvas_px
        expect_array("masks.mask", self.masks["mask"], (n, side, side), "bool")
        expect_array("masks.masked_image", self.masks["masked_image"], (n, side, side, 3), "uint8")
        groups, has_mask = [row.group_id for row in self.rows], self.masks["status"] == Status.OK
        object.__setattr__(self, "lenders", donors(groups, has_mask) if self.shuffled else [])

    def read(
        self, start: int, size: int, usable: NDArray[np.uint8] | None = None
    ) -> tuple[list[MaskedCanvas | None], list[ItemOutcome]]:
        """Bring `size` rows from `start` on and their masks together; what cannot be read is None and a failed row.

        Parameters
        ----------
        start, size : int
            Part of the chunk.
        usable : ndarray of uint8, (n,), optional
            `Status` of each row upstream, where more than the masks' counts.
        """
        batch, status = self.rows[start : start + size], self.masks["status"] if usable is None else usable
        positions = {row.row: start + i for i, row in enumerate(batch)}
        shown, outcomes = read_each(
            batch, lambda row: self._canvas(row, positions[row.row]), status[start : start + len(batch)]
        )
        for i, outcome in enumerate(outcomes):
            if outcome.status == Status.OK and status[start + i] == Status.FALLBACK:
                detail = "the mask was not usable; every view shows the whole image"
                outcomes[i] = ItemOutcome(outcome.row, outcome.image_id, Status.FALLBACK, "mask.fallback", detail)
        return shown, outcomes

    def _canvas(self, row: ImageRow, at: int) -> MaskedCanvas:
        placement = Placement.of(self.masks["placement"][at])
        canvas: NDArray[np.uint8] | None = None
        if self.needs_source:
            canvas, found = letterbox(self.source.read(row), self.canvas_px)
            if found != placement:
                raise ReadError("placement.changed", f"mask made for {placement}, image now at {found}")
        mask = self.masks["mask"][at]
        donated: NDArray[np.bool_] | None = None
        if self.lenders:
            lender = self.lenders[at]
            lent = self.masks["mask"][lender] if lender != at else mask[::-1, ::-1]
            donated = fit_mask(lent, Placement.of(self.masks["placement"][lender]), placement)
        if self.masks["status"][at] == Status.FALLBACK or not mask.any():
            mask = donated = content(placement, self.canvas_px)
        shown = self.masks["masked_image"][at]
        return MaskedCanvas(at, canvas, shown, mask, placement, donated, int(row.image_id, 16))
