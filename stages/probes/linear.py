"""A fitted linear probe: from features to class probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.types import expect_array
from stages.features import unit_rows

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """Class probabilities as softmax(coef (x - mean) + intercept); all float64."""

    coef: Matrix
    """(K, D); zero for classes that training never saw."""
    intercept: Matrix
    """(K,); minus infinity for classes that training never saw."""
    mean: Matrix
    """Mean of the training subset's features, (D,)."""
    normalise: bool
    """Features are scaled to unit length first."""

    def probabilities(self, features: NDArray[np.floating]) -> Matrix:
        """Probabilities of the K classes, (n, K), from features, (n, D)."""
        return np.exp(log_softmax(self.logits(features)))

    def logits(self, features: NDArray[np.floating]) -> Matrix:
        """Scores of the K classes before the softmax, (n, K), from features, (n, D)."""
        prepared = prepare(features, normalise=self.normalise)
        scores: Matrix = (prepared - self.mean) @ self.coef.T + self.intercept
        return scores

    def save(self, path: Path) -> None:
        """Write a safetensors file; equal probes give equal bytes."""
        from safetensors.numpy import save_file

        flag = np.array([self.normalise], dtype=np.uint8)
        tensors = {"coef": self.coef, "intercept": self.intercept, "mean": self.mean, "normalise": flag}
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)

    @classmethod
    def load(cls, path: Path) -> LinearProbe:
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If shapes or types do not go together.
        """
        from safetensors.numpy import load_file

        stored = load_file(path)
        expect_array("coef", stored["coef"], (None, None), "float64")
        expect_array("intercept", stored["intercept"], stored["coef"].shape[:1], "float64")
        expect_array("mean", stored["mean"], stored["coef"].shape[1:], "float64")
        return cls(stored["coef"], stored["intercept"], stored["mean"], bool(stored["normalise"][0]))


def prepare(features: NDArray[np.floating], *, normalise: bool) -> Matrix:
    """Features as the probe sees them: float64, of unit length if asked."""
    return unit_rows(features) if normalise else features.astype(np.float64)


def frequencies(counts: NDArray[np.int64], n_features: int) -> LinearProbe:
    """Probe that gives every image the class frequencies of the training subset.

    Parameters
    ----------
    counts : ndarray of int64, (K,)
        Training rows of each class.
    n_features : int
        D of the features that it will be given and ignores.
    """
    with np.errstate(divide="ignore"):  # log(0) is minus infinity: a class never seen
        intercept = np.log(counts / counts.sum())
    return LinearProbe(np.zeros((len(counts), n_features)), intercept, np.zeros(n_features), normalise=False)


def log_softmax(scores: Matrix) -> Matrix:
    """Logarithm of the softmax of each row, (n, K)."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Matrix = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
