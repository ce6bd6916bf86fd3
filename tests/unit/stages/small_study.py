"""A small data set for the tests of cell stages: classes as clusters in a space of few features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.types import ImageRow, Split, Status
from stages.base import StageContext, StageData, StudySettings

CLASSES = ("benign", "malignant", "normal")
FEATURES = 12
CARD = {"name": "small", "weights": {"file": "0" * 64}, "features": "trunk"}
STUDY = StudySettings(fractions=(0.5, 1.0), seeds=(0, 1))


def image_row(row: int, label: str, split: Split = Split.TRAIN, **changes: Any) -> ImageRow:
    """One row whose digest, identifier and group follow from its label, split and number."""
    sha256 = hashlib.sha256(f"{label}-{split}-{row}".encode()).hexdigest()
    base = ImageRow(
        row=row,
        image_id=sha256[:16],
        path=f"{split}/{label}/{row}.png",
        mask_path="",
        mask_sha256="",
        sha256=sha256,
        bytes=1,
        width=1,
        height=1,
        mode="L",
        label=label,
        split=split,
        group_id=sha256[:16],
        duplicate_of="",
        transforms="",
    )
    return replace(base, **changes)


def image_rows(counts: Mapping[str, tuple[int, int]]) -> list[ImageRow]:
    """Rows by label: so many for training, so many for test."""
    kinds = [(label, split) for label in counts for split in (Split.TRAIN, Split.TEST)]
    sizes = {(label, split): counts[label][split == Split.TEST] for label, split in kinds}
    flat = [kind for kind in kinds for _ in range(sizes[kind])]
    return [image_row(number, label, split) for number, (label, split) in enumerate(flat)]


def study_data(rows: Sequence[ImageRow], drops: Sequence[str] = (), folder: Path | None = None) -> StageData:
    """Stage data whose vectors are noisy class centres; with a folder, also the bank of class texts in it."""
    vectors = np.stack([_vectors(row) for row in rows]) if rows else np.zeros((0, 2, FEATURES), np.float32)
    artifacts = {}
    if folder is not None:
        artifacts["texts"] = write_bank(folder / "texts", _centres() + 0.2)
    return StageData(
        rows=tuple(rows),
        drops=tuple(drops) or ("first",) * len(rows),
        status=np.full(len(rows), Status.OK, np.uint8),
        arrays={"image": vectors, "shape": vectors[:, 1, :4].astype(np.float32)},
        attributes={"views": ["original", "masked"], "card": CARD},
        artifacts=artifacts,
    )


def write_bank(folder: Path, bank: NDArray[np.float64], card: Mapping[str, Any] = CARD) -> Path:
    """Write a bank of class texts as the texts stage does."""
    folder.mkdir()
    np.save(folder / "bank.npy", (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32))
    (folder / "card.json").write_text(json.dumps(card), "utf-8")
    return folder


def context(classes: tuple[str, ...] = CLASSES) -> StageContext:
    """Context with made-up fingerprints of the inputs."""
    upstream = {"embeddings": "a" * 64, "texts": "b" * 64, "fusion": "c" * 64}
    return StageContext(upstream=upstream, classes=classes, study=STUDY)


def _centres() -> NDArray[np.float64]:
    return np.eye(len(CLASSES), FEATURES)


def _vectors(row: ImageRow) -> NDArray[np.float32]:
    """One unit vector a view; the masked view has less noise."""
    random = np.random.default_rng(int(row.sha256[:8], 16))
    centre = _centres()[CLASSES.index(row.label)] if row.label in CLASSES else np.zeros(FEATURES)
    views = centre + random.normal(0, 0.3, (2, FEATURES)) * [[1.5], [1.0]]
    unit: NDArray[np.float32] = (views / np.linalg.norm(views, axis=1, keepdims=True)).astype(np.float32)
    return unit
