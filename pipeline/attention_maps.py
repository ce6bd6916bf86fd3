"""Maps of where committed heads looked in the images of one chunk: each view goes through the model once more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.store import StageStore
from manifests.types import Chunk, ChunkArrays
from pipeline.attention_heads import UNMASKED, AttendedHead
from pipeline.workspace import Workspace
from stages.attention.pointing import relative
from stages.attention.relevance import grad_cam
from stages.embeddings.stage import outside_bias
from stages.images import Placement
from stages.reading import MaskedReader
from stages.views import TOKEN_VIEWS, UNIT_TOLERANCE, MaskedCanvas, pool, unit

if TYPE_CHECKING:
    from stages.models.clip import ClipModel

ARRAYS: Final = ("mask", "masked_image", "placement", "status")
GRAD_CAM: Final = "Grad-CAM"
ROLLOUT: Final = "attention rollout"
NO_MEAN: Final = "the model's vector is not the mean of its cells"
NO_VECTOR: Final = "embedding.nonfinite"


@dataclass(frozen=True, slots=True)
class AttentionMap:
    """Where one head looked in one image."""

    policy: str
    """Mask policy of its branch."""
    method: str
    drop: str
    row: int
    """Row in the drop."""
    image_id: str
    kind: str
    """`Grad-CAM`, of the predicted class; or `attention rollout`, which knows no class and no head."""
    heat: NDArray[np.float32]
    """Shares of the maximum, (h, w) in [0, 1]; zero everywhere if nothing speaks for the predicted class."""
    box: Placement
    """What the grid covers of the canvas; it may stand over the edge."""
    predicted: str
    """Class name."""


class _Encoded(NamedTuple):
    """What the model made of one image."""

    vector: NDArray[np.float32]
    """(D,)."""
    tokens: NDArray[np.float32]
    """(n, D)."""
    rollout: NDArray[np.float32] | None
    """(n,); None where the model has none."""
    grid: tuple[int, int]


class _Read(NamedTuple):
    """What a head reads of an image."""

    vector: NDArray[np.float32]
    """(D,)."""
    weights: NDArray[np.float32] | None
    """Share of each cell in it, (n,); None for the class token of a transformer."""


class Looker:
    """Makes the maps, and keeps count of images that have none.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    model : ClipModel
        That of the embeddings.
    """

    def __init__(self, workspace: Workspace, model: ClipModel) -> None:
        self.failed: dict[str, set[tuple[str, int]]] = defaultdict(set)
        """Images that lack a map, as drop and row, by reason."""
        self._workspace = workspace
        self._model = model
        self._settings = workspace.config.embeddings

    def maps(self, heads: Sequence[AttendedHead], chunk: Chunk, at: Sequence[int]) -> Iterator[AttentionMap]:
        """Look at some images of a chunk; the unmasked image is encoded once for all policies.

        Parameters
        ----------
        heads : Sequence[AttendedHead]
            Those of one node together.
        chunk : Chunk
            Whose masks are committed.
        at : Sequence[int]
            Positions of the images in the chunk.

        Raises
        ------
        StoreError
            If a store is damaged.
        ValueError
            If what is committed does not fit the model.
        """
        originals: dict[int, _Encoded] = {}
        size = self._workspace.config.cluster.batch_items
        for _, of_node in groupby(heads, key=lambda head: head.node.key):
            together = list(of_node)
            masks = self._masks(together[0], chunk)
            for head, start in product(together, range(0, len(at), size)):
                shown = self._shown(head, chunk, masks, at[start : start + size], originals)
                if shown:
                    yield from self._look(head, chunk, shown, self._encode(head, shown, originals))

    def _masks(self, head: AttendedHead, chunk: Chunk) -> ChunkArrays:
        node = self._workspace.nodes[self._workspace.nodes[head.node.inputs["embeddings"]].inputs["masks"]]
        return read_rows(StageStore.load(self._workspace.root(node, chunk.drop)), chunk, ARRAYS)

    def _shown(
        self, head: AttendedHead, chunk: Chunk, masks: ChunkArrays, at: Sequence[int], originals: Container[int]
    ) -> list[MaskedCanvas]:
        """Images of one batch that can be read; their files only where the head must see more than is stored."""
        rows, source = self._workspace.chunk_rows(chunk), self._workspace.image_source(chunk.drop)
        picture, side, shown = _picture(head), self._settings.canvas_px, list[MaskedCanvas]()
        for position in at:
            stored = picture == self._settings.compositing or (picture == UNMASKED and position in originals)
            reader = MaskedReader(rows, source, masks, side, not stored, "shuffled" in head.view)
            (canvas,), (outcome,) = reader.read(position, 1)
            if canvas is None:
                self.failed[outcome.reason].add((chunk.drop, outcome.row))
            else:
                shown.append(canvas)
        return shown

    def _encode(
        self, head: AttendedHead, shown: Sequence[MaskedCanvas], originals: dict[int, _Encoded]
    ) -> list[_Encoded]:
        """Send what a head sees of each image through the model, the unmasked image only if it was not yet."""
        view, s = _picture(head), self._settings
        known = originals if view == UNMASKED else {}
        new = [canvas for canvas in shown if canvas.position not in known]
        if new:
            images = [canvas.view(view, s.compositing)[canvas.box(view, s.resize).slices] for canvas in new]
            bias = outside_bias(s, new) if view == "attn-bias" else None
            rolls = self._model.has_rollout
            out = self._model.encode_image(images, s.features, tokens=True, bias=bias, rollout=rolls)
            tokens, shares = (None if part is None else np.asarray(part) for part in (out.tokens, out.rollout))
            if tokens is None:
                raise ValueError("tokens: asked for, and not given")
            for i, canvas in enumerate(new):
                share = None if shares is None else shares[i]
                known[canvas.position] = _Encoded(np.asarray(out.vectors[i]), tokens[i], share, out.grid)
        return [known[canvas.position] for canvas in shown]

    def _look(
        self, head: AttendedHead, chunk: Chunk, shown: Sequence[MaskedCanvas], encoded: Sequence[_Encoded]
    ) -> Iterator[AttentionMap]:
        """Maps of one batch; an image without one is noted with the reason."""
        rows = self._workspace.chunk_rows(chunk)
        usable: list[tuple[MaskedCanvas, _Encoded, _Read]] = []
        for canvas, image in zip(shown, encoded, strict=True):
            read = self._read(head, canvas, image)
            if reason := _problem(image, read):
                self.failed[reason].add((chunk.drop, rows[canvas.position].row))
            else:
                usable.append((canvas, image, read))
        classes = head.predicted(np.stack([read.vector for _, _, read in usable])) if usable else []
        for (canvas, image, read), predicted in zip(usable, classes, strict=True):
            row = rows[canvas.position]
            heat = image.rollout if read.weights is None else grad_cam(image.tokens, read.weights, head.logits)
            yield AttentionMap(
                policy=head.node.policy,
                method=head.cell.method,
                drop=chunk.drop,
                row=row.row,
                image_id=row.image_id,
                kind=ROLLOUT if read.weights is None else GRAD_CAM,
                heat=relative(np.asarray(heat)).reshape(image.grid),
                box=canvas.seen(_picture(head), self._settings.resize),
                predicted=predicted,
            )

    def _read(self, head: AttendedHead, canvas: MaskedCanvas, image: _Encoded) -> _Read:
        """The vector that a head reads, made as the embeddings make it."""
        if head.view in TOKEN_VIEWS:
            weights = canvas.token_weights(head.view, self._settings.resize, image.grid)
            if weights.any():
                return _Read(pool(image.tokens[None], weights[None], image.vector[None]).reshape(-1), weights)
        uniform = np.ones(len(image.tokens), np.float32)
        return _Read(image.vector, uniform if image.rollout is None else None)


def _picture(head: AttendedHead) -> str:
    """The view that goes through the model."""
    return UNMASKED if head.view in TOKEN_VIEWS else head.view


def _problem(image: _Encoded, read: _Read) -> str:
    """Why there can be no map; empty if there can."""
    if not np.isfinite(read.vector).all() or abs(np.linalg.norm(read.vector) - 1) > UNIT_TOLERANCE:
        return NO_VECTOR
    if read.weights is None:
        return ""
    mean = unit(read.weights @ image.tokens)
    return "" if float(mean @ read.vector) > 1 - UNIT_TOLERANCE else NO_MEAN
