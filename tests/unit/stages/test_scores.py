"""Scores against scikit-learn, and where something is missing."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from stages.scores import Scores, score, wilson


def random_case(n: int, classes: int, seed: int = 0):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, n)
    logits = random.normal(0, 1, (n, classes)) + np.eye(classes)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, truth, np.zeros(n, dtype=bool)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_scores_agree_with_scikit_learn(classes):
    probabilities, truth, flagged = random_case(200, classes)
    scores = score(probabilities, truth, flagged, n_train=10)
    predicted = probabilities.argmax(axis=1)
    area = roc_auc_score(truth, probabilities[:, 1] if classes == 2 else probabilities, multi_class="ovr")
    assert scores.auroc == pytest.approx(area, abs=1e-12)
    assert scores.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted), abs=1e-12)
    assert scores.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
    assert scores.accuracy == scores.correct / scores.n_test == (predicted == truth).mean()


def test_wilson_interval_of_62_in_66():
    low, high = wilson(62, 66)
    assert (round(100 * low, 1), round(100 * high, 1)) == (85.4, 97.6)


def test_wilson_interval_stays_inside_at_the_ends():
    assert wilson(0, 5)[0] == 0
    assert wilson(5, 5)[1] == 1
    assert 0 < wilson(0, 5)[1] < 1


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(correct, n):
    with pytest.raises(ValueError, match="wilson"):
        wilson(correct, n)


def test_one_class_in_test_has_no_auroc():
    probabilities, truth, flagged = random_case(20, 3)
    scores = score(probabilities, np.ones_like(truth), flagged, 5)
    assert scores.auroc is None
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False))["auroc"] is None
    assert "auroc" not in scores.numbers()


def test_class_missing_in_test_leaves_the_others_scored():
    probabilities, truth, flagged = random_case(60, 3)
    truth = np.minimum(truth, 1)
    scores = score(probabilities, truth, flagged, 5)
    expected = np.mean([roc_auc_score(truth == c, probabilities[:, c]) for c in (0, 1)])
    assert scores.auroc == pytest.approx(expected, abs=1e-12)


def test_class_never_seen_in_training_counts_as_missed():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.6, 0.4, 0.0]])
    scores = score(probabilities, np.array([0, 1, 2]), np.zeros(3, dtype=bool), 4)
    assert scores.balanced_accuracy == pytest.approx(2 / 3)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_calibration_error_of_known_confidences():
    probabilities = np.array([[0.8, 0.2]] * 4 + [[0.4, 0.6]] * 4)
    truth = np.array([0, 0, 0, 0, 1, 1, 0, 0])
    scores = score(probabilities, truth, np.zeros(8, dtype=bool), 2)
    assert scores.ece == pytest.approx((0.2 * 4 + 0.1 * 4) / 8)


def test_brier_score_of_known_probabilities():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    scores = score(probabilities, np.array([0, 0, 1]), np.zeros(3, dtype=bool), 2)
    assert scores.brier == pytest.approx((0 + 2 + 2 * 0.6**2) / 3)


def test_constant_prediction_has_no_ranking():
    truth = np.array([0, 0, 0, 1])
    scores = score(np.tile([0.75, 0.25], (4, 1)), truth, np.zeros(4, dtype=bool), 4)
    assert (scores.correct, scores.auroc) == (3, 0.5)
    assert scores.ece == pytest.approx(0)


def test_flagged_rows_are_counted_apart():
    probabilities = np.array([[1.0, 0.0]] * 4)
    scores = score(probabilities, np.array([0, 0, 1, 1]), np.array([True, False, True, False]), 4)
    assert (scores.correct, scores.n_test_unflagged, scores.correct_unflagged) == (2, 2, 1)


@pytest.mark.parametrize(
    ("probabilities", "truth", "word"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64), "at least one"),
        (np.array([[0.5, 0.4]]), np.array([0]), "sum to 1"),
        (np.array([[np.nan, 1.0]]), np.array([0]), "sum to 1"),
        (np.array([[0.5, 0.5]]), np.array([2]), "below 2"),
        (np.array([[0.5, 0.5]]), np.array([0, 1]), r"expected \(1\)"),
    ],
)
def test_what_cannot_be_scored_is_refused(probabilities, truth, word):
    with pytest.raises(ValueError, match=word):
        score(probabilities, truth, np.zeros(len(probabilities), dtype=bool), 1)


def test_json_holds_every_field_and_no_nan():
    values = {f.name: float("nan") for f in fields(Scores)}
    assert set(Scores(**values).to_json().values()) == {None}
