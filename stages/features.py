"""What cell stages read of their inputs: the vectors of one view, and the bank of class texts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from manifests.errors import ConfigError, StoreError
from manifests.types import Cell, Status
from stages.base import StageData
from stages.methods import TOKENS
from stages.models.card import check_same_card

BANK = Cell("bank", 1.0, 0)
"""The one cell of the texts stage."""


def view_vectors(data: StageData, view: str) -> NDArray[np.float32]:
    """Vectors of one view, (N, D) float32; rows without features hold what the store holds.

    Raises
    ------
    ConfigError
        If the embeddings hold no such view.
    StoreError
        If a row with features holds a value that is not finite.
    """
    views = list(data.attributes["views"])
    if view not in views:
        raise ConfigError(
            f"The embeddings hold no view {view!r}, only {', '.join(views)}.",
            "Add it to embeddings.views, or choose one of these.",
        )
    vectors: NDArray[np.float32] = data.arrays["image"][:, views.index(view)]
    _check_finite(data, vectors, view)
    return vectors


def _check_finite(data: StageData, vectors: NDArray[np.floating], view: str) -> None:
    broken = np.isin(data.status, (Status.OK, Status.FALLBACK)) & ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        first = data.rows[int(np.flatnonzero(broken)[0])]
        raise StoreError(
            f"The {view} vector of image {first.image_id} (and of {int(broken.sum()) - 1} more) is not finite.",
            "Check the store: pipeline verify",
        )


def joined_views(data: StageData, views: Sequence[str]) -> NDArray[np.float32]:
    """Vectors of several views side by side, (N, V x D) float32; of `tokens` alone, the tokens, (N, n, D) float16.

    Raises
    ------
    ConfigError
        If the embeddings hold no such view, or no tokens.
    StoreError
        If a row with features holds a value that is not finite.
    """
    if tuple(views) != (TOKENS,):
        return np.concatenate([view_vectors(data, view) for view in views], axis=1)
    if TOKENS not in data.arrays:
        raise ConfigError("The embeddings hold no tokens.", "Set embeddings.tokens = true and run them again.")
    tokens: NDArray[np.float32] = data.arrays[TOKENS]
    _check_finite(data, tokens.reshape(len(tokens), -1), TOKENS)
    return tokens


def joined_texts(data: StageData, n_classes: int, views: Sequence[str]) -> NDArray[np.float32]:
    """Bank of class texts beside itself once a view, (K, V x D), so that its cosines are the mean of the views'."""
    return np.tile(text_bank(data, n_classes), (1, len(views)))


def has_texts(data: StageData) -> bool:
    """Whether the model of the image vectors has a text tower, so that class texts lie in the space of its vectors."""
    return "projected" in data.attributes["card"].get("dims", ("projected",))


def text_bank(data: StageData, n_classes: int) -> NDArray[np.float32]:
    """Bank of class texts T, (K, D) float32: one row a class, the same for every image.

    Raises
    ------
    StoreError
        If the bank has not one row a class, or comes from another model or space than the image vectors; images of a
        model without a text tower meet the texts of any.
    """
    folder = data.artifacts["texts"]
    bank: NDArray[np.float32] = np.load(folder / "bank.npy", allow_pickle=False)
    expected = (n_classes, bank.shape[-1])
    if has_texts(data):
        check_same_card(data.attributes["card"], json.loads((folder / "card.json").read_text("utf-8")))
        expected = (n_classes, data.arrays["image"].shape[2])
    if bank.shape != expected:
        raise StoreError(
            f"The bank of class texts has shape {bank.shape}, expected {expected} (classes, feature).",
            "Run the texts again: pipeline run --stage texts",
        )
    return bank


def readable(name: str) -> str:
    """Class name as it stands in a sentence: `_` and `-` become spaces, capitals stay."""
    return " ".join(name.replace("_", " ").replace("-", " ").split())


def unit_rows(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale each vector to length 1, in float64; a zero vector stays zero."""
    exact = vectors.astype(np.float64)
    # Dividing by the largest entry first keeps squares of very large and very small values in range.
    exact /= np.maximum(np.abs(exact).max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float64).tiny)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    scaled: NDArray[np.float64] = exact / np.where(lengths > 0, lengths, 1.0)
    return scaled
