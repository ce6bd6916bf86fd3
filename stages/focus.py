"""M = F(T, I) of MedFocusCLIP from stored weights: the one definition that fusion, probes and prediction share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from manifests.types import expect_array
from stages.features import unit_rows

NORM_EPSILON: Final = 1e-5
"""Added to the variance by the layer norm."""
DEPENDENT: Final = 1e-6
"""A text whose distance from the span of the texts before it is below adds no direction."""
MOST_ROWS: Final = 8192
"""Tokens that are fused at once."""
SHAPES: Final[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
    "text-attn": {"span": ("R", "T"), "mixing": ("D", "R"), "norm_weight": ("D",), "norm_bias": ("D",)},
    "concat-mlp": {
        "span": ("R", "T"),
        "inner_weight": ("H", "D+R"),
        "inner_bias": ("H",),
        "outer_weight": ("D", "H"),
        "outer_bias": ("D",),
    },
    "hadamard": {},
    "logits": {},
    "none": {},
}
"""Weights of each variant: D entries of a vector, T of a text, R rank of the texts, H hidden units."""


@dataclass(frozen=True, slots=True)
class FocusWeights:
    """What training leaves, all float32.

    `temperature`, (1,), is tau; `head_weight`, (K, M), and, for a linear head, `head_bias`, (K,), are the head C. Of
    F, `span` is an orthonormal basis of the span of T; W of `text-attn` is `mixing` x `span`; `inner` and `outer` are
    the layers of `concat-mlp`; `projection`, (T, D), stands where the texts are another model's.
    """

    tensors: Mapping[str, NDArray[np.float32]]
    variant: str
    """Form of F, one of `stages.methods.VARIANTS`."""
    head: str
    """`linear` or `cosine`."""
    views: str
    """Views whose vectors are I, joined by +; or `tokens`."""

    def w(self) -> NDArray[np.float32]:
        """W of M = LayerNorm(I + W(A T)), (D, T)."""
        product: NDArray[np.float32] = self.tensors["mixing"] @ self.tensors["span"]
        return product

    def save(self, path: Path) -> None:
        """Write a safetensors file; equal weights give equal bytes."""
        from safetensors.numpy import save_file

        form = json.dumps({"variant": self.variant, "head": self.head, "views": self.views})
        # One entry only: safetensors writes several in an order that differs from process to process.
        save_file({k: np.ascontiguousarray(v) for k, v in self.tensors.items()}, path, metadata={"form": form})

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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            weights = cls(tensors, **json.loads(file.metadata()["form"]))
        sizes: dict[str, int] = {}
        if "span" in tensors:
            sizes["R"], sizes["T"] = tensors["span"].shape
            sizes["D"] = sizes["T"]
        if "projection" in tensors:
            expect_array("projection", tensors["projection"], (sizes.get("T"), None), "float32")
            sizes["D"] = tensors["projection"].shape[1]
        if "span" in tensors:
            sizes["D+R"] = sizes["D"] + sizes["R"]
        if "inner_bias" in tensors:
            sizes["H"] = len(tensors["inner_bias"])
        for name, shape in SHAPES[weights.variant].items():
            expect_array(name, tensors[name], tuple(sizes[s] for s in shape), "float32")
        expect_array("temperature", tensors["temperature"], (1,), "float32")
        expect_array("head_weight", tensors["head_weight"], (None, sizes.get("D")), "float32")
        if weights.head == "linear":
            expect_array("head_bias", tensors["head_bias"], (len(tensors["head_weight"]),), "float32")
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
    """M = F(T, I), each image by itself; with I the unit vectors of images and A = softmax(tau I T^T):

    - `text-attn`: LayerNorm(I + W(A T))
    - `concat-mlp`: W2 GELU(W1 [I ; A T] + b1) + b2
    - `hadamard`: I * (A T)
    - `logits`: I T^T
    - `none`: I

    The paper (arXiv 2501.03839, section 2) names F but does not define it; these are the project's readings. Tokens are
    fused one by one and averaged. Texts of another model meet images as T P, with P trained. Computed in float64, so
    that the number of threads and the rows computed together do not show.

    Parameters
    ----------
    weights : FocusWeights
        Of one fusion cell.
    texts : ndarray of float, (K, D)
        Bank of class texts.
    images : ndarray of float, (n, D) or (n, t, D)
        Vectors of images, or their tokens.

    Returns
    -------
    ndarray of float64, (n, D); (n, K) for `logits`
        M.
    """
    if images.ndim == 2:
        return _fuse(weights, texts, images)
    step = max(1, MOST_ROWS // images.shape[1])
    parts = [images[start : start + step] for start in range(0, len(images), step)]
    means = [_fuse(weights, texts, p.reshape(-1, p.shape[2])).reshape(*p.shape[:2], -1).mean(axis=1) for p in parts]
    return np.concatenate(means)


def _fuse(weights: FocusWeights, texts: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.float64]:
    i, t, tensors = unit_rows(rows), unit_rows(texts), weights.tensors
    seen = unit_rows(t @ tensors["projection"]) if "projection" in tensors else t
    if weights.variant == "none":
        return i
    if weights.variant == "logits":
        return i @ seen.T
    shares = attention(rows, seen, float(tensors["temperature"][0]))
    if weights.variant == "hadamard":
        return i * (shares @ seen)
    in_span = shares @ t @ tensors["span"].T.astype(np.float64)
    if weights.variant == "concat-mlp":
        inner = np.concatenate([i, in_span], axis=1) @ tensors["inner_weight"].T + tensors["inner_bias"]
        hidden = inner * (1 + erf(inner / np.sqrt(2))) / 2
        outer: NDArray[np.float64] = hidden @ tensors["outer_weight"].T + tensors["outer_bias"]
        return outer
    summed = i + in_span @ tensors["mixing"].T
    centred = summed - summed.mean(axis=1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=1, keepdims=True) + NORM_EPSILON)
    m: NDArray[np.float64] = centred / scale * tensors["norm_weight"] + tensors["norm_bias"]
    return m


def head_logits(weights: FocusWeights, m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits of the head C, (n, K), from M: linear, or tau times the cosines with the rows of its weight."""
    tensors = weights.tensors
    if weights.head == "cosine":
        return float(tensors["temperature"][0]) * (unit_rows(m) @ unit_rows(tensors["head_weight"]).T)
    logits: NDArray[np.float64] = m @ tensors["head_weight"].T + tensors["head_bias"]
    return logits
