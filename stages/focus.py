"""M = F(T, I) of MedFocusCLIP from stored weights: the one definition that fusion, probes and prediction share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array
from stages.features import unit_rows

NORM_EPSILON = 1e-5
"""Added to the variance by the layer norm."""
DEPENDENT = 1e-6
"""A text whose distance from the span of the texts before it is below adds no direction."""


@dataclass(frozen=True, slots=True)
class FocusWeights:
    """What training leaves: W = `mixing` x `span`, the layer norm and the head; all float32."""

    temperature: NDArray[np.float32]
    """tau, (1,)."""
    span: NDArray[np.float32]
    """Orthonormal basis of the span of T, (r, D), r <= K."""
    mixing: NDArray[np.float32]
    """(D, r); zero at the start."""
    norm_weight: NDArray[np.float32]
    """(D,)."""
    norm_bias: NDArray[np.float32]
    """(D,)."""
    head_weight: NDArray[np.float32]
    """(K, D)."""
    head_bias: NDArray[np.float32]
    """(K,)."""
    view: str
    """View whose vectors are I."""

    def w(self) -> NDArray[np.float32]:
        """W of M = LayerNorm(I + W(A T)), (D, D)."""
        return self.mixing @ self.span

    def save(self, path: Path) -> None:
        """Write a safetensors file; equal weights give equal bytes."""
        from safetensors.numpy import save_file

        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "view"}
        # One entry only: safetensors writes several in an order that differs from process to process.
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata={"view": self.view})

    @classmethod
    def load(cls, path: Path) -> FocusWeights:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If shapes or types do not go together.
        """
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            weights = cls(**{name: file.get_tensor(name) for name in file.keys()}, **file.metadata())  # noqa: SIM118
        (rank, width), classes = weights.span.shape, len(weights.head_bias)
        shapes: dict[str, tuple[int | None, ...]] = {
            "temperature": (1,),
            "span": (rank, width),
            "mixing": (width, rank),
            "norm_weight": (width,),
            "norm_bias": (width,),
            "head_weight": (classes, width),
            "head_bias": (classes,),
        }
        for name, shape in shapes.items():
            expect_array(name, getattr(weights, name), shape, "float32")
        return weights


def text_span(texts: NDArray[np.floating]) -> NDArray[np.float64]:
    """Orthonormal basis of the span of the rows, by Gram-Schmidt in row order, so that it is unique.

    Parameters
    ----------
    texts : ndarray of float, (K, D)
        Bank of class texts.

    Returns
    -------
    ndarray of float64, (r, D)
        r is the rank of the bank.
    """
    basis = np.zeros((0, texts.shape[1]))
    for text in unit_rows(texts):
        rest = text - basis.T @ (basis @ text)
        rest -= basis.T @ (basis @ rest)  # the second pass removes the rounding error of the first
        length = np.linalg.norm(rest)
        if length > DEPENDENT:
            basis = np.vstack([basis, rest / length])
    return basis


def attention(images: NDArray[np.floating], texts: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """A = softmax(tau x I T^T) over the whole bank, whatever the labels.

    Parameters
    ----------
    images : ndarray of float, (n, D)
        Image vectors; scaled to unit length here.
    texts : ndarray of float, (K, D)
        Bank of class texts; scaled to unit length here.
    temperature : float
        tau.

    Returns
    -------
    ndarray of float64, (n, K)
        Rows sum to 1.
    """
    logits = temperature * (unit_rows(images) @ unit_rows(texts).T)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return shares


def focus(weights: FocusWeights, texts: NDArray[np.floating], images: NDArray[np.floating]) -> NDArray[np.float64]:
    """M = LayerNorm(I + W(A T)) with A = softmax(tau I T^T), each image by itself.

    The paper (arXiv 2501.03839, section 2) names F but does not define it; this is the project's reading. Computed in
    float64, so that the number of threads and the rows computed together do not show.

    Parameters
    ----------
    weights : FocusWeights
        Of one fusion cell.
    texts : ndarray of float, (K, D)
        Bank of class texts.
    images : ndarray of float, (n, D)
        Image vectors.

    Returns
    -------
    ndarray of float64, (n, D)
        M.
    """
    mixed = attention(images, texts, float(weights.temperature[0])) @ unit_rows(texts)
    summed = unit_rows(images) + mixed @ weights.span.T.astype(np.float64) @ weights.mixing.T
    centred = summed - summed.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + NORM_EPSILON)
    m: NDArray[np.float64] = centred / scale * weights.norm_weight + weights.norm_bias
    return m


def head_logits(weights: FocusWeights, m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits of the head C, (n, K), from M, (n, D)."""
    logits: NDArray[np.float64] = m @ weights.head_weight.T + weights.head_bias
    return logits
