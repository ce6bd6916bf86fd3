"""Time of choosing C by folds and fitting: ours against scikit-learn's default solver on the vectors as they are."""

from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from stages.probes.linear import prepare
from stages.probes.logistic import fit, rotate
from stages.probes.settings import ProbesSettings
from stages.probes.strength import choose_c, search
from stages.splits import inner_folds

FEATURES, CLASSES, INFORMATIVE = 1280, 3, 40
SETTINGS = ProbesSettings()


def vectors(n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Vectors like those of a trained trunk: a common mean, a decaying spectrum and overlapping classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    axes = np.random.default_rng(0)
    basis = np.linalg.qr(axes.normal(size=(FEATURES, FEATURES)))[0] * np.arange(1, FEATURES + 1) ** -0.6
    latent = random.normal(size=(n, FEATURES))
    latent[:, :INFORMATIVE] += axes.normal(0, 0.5, (CLASSES, INFORMATIVE))[labels]
    return axes.uniform(0, 0.1, FEATURES) + latent @ basis.T, labels


def ours(x: NDArray[np.float64], labels: NDArray[np.int64], new: NDArray[np.float64]) -> tuple[float, NDArray]:
    """The chosen C, and probabilities of new vectors."""
    rotated = rotate(prepare(x, normalise=True), labels)
    c, _ = choose_c(rotated, [str(i) for i in range(len(x))], SETTINGS, 0)
    return c, fit(rotated, c, CLASSES, SETTINGS.max_iter, normalise=True).probe.probabilities(new)


def reference(x: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The same search over the same folds with lbfgs in the space of the vectors; the chosen C."""
    unit = prepare(x, normalise=True)
    folds = inner_folds(labels, [str(i) for i in range(len(x))], SETTINGS.folds, 0) or ()

    def loss(c: float) -> float:
        model = LogisticRegression(C=c, tol=1e-6, max_iter=SETTINGS.max_iter)
        logs = [
            model.fit(unit[a], labels[a]).predict_log_proba(unit[b])[np.arange(len(b)), labels[b]] for a, b in folds
        ]
        return -float(np.concatenate(logs).mean())

    c, _ = search(lambda strengths: [loss(c) for c in strengths])
    LogisticRegression(C=c, tol=1e-8, max_iter=SETTINGS.max_iter).fit(unit, labels)
    return c


def measure(n: int) -> dict[str, float]:
    """Seconds of both, their ratio, and the largest difference from an exact direct fit at the same C."""
    x, labels = vectors(n, 1)
    new, _ = vectors(200, 2)
    start = time.perf_counter()
    c, probabilities = ours(x, labels, new)
    middle = time.perf_counter()
    reference_c = reference(x, labels)
    end = time.perf_counter()
    direct = LogisticRegression(C=c, solver="newton-cg", tol=1e-12, max_iter=1000).fit(
        prepare(x, normalise=True), labels
    )
    difference = np.abs(direct.predict_proba(prepare(new, normalise=True)) - probabilities).max()
    seconds = {"seconds": middle - start, "reference_seconds": end - middle, "ratio": (end - middle) / (middle - start)}
    chosen = {"C": c, "reference_C": reference_c}
    return {"n": n, **seconds, **chosen, "max_abs_probability_difference": float(difference)}


def main() -> None:
    """Print a table; with --json the numbers of the largest size as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--full", action="store_true", help="also 1,200 images")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    warnings.filterwarnings("ignore", "The line search algorithm did not converge", RuntimeWarning)
    measure(24)  # imports and first calls are not timed
    results = [measure(n) for n in (24, 240, 480, *((1200,) if arguments.full else ()))]
    print(f"{'images':>7} {'ours s':>8} {'sklearn s':>10} {'ratio':>6} {'C':>8} {'its C':>8} {'difference':>11}")
    for r in results:
        times = f"{r['seconds']:8.2f} {r['reference_seconds']:10.2f} {r['ratio']:6.1f}"
        print(f"{r['n']:7} {times} {r['C']:8.3g} {r['reference_C']:8.3g} {r['max_abs_probability_difference']:11.1e}")
    if arguments.json:
        print(json.dumps(results[-1]))


if __name__ == "__main__":
    main()
