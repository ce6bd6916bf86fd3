"""A small map store, and results for it that tell one attempt from another in every byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manifests.store import StageStore
from manifests.types import ArraySpec, Chunk, ItemOutcome, Status, UnitResult

SIDE = 16
SPECS = (
    ArraySpec("mask", (SIDE, SIDE), "bool", ("y", "x"), per_item=True),
    ArraySpec("masked_image", (SIDE, SIDE, 3), "uint8", ("y", "x", "channel"), per_item=True),
    ArraySpec("score", (), "float32", fill=float("nan")),
    ArraySpec("status", (), "uint8"),
)


def open_store(root: Path, n_items: int = 10, chunk_items: int = 4) -> StageStore:
    """Open, or create, a store with the arrays above."""
    return StageStore.open(root, SPECS, n_items, chunk_items, {"drop": "first", "fingerprint": "ab" * 32})


def chunks_of(store: StageStore) -> list[Chunk]:
    """The store's grid."""
    starts = range(0, store.n_items, store.chunk_items)
    stops = [min(start + store.chunk_items, store.n_items) for start in starts]
    return [Chunk("first", i, start, stop) for i, (start, stop) in enumerate(zip(starts, stops, strict=True))]


def result(chunk: Chunk, value: int, *, empty: bool = False) -> UnitResult:
    """Arrays made of one value in 1..254; `empty` makes all masks zero."""
    n = len(chunk)
    mask = np.zeros((n, SIDE, SIDE), bool)
    if not empty:
        mask[:, : 1 + value % SIDE] = True
    image = np.full((n, SIDE, SIDE, 3), value, np.uint8) * mask[..., None]
    arrays = {
        "mask": mask,
        "masked_image": image,
        "score": np.full(n, value, np.float32),
        "status": np.full(n, Status.OK, np.uint8),
    }
    items = tuple(ItemOutcome(row, f"{row:016x}", Status.OK) for row in range(chunk.start, chunk.stop))
    return UnitResult(arrays, items, {"encode": 0.5})
