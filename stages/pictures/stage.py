"""Pictures: what a classifier that is trained end to end sees of every image, so that no training reads a file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from manifests.readers import ImageSource
from manifests.types import ArraySpec, ChunkArrays, ImageRow, ItemOutcome, StageIdentity, UnitResult
from stages.base import StageContext, ahead, empty_arrays, status_array
from stages.pictures.settings import PicturesSettings
from stages.reading import MaskedReader
from stages.views import MaskedCanvas


class Pictures:
    """Bring one view of every image of a chunk to one size.

    Parameters
    ----------
    settings : PicturesSettings
        View and size.
    context : StageContext
        Fingerprint of the masks; images a batch.
    """

    name: ClassVar[str] = "pictures"
    version: ClassVar[int] = 1

    def __init__(self, settings: PicturesSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context

    @property
    def inputs(self) -> tuple[str, ...]:
        """The masks, always: they also say which images could be read."""
        return ("masks",)

    def identity(self) -> StageIdentity:
        """Settings, and the masks' fingerprint."""
        upstream = {name: self.context.upstream[name] for name in self.inputs}
        return StageIdentity(self.name, self.version, self.settings.model_dump(mode="json"), upstream=upstream)

    def outputs(self) -> tuple[ArraySpec, ...]:
        """Pictures, (px, px, 3) uint8, and status; failed rows are black."""
        shape = (self.settings.image_px, self.settings.image_px, 3)
        return (
            ArraySpec("picture", shape, "uint8", ("y", "x", "channel"), per_item=True),
            ArraySpec("status", (), "uint8"),
        )

    def attributes(self) -> Mapping[str, Any]:
        """How images became squares."""
        s = self.settings
        return {"view": s.view, "image_px": s.image_px, "resize": s.resize, "interpolation": s.interpolation}

    def projected_bytes(self, chunk_items: int) -> int:
        """The chunk of masks, the results, and two batches of canvases: one is read while the other is resized."""
        s = self.settings
        row = 4 * s.canvas_px**2 + 2 * 3 * s.image_px**2
        return chunk_items * row + self.context.batch_items * 16 * s.canvas_px**2

    def load(self, device: str) -> None:
        """Nothing to load."""

    def canary(self) -> None:
        """None: there is no model."""

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:
        """Compose and resize one chunk, a batch at a time."""
        import torch

        from stages.models.clip import resize

        s, size = self.settings, self.context.batch_items
        needs_source, shuffled = s.view != s.compositing, s.view == "shuffled"
        reader = MaskedReader(rows, source, upstream["masks"], s.canvas_px, needs_source, shuffled)
        arrays = empty_arrays(self.outputs(), len(rows))
        items: list[ItemOutcome] = []
        seconds: Counter[str] = Counter()

        def read(start: int) -> tuple[list[MaskedCanvas | None], list[ItemOutcome]]:
            return reader.read(start, size)

        began = time.perf_counter()
        for shown, outcomes in ahead(read, range(0, len(rows), size)):
            waited = time.perf_counter()
            for canvas in filter(None, shown):
                seen = canvas.view(s.view, s.compositing)[canvas.box(s.view, s.resize).slices]
                square = resize(torch.from_numpy(np.ascontiguousarray(seen)), s.image_px, s.interpolation)
                arrays["picture"][canvas.position] = square.permute(1, 2, 0).numpy()
            items += outcomes
            seconds.update({"read": waited - began, "resize": time.perf_counter() - waited})
            began = time.perf_counter()
        arrays["status"] = status_array(items)
        return UnitResult(arrays, tuple(items), dict(seconds))
