"""Grids: features of a segmenter's frozen encoder at several depths, pooled to a few cells, once for every image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.readers import ImageSource
from manifests.types import ArraySpec, ChunkArrays, ImageRow, ItemOutcome, StageIdentity, Status, UnitResult
from stages.base import StageContext, empty_arrays, read_each, status_array
from stages.batches import Batches
from stages.images import letterbox
from stages.models.sam2_card import ENCODER_BYTES_PER_PIXEL, depth_channels, sam2_entry, segmenter_card
from stages.models.weights import WeightsFolder
from stages.pictures.settings import GridsSettings
from stages.views import model_box

if TYPE_CHECKING:
    from stages.models.sam2 import Segmenter


class Grids:
    """Encode every image of a chunk once, whatever its mask.

    Parameters
    ----------
    settings : GridsSettings
        Model and cells.
    context : StageContext
        Images a batch.
    """

    name: ClassVar[str] = "grids"
    version: ClassVar[int] = 1

    def __init__(self, settings: GridsSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.model: Segmenter | None = None
        self.batches = Batches(context.batch_items)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Nothing but the images."""
        return ()

    def identity(self) -> StageIdentity:
        """Settings and digests of the model's weights.

        Raises
        ------
        WeightsError
            If the model is unknown, is neither SAM nor SAM2, or its file was not added.
        """
        weights = WeightsFolder().digests(sam2_entry(self.settings.model).name)
        return StageIdentity(self.name, self.version, self.settings.model_dump(mode="json"), weights)

    def outputs(self) -> tuple[ArraySpec, ...]:
        """One array a depth, early to late, (C, g, g) float16, and status; failed rows hold NaN."""
        s = self.settings
        depths = (
            ArraySpec(f"depth{i}", (channels, s.grid, s.grid), "float16", ("channel", "y", "x"), float("nan"))
            for i, channels in enumerate(depth_channels(s.model))
        )
        return (*depths, ArraySpec("status", (), "uint8"))

    def attributes(self) -> Mapping[str, Any]:
        """The model's card and how images became its square."""
        card = segmenter_card(self.settings.model, self.settings.precision)
        return {"card": card, "grid": self.settings.grid, "resize": self.settings.resize}

    def projected_bytes(self, chunk_items: int) -> int:
        """The results, and two batches of canvases and one of activations."""
        s = self.settings
        row = 2 * 2 * s.grid**2 * sum(depth_channels(s.model))
        seen = sam2_entry(s.model).image_px ** 2
        return chunk_items * row + self.context.batch_items * (8 * s.canvas_px**2 + seen * ENCODER_BYTES_PER_PIXEL)

    def load(self, device: str) -> None:
        """Load the segmenter.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        from stages.models.sam2 import load_segmenter

        self.model = load_segmenter(self.settings.model, device, self.settings.precision)

    def canary(self) -> NDArray[np.float32] | None:
        """What the loaded encoder makes of the canary, its depths joined."""
        from stages.models.sam2_depths import encode_canary

        return None if self.model is None else encode_canary(self.model)

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:  # noqa: ARG002  it has no inputs
        """Encode one chunk, a batch at a time."""
        from stages.models.sam2_depths import encode_depths

        s, size, model = self.settings, self.context.batch_items, self.model
        if model is None:
            raise RuntimeError("load() comes before process()")
        arrays = empty_arrays(self.outputs(), len(rows))

        def seen(row: ImageRow) -> NDArray[np.uint8]:
            canvas, placement = letterbox(source.read(row), s.canvas_px)
            part: NDArray[np.uint8] = canvas[model_box(placement, s.canvas_px, s.resize).slices]
            return part

        def read(start: int) -> tuple[list[NDArray[np.uint8] | None], list[ItemOutcome]]:
            return read_each(rows[start : start + size], seen)

        def encode(ready: Mapping[int, NDArray[np.uint8]]) -> None:
            for i, depth in enumerate(encode_depths(model, list(ready.values()), s.grid)):
                arrays[f"depth{i}"][list(ready)] = depth

        items, seconds = self.batches.run(len(rows), read, encode, lambda o, at: self._judged(o, arrays, at))
        arrays["status"] = status_array(items)
        return UnitResult(arrays, tuple(items), seconds)

    def _judged(self, outcome: ItemOutcome, arrays: Mapping[str, NDArray[Any]], at: int) -> ItemOutcome:
        """An image whose features are not finite is a failed row that holds NaN."""
        depths = [array for name, array in arrays.items() if name != "status"]
        if outcome.status == Status.FAILED or all(np.isfinite(depth[at]).all() for depth in depths):
            return outcome
        for depth in depths:
            depth[at] = np.nan
        detail = "the encoder gave features that are not finite, or too large for float16"
        return ItemOutcome(outcome.row, outcome.image_id, Status.FAILED, "grid.nonfinite", detail)
