"""Embeddings: one CLIP vector an image and view, and tokens where asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ReadError
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
from stages.base import StageContext, ahead, empty_arrays, read_each, status_array
from stages.embeddings.settings import EmbeddingsSettings
from stages.embeddings.views import TOKEN_VIEWS, MaskedCanvas, donors, pool, unit
from stages.images import Placement, content, fit_mask, letterbox
from stages.models.card import ACTIVATION_BYTES, feature_dims, model_card, token_grid
from stages.models.weights import WeightsFolder
from stages.shape import SHAPE

if TYPE_CHECKING:
    from stages.models.clip import ClipModel
    from stages.models.towers import Bias

UNIT_TOLERANCE = 1e-3


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
    version: ClassVar[int] = 2

    def __init__(self, settings: EmbeddingsSettings, context: StageContext) -> None:
        self.settings = settings
        self.context = context
        self.model: ClipModel | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """The masks, always: they also say which images could be read."""
        return ("masks",)

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
        """Vectors (V, D) float32, the mask's shape, tokens (n, D) float16 if asked, status; failed rows hold NaN."""
        dim = feature_dims(self.settings.model)[self.settings.features]
        nan = float("nan")
        specs = [ArraySpec("image", (len(self.settings.views), dim), "float32", ("view", "feature"), nan)]
        specs.append(ArraySpec("shape", (len(SHAPE),), "float32", ("measure",), nan))
        if self.settings.tokens:
            n = int(np.prod(token_grid(self.settings.model)))
            specs.append(ArraySpec("tokens", (n, dim), "float16", ("token", "feature"), nan, per_item=True))
        return (*specs, ArraySpec("status", (), "uint8"))

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
        """The masks' chunk, the results, and one batch of canvases and activations."""
        pixels = self.settings.canvas_px**2
        row = sum(int(np.prod(a.item_shape)) * np.dtype(a.dtype).itemsize for a in self.outputs())
        # Canvases of two batches: the next one is read while this one is encoded.
        batch = self.context.batch_items * (ACTIVATION_BYTES + 16 * pixels)
        return chunk_items * (4 * pixels + 3 * row) + batch

    def load(self, device: str) -> None:
        """Load the image tower.

        Raises
        ------
        WeightsError
            If weights are missing, altered or of another architecture.
        """
        from stages.models.clip import load_clip

        s = self.settings
        self.model = load_clip(s.model, device, s.precision, compiled=self.context.compiled)

    def process(self, rows: Sequence[ImageRow], source: ImageSource, upstream: Mapping[str, ChunkArrays]) -> UnitResult:
        """Embed one chunk, a batch at a time; each view is one pass, and `roi` and `ring` share that of `original`."""
        masks = upstream["masks"]
        side = self.settings.canvas_px
        expect_array("masks.mask", masks["mask"], (len(rows), side, side), "bool")
        expect_array("masks.shape", masks["shape"], (len(rows), len(SHAPE)), "float32")
        expect_array("masks.masked_image", masks["masked_image"], (len(rows), side, side, 3), "uint8")
        arrays = empty_arrays(self.outputs(), len(rows))
        items: list[ItemOutcome] = []
        seconds: Counter[str] = Counter()
        size = self.context.batch_items
        lenders = donors([row.group_id for row in rows], masks["status"] == Status.OK)

        def read(start: int) -> tuple[list[MaskedCanvas | None], list[ItemOutcome]]:
            return self._read(rows[start : start + size], start, source, masks, lenders)

        began = time.perf_counter()
        for shown, outcomes in ahead(read, range(0, len(rows), size)):
            waited = time.perf_counter()
            ready = [c for c in shown if c is not None]
            if ready:
                self._encode(ready, arrays)
                at = [c.position for c in ready]
                arrays["shape"][at] = masks["shape"][at]
            first = len(items)
            items += [_judge(outcome, arrays, first + i) for i, outcome in enumerate(outcomes)]
            seconds.update({"read": waited - began, "encode": time.perf_counter() - waited})
            began = time.perf_counter()
        arrays["status"] = status_array(items)
        return UnitResult(arrays, tuple(items), dict(seconds))

    @property
    def _needs_source(self) -> bool:
        return self.settings.tokens or any(v != self.settings.compositing for v in self.settings.views)

    @property
    def _needs_tokens(self) -> bool:
        return self.settings.tokens or any(v in TOKEN_VIEWS for v in self.settings.views)

    def _read(
        self, batch: Sequence[ImageRow], start: int, source: ImageSource, masks: ChunkArrays, lenders: Sequence[int]
    ) -> tuple[list[MaskedCanvas | None], list[ItemOutcome]]:
        """Bring each image and its mask together; `start` is the batch's first row in the chunk."""
        positions = {row.row: start + i for i, row in enumerate(batch)}

        def read(row: ImageRow) -> MaskedCanvas:
            at = positions[row.row]
            placement = Placement.of(masks["placement"][at])
            canvas: NDArray[np.uint8] | None = None
            if self._needs_source:
                canvas, found = letterbox(source.read(row), self.settings.canvas_px)
                if found != placement:
                    raise ReadError("placement.changed", f"mask made for {placement}, image now at {found}")
            mask = masks["mask"][at]
            lender = lenders[at]
            lent = masks["mask"][lender] if lender != at else mask[::-1, ::-1]
            donated = fit_mask(lent, Placement.of(masks["placement"][lender]), placement)
            if masks["status"][at] == Status.FALLBACK or not mask.any():
                mask = donated = content(placement, self.settings.canvas_px)
            shown = masks["masked_image"][at]
            return MaskedCanvas(at, canvas, shown, mask, placement, donated, int(row.image_id, 16))

        shown, outcomes = read_each(batch, read, masks["status"][start : start + len(batch)])
        for i, outcome in enumerate(outcomes):
            if outcome.status == Status.OK and masks["status"][start + i] == Status.FALLBACK:
                detail = "the mask was not usable; every view shows the whole image"
                outcomes[i] = ItemOutcome(outcome.row, outcome.image_id, Status.FALLBACK, "mask.fallback", detail)
        return shown, outcomes

    @property
    def _passes(self) -> list[str]:
        """Views that are encoded; `original` also where only its tokens are needed."""
        views = [v for v in self.settings.views if v not in TOKEN_VIEWS]
        return [*views, "original"] if self._needs_tokens and "original" not in views else [*views]

    def _bias(self, shown: Sequence[MaskedCanvas]) -> Bias:
        """Less attention to what lies outside the masks."""
        import torch

        from stages.models.towers import Bias

        s, grid = self.settings, token_grid(self.settings.model)
        outside = 1 - np.stack([c.token_weights("roi", s.resize, grid) for c in shown])
        return Bias(torch.from_numpy(-s.attention_bias * outside), s.attention_blocks)

    def _encode(self, shown: Sequence[MaskedCanvas], arrays: dict[str, NDArray[Any]]) -> None:
        """Fill the rows of one batch."""
        s = self.settings
        if self.model is None:
            raise RuntimeError("load() comes before process()")
        at = [c.position for c in shown]
        vectors: dict[str, NDArray[np.float32]] = {}
        for view in self._passes:
            images = [c.view(view, s.compositing)[c.box(view, s.resize).slices] for c in shown]
            wanted = self._needs_tokens and view == "original"
            more = {"bias": self._bias(shown)} if view == "attn-bias" else {}
            encoding = self.model.encode_image(images, s.features, tokens=wanted, **more)
            vectors[view] = np.asarray(encoding.vectors)
            if encoding.tokens is None:
                continue
            tokens = np.asarray(encoding.tokens)
            for name in set(TOKEN_VIEWS) & set(s.views):
                weights = np.stack([c.token_weights(name, s.resize, encoding.grid) for c in shown])
                vectors[name] = pool(tokens, weights, vectors[view])
            if s.tokens:
                arrays["tokens"][at] = unit(tokens)
        arrays["image"][at] = np.stack([vectors[v] for v in s.views], axis=1)


def _judge(outcome: ItemOutcome, arrays: dict[str, NDArray[Any]], at: int) -> ItemOutcome:
    """Turn an image whose vectors are no directions into a failed row that holds NaN."""
    if outcome.status == Status.FAILED:
        return outcome
    lengths = np.linalg.norm(arrays["image"][at], axis=-1)
    if (np.abs(lengths - 1) < UNIT_TOLERANCE).all() and all(np.isfinite(a[at]).all() for a in arrays.values()):
        return outcome
    for name, array in arrays.items():
        if name != "status":
            array[at] = np.nan
    detail = "the model gave a vector that is not finite or has no length"
    return ItemOutcome(outcome.row, outcome.image_id, Status.FAILED, "embedding.nonfinite", detail)
