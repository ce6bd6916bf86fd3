"""A small map store, and results for it that tell one attempt from another in every byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manifests import disk
from manifests.fingerprint import digest_json
from manifests.layout import UnitPaths
from manifests.store import StageStore
from manifests.types import ArraySpec, Chunk, ItemOutcome, Status, UnitResult

if TYPE_CHECKING:
    import pytest

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


class Stopped(BaseException):
    """Stands for a kill that leaves no time to clean up."""


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None] | None = None) -> None:
    """Run `act`, or stop, the first time that the protocol passes a checkpoint."""
    passed: list[str] = []

    def checkpoint(step: str) -> None:
        if step == name and name not in passed:
            passed.append(step)
            if act is None:
                raise Stopped(step)
            act()

    monkeypatch.setattr(disk, "checkpoint", checkpoint)


def write_scores(out: Path) -> dict[str, Any]:
    """Write the artifacts of a small cell."""
    (out / "history").mkdir()
    (out / "history" / "loss.csv").write_text("1,0.5\n")
    (out / "scores.json").write_text("{}")
    return {"accuracy": 0.5, "auroc": None}


def edit_record(root: Path, unit: str, **fields: Any) -> None:
    """Change fields of a record and give it a digest that fits."""
    file = UnitPaths(root).record(unit)
    stored = {**json.loads(file.read_text()), **fields}
    stored.pop("sha256")
    file.write_text(json.dumps({**stored, "sha256": digest_json(stored)}))
