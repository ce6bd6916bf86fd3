"""Embeddings: one CLIP vector an image and view, and tokens where asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.readers import ImageSource
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
from stages.base import StageContext, empty_arrays, status_array
from stages.batches import Batches
from stages.canary import canary_image
from stages.embeddings.settings import EmbeddingsSettings
from stages.models.card import ACTIVATION_BYTES, feature_dims, model_card, token_grid
from stages.models.weights import WeightsFolder
from stages.reading import MaskedReader
from stages.shape import SHAPE
from stages.views import TOKEN_VIEWS, MaskedCanvas, judge, pool

if TYPE_CHECKING:
    from stages.models.clip import ClipModel
    from stages.models.towers import Bias


class Embeddings:
    """Encode every asked-for view of every image of a chunk.

    Parameters
    ----------
    settings : EmbeddingsSettings
        Model, views and preprocessing.
    context : StageContext
        Fingerprint of the masks; images a batch.
    """

    name: ClassVar[str] = "embeddings"
    version: ClassVar[int] = 3

    def __init__(self, settings: EmbeddingsSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.model: ClipModel | None = None
        self.batches = Batches(context.batch_items)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The masks, always: they also say which images could be read; and tokens where they are kept."""
        return ("masks", "tokens") if self.settings.tokens else ("masks",)

    def identity(self) -> StageIdentity:
        """Settings, digests of the model's weights, and the masks' fingerprint."""
        return StageIdentity(
            self.name,
            self.version,
            self.settings.model_dump(mode="json"),
            WeightsFolder().digests(self.settings.model),
            {name: self.context.upstream[name] for name in self.inputs},
        )

    def outputs(self) -> tuple[ArraySpec, ...]:
        """Vectors (V, D) float32, the mask's shape, status; failed rows hold NaN."""
        dim = feature_dims(self.settings.model)[self.settings.features]
        nan = float("nan")
        return (
            ArraySpec("image", (len(self.settings.views), dim), "float32", ("view", "feature"), nan),
            ArraySpec("shape", (len(SHAPE),), "float32", ("measure",), nan),
            ArraySpec("status", (), "uint8"),
        )

    def attributes(self) -> Mapping[str, Any]:
        """Names of the views in order, the model's card, and how images became the model's square."""
        s = self.settings
        return {
            "views": list(s.views),
            "shape": list(SHAPE),
            "card": model_card(s.model, s.precision, s.features),
            "features": s.features,
            "resize": s.resize,
            "grid": list(token_grid(s.model)),
        }

    def projected_bytes(self, chunk_items: int) -> int:
        """The chunk of masks and tokens, the results, and one batch of canvases and activations."""
        pixels = self.settings.canvas_px**2
        row = sum(array.item_bytes for array in self.outputs())
        # Canvases of two batches: the next one is read while this one is encoded.
        batch = self.context.batch_items * (ACTIVATION_BYTES + 16 * pixels)
        cells = int(np.prod(token_grid(self.settings.model))) if self.settings.tokens else 0
        tokens = 2 * cells * feature_dims(self.settings.model)[self.settings.features]
        return chunk_items * (4 * pixels + 3 * row + tokens) + batch

    def load(self, device: str) -> None:
        """Load the image tower, unless every view is pooled from kept tokens.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        from stages.models.clip import load_clip

        s = self.settings
        if not self._passes:
            return
        self.model = load_clip(s.model, device, s.precision, compiled=self.context.compiled)

    def canary(self) -> NDArray[np.float32] | None:
        """What the loaded image tower makes of the canary, (D,); None where no tower is needed."""
        if self.model is None:
            return None
        encoding = self.model.encode_image([canary_image()], self.settings.features, tokens=False)
        return np.asarray(encoding.vectors[0])

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:
        """Embed one chunk, a batch at a time; each view is one pass, and pooled views share that of `original`."""
        masks, tokens = upstream["masks"], upstream["tokens"] if self.settings.tokens else None
        expect_array("masks.shape", masks["shape"], (len(rows), len(SHAPE)), "float32")
        arrays = empty_arrays(self.outputs(), len(rows))
        shuffled = any("shuffled" in view for view in self.settings.views)
        reader = MaskedReader(rows, source, masks, self.settings.canvas_px, self._needs_source, shuffled)
        usable = masks["status"].copy()
        if tokens is not None:
            usable[tokens["status"] == Status.FAILED] = Status.FAILED

        def read(start: int) -> tuple[list[MaskedCanvas | None], list[ItemOutcome]]:
            return reader.read(start, self.context.batch_items, usable)

        def encode(ready: Mapping[int, MaskedCanvas]) -> None:
            at = list(ready)
            kept = None if tokens is None else {name: tokens[name][at] for name in ("tokens", "image")}
            self._encode(list(ready.values()), arrays, kept)
            arrays["shape"][at] = masks["shape"][at]

        items, seconds = self.batches.run(len(rows), read, encode, lambda outcome, at: judge(outcome, arrays, at))
        arrays["status"] = status_array(items)
        return UnitResult(arrays, tuple(items), seconds)

    @property
    def _needs_source(self) -> bool:
        return any(v != self.settings.compositing for v in self._passes)

    @property
    def _pooled(self) -> list[str]:
        return [v for v in self.settings.views if v in TOKEN_VIEWS]

    @property
    def _passes(self) -> list[str]:
        """Views that are encoded; `original` also where only its tokens are needed, but not where they are kept."""
        views: list[str] = [v for v in self.settings.views if v not in TOKEN_VIEWS]
        if self.settings.tokens:
            return [v for v in views if v != "original"]
        return [*views, "original"] if self._pooled and "original" not in views else views

    def _encode(self, shown: Sequence[MaskedCanvas], arrays: dict[str, NDArray[Any]], kept: ChunkArrays | None) -> None:
        """Fill the rows of one batch; `kept` are its tokens and original vectors, where they are kept."""
        s = self.settings
        vectors: dict[str, NDArray[np.float32]] = {}
        if kept is not None:
            vectors["original"] = kept["image"]
            self._pool(shown, kept["tokens"], vectors)
        for view in self._passes:
            if self.model is None:
                raise RuntimeError("load() comes before process()")
            images = [c.view(view, s.compositing)[c.box(view, s.resize).slices] for c in shown]
            wanted = kept is None and view == "original" and bool(self._pooled)
            more: dict[str, Any] = {"bias": outside_bias(s, shown)} if view == "attn-bias" else {}
            encoding = self.model.encode_image(images, s.features, tokens=wanted, **more)
            vectors[view] = np.asarray(encoding.vectors)
            if encoding.tokens is not None:
                self._pool(shown, np.asarray(encoding.tokens), vectors)
        arrays["image"][[c.position for c in shown]] = np.stack([vectors[v] for v in s.views], axis=1)

    def _pool(
        self, shown: Sequence[MaskedCanvas], tokens: NDArray[np.floating], vectors: dict[str, NDArray[np.float32]]
    ) -> None:
        """Add the pooled views to the vectors, which hold `original`."""
        grid = token_grid(self.settings.model)
        for name in self._pooled:
            weights = np.stack([c.token_weights(name, self.settings.resize, grid) for c in shown])
            vectors[name] = pool(tokens, weights, vectors["original"])


def outside_bias(settings: EmbeddingsSettings, shown: Sequence[MaskedCanvas]) -> Bias:
    """What `attn-bias` gives the model beside the images: less attention to what lies outside their masks.

    Nothing is taken off where the mask is the whole image, as where it fell back: not from the padding either.
    """
    import torch

    from stages.models.towers import Bias

    grid = token_grid(settings.model)
    outside = np.stack([1 - c.token_weights("roi", settings.resize, grid) for c in shown])
    outside[[bool(c.mask[c.placement.slices].all()) for c in shown]] = 0
    return Bias(torch.from_numpy(-settings.attention_bias * outside), settings.attention_blocks)
