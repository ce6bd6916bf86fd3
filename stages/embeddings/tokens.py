"""Tokens: what a model makes of each part of the unmasked image, kept so that new masks need no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.readers import ImageSource
from manifests.types import ArraySpec, ChunkArrays, ImageRow, ItemOutcome, StageIdentity, UnitResult
from stages.base import StageContext, empty_arrays, read_each, status_array
from stages.batches import Batches
from stages.canary import canary_image
from stages.embeddings.settings import TokensSettings
from stages.images import Placement, letterbox
from stages.models.card import ACTIVATION_BYTES, feature_dims, model_card, token_grid
from stages.models.weights import WeightsFolder
from stages.views import judge, model_box

if TYPE_CHECKING:
    from stages.models.clip import ClipModel


class Tokens:
    """Encode every image of a chunk once, whatever its mask.

    Parameters
    ----------
    settings : TokensSettings
        Model and preprocessing.
    context : StageContext
        Images a batch.
    """

    name: ClassVar[str] = "tokens"
    version: ClassVar[int] = 1

    def __init__(self, settings: TokensSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.model: ClipModel | None = None
        self.batches = Batches(context.batch_items)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Nothing but the images."""
        return ()

    def identity(self) -> StageIdentity:
        """Settings and digests of the model's weights."""
        weights = WeightsFolder().digests(self.settings.model)
        return StageIdentity(self.name, self.version, self.settings.model_dump(mode="json"), weights)

    def outputs(self) -> tuple[ArraySpec, ...]:
        """Tokens (n, D) float16 as the model gives them, the image's unit vector (D,) float32, status."""
        s, nan = self.settings, float("nan")
        n, dim = int(np.prod(token_grid(s.model))), feature_dims(s.model)[s.features]
        return (
            ArraySpec("tokens", (n, dim), "float16", ("token", "feature"), nan, per_item=True),
            ArraySpec("image", (dim,), "float32", ("feature",), nan),
            ArraySpec("status", (), "uint8"),
        )

    def attributes(self) -> Mapping[str, Any]:
        """The model's card, how images became the model's square, and the grid."""
        s = self.settings
        card = model_card(s.model, s.precision, s.features)
        return {"card": card, "features": s.features, "resize": s.resize, "grid": list(token_grid(s.model))}

    def projected_bytes(self, chunk_items: int) -> int:
        """The results, and two batches of canvases and activations: one is read while the other is encoded."""
        row = sum(array.item_bytes for array in self.outputs())
        return chunk_items * 3 * row + self.context.batch_items * (ACTIVATION_BYTES + 8 * self.settings.canvas_px**2)

    def load(self, device: str) -> None:
        """Load the image tower.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        from stages.models.clip import load_clip

        self.model = load_clip(self.settings.model, device, self.settings.precision, compiled=self.context.compiled)

    def canary(self) -> NDArray[np.float32] | None:
        """What the loaded image tower makes of the canary, (D,)."""
        if self.model is None:
            return None
        encoding = self.model.encode_image([canary_image()], self.settings.features, tokens=False)
        return np.asarray(encoding.vectors[0])

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:  # noqa: ARG002  it has no inputs
        """Encode one chunk, a batch at a time."""
        s, size, model = self.settings, self.context.batch_items, self.model
        if model is None:
            raise RuntimeError("load() comes before process()")
        arrays = empty_arrays(self.outputs(), len(rows))

        def read(start: int) -> tuple[list[tuple[NDArray[np.uint8], Placement] | None], list[ItemOutcome]]:
            return read_each(rows[start : start + size], lambda row: letterbox(source.read(row), s.canvas_px))

        def encode(ready: Mapping[int, tuple[NDArray[np.uint8], Placement]]) -> None:
            images = [c[model_box(p, s.canvas_px, s.resize).slices] for c, p in ready.values()]
            encoding = model.encode_image(images, s.features, tokens=True)
            arrays["tokens"][list(ready)] = np.asarray(encoding.tokens)
            arrays["image"][list(ready)] = np.asarray(encoding.vectors)

        items, seconds = self.batches.run(len(rows), read, encode, lambda outcome, at: judge(outcome, arrays, at))
        arrays["status"] = status_array(items)
        return UnitResult(arrays, tuple(items), seconds)
