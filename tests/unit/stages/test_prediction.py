"""Temperature, neighbours and the threshold of what is unlike anything seen."""

from __future__ import annotations

import numpy as np
import pytest

from stages.images import Placement
from stages.prediction.calibration import HIGHEST, LOWEST, fit_temperature, tempered
from stages.prediction.neighbours import distances, held_out_distances, nearest, threshold
from stages.prediction.picture import captioned, picture_height


def drawn(n: int, temperature: float, seed: int = 0):
    """Logits, and labels drawn from the probabilities that they have at a temperature."""
    random = np.random.default_rng(seed)
    logits = 4 * random.normal(size=(n, 3))
    shares = tempered(logits, temperature).cumsum(axis=1)
    return logits, (random.random((n, 1)) > shares).sum(axis=1).astype(np.int64).clip(0, 2)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_known_temperature_is_recovered(temperature):
    assert fit_temperature(*drawn(40_000, temperature)) == pytest.approx(temperature, rel=0.03)


def test_temperature_never_changes_the_predicted_class():
    logits, _ = drawn(500, 1.0)
    for temperature in (LOWEST, 1.0, HIGHEST):
        np.testing.assert_array_equal(tempered(logits, temperature).argmax(axis=1), logits.argmax(axis=1))


def test_temperature_of_one_leaves_probabilities_as_they_are():
    logits, _ = drawn(10, 1.0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tempered(logits, 1.0), expected)


def test_answers_that_are_all_right_make_nobody_more_certain():
    assert fit_temperature(2 * np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])) == 1


def test_class_never_seen_keeps_probability_zero():
    logits, labels = drawn(200, 1.5)
    logits[:, 2] = -np.inf
    t = fit_temperature(logits, labels.clip(0, 1))
    assert LOWEST < t < HIGHEST
    assert tempered(logits, t)[:, 2].max() == 0


def test_logits_that_carry_nothing_give_the_highest_temperature():
    logits, _ = drawn(1000, 1.0)
    labels = np.random.default_rng(1).integers(0, 3, 1000)
    assert fit_temperature(logits, labels) == pytest.approx(HIGHEST, rel=1e-3)


def test_no_row_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64))


def test_nearest_are_those_with_the_largest_cosine():
    training = unit(np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]))
    positions, cosines = nearest(unit(np.array([[1.0, 0.1]])), training, 2)
    assert positions.tolist() == [[0, 1]]
    np.testing.assert_allclose(cosines, [[0.995037, 0.773957]], atol=1e-6)


def test_fewer_training_images_than_asked_for_are_all_shown():
    training = unit(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert nearest(training[:1], training, 3)[0].tolist() == [[0, 1]]
    np.testing.assert_allclose(distances(training[:1], training, 3), [np.sqrt(2)])


def test_distance_to_itself_is_zero_and_to_the_opposite_two():
    training = np.array([[1.0, 0.0]])
    np.testing.assert_allclose(distances(np.array([[1.0, 0.0], [-1.0, 0.0]]), training, 1), [0.0, 2.0], atol=1e-7)


def test_images_of_the_own_group_are_no_neighbours():
    training = unit(np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.0, -1.0]]))
    found = held_out_distances(training, ["a", "a", "b", "c"], 1)
    np.testing.assert_allclose(found[:2], [np.sqrt(2), np.sqrt(2 - 2 * training[1, 1])])


def test_group_that_leaves_too_few_others_has_no_distance():
    training = unit(np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]))
    assert np.isnan(held_out_distances(training, ["a", "a", "b"], 2)[:2]).all()
    assert threshold(training, ["a", "a", "a"], 1) == float("inf")


def test_threshold_lets_99_percent_of_the_training_images_pass():
    random = np.random.default_rng(0)
    training = unit(random.normal(size=(1200, 8)))
    groups = [str(i) for i in range(1200)]
    limit = threshold(training, groups)
    assert (held_out_distances(training, groups) > limit).mean() == pytest.approx(0.01, abs=0.001)
    fresh = unit(random.normal(size=(1000, 8)))
    assert (distances(fresh, training) > limit).mean() < 0.03


def test_picture_shows_the_mask_and_leaves_the_rest_alone():
    canvas = np.full((64, 64, 3), 100, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[20:40, 20:40] = True
    picture = captioned(canvas, mask, Placement(0, 0, 64, 64), ("benign 90 %",))
    assert picture.shape == (picture_height(64, 1), 64, 3)
    assert (picture[:64][~mask] == 100).all()
    assert (picture[:64][mask] != 100).any(axis=1).all()
    assert (picture[64:] < 128).any(), "the text"


def test_picture_of_an_image_used_whole_has_no_mask():
    canvas = np.full((64, 64, 3), 100, np.uint8)
    picture = captioned(canvas, None, Placement(0, 0, 64, 64), ())
    np.testing.assert_array_equal(picture, canvas)
