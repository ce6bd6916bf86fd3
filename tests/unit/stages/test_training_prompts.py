"""Prompts and views that the embedded SAM2 is trained with; no torch."""

from __future__ import annotations

import numpy as np
import pytest

from stages.models.sam2_card import INSIDE, OUTSIDE
from stages.models.training.augment import Labelled, random_view
from stages.models.training.prompts import box_of, click_beside, click_inside, correction, jittered_box

SIDE = 96


@pytest.fixture
def disc() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.asarray(np.hypot(y - 40, x - 50) < 15)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_clicks_lie_inside_and_spread_from_the_middle_to_the_edge(disc: np.ndarray) -> None:
    clicks = np.stack([click_inside(disc, rng(k)) for k in range(200)])
    assert disc[clicks[:, 1].astype(int), clicks[:, 0].astype(int)].all()
    distance = np.hypot(clicks[:, 0] - 50, clicks[:, 1] - 40)
    assert distance.min() < 3
    assert distance.max() > 12


def test_click_beside_is_in_the_image_and_clear_of_every_object(disc: np.ndarray) -> None:
    content = np.zeros_like(disc)
    content[10:80] = True
    clicks = np.stack([click_beside(disc[None], content, rng(k)) for k in range(200)])
    columns, rows = clicks.astype(int).T
    assert content[rows, columns].all()
    assert not disc[rows, columns].any()


def test_no_click_beside_an_object_that_fills_the_image() -> None:
    full = np.ones((1, SIDE, SIDE), dtype=bool)
    assert (click_beside(full, full[0], rng(0)) == -1).all()


def test_boxes_are_exact_or_off_by_a_little(disc: np.ndarray) -> None:
    exact = box_of(disc)
    assert exact.tolist() == [[36, 26], [65, 55]]
    boxes = np.stack([jittered_box(disc, rng(k), 0.4) for k in range(300)])
    assert 0.3 < (boxes == exact).all(axis=(1, 2)).mean() < 0.5
    assert np.abs(boxes - exact).max() <= 29 / 3
    assert (boxes[:, 1] > boxes[:, 0]).all()


def test_correction_is_where_the_mask_is_wrong(disc: np.ndarray) -> None:
    shifted = np.roll(disc, 20, axis=1)
    for k in range(50):
        (x, y), label = correction(disc, shifted, rng(k))
        assert disc[int(y), int(x)] != shifted[int(y), int(x)]
        assert label == (INSIDE if disc[int(y), int(x)] else OUTSIDE)


def test_correction_of_a_perfect_mask_clicks_inside(disc: np.ndarray) -> None:
    (x, y), label = correction(disc, disc, rng(0))
    assert label == INSIDE
    assert disc[int(y), int(x)]


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_move_together(disc: np.ndarray, seed: int) -> None:
    image = np.where(disc, 250, 20).astype(np.uint8)[..., None].repeat(3, axis=2)
    view = random_view(Labelled(image, disc[None], (True,)), 128, rng(seed))
    bright = view.canvas[..., 0] > (view.canvas[view.content].max() / 2 + view.canvas[view.content].min() / 2)
    overlap = (bright & view.masks[0]).sum() / (bright | view.masks[0]).sum()
    assert overlap > 0.9
    assert not view.canvas[~view.content].any()


def test_object_that_a_crop_hardly_shows_is_left_out() -> None:
    speck = np.zeros((1, SIDE, SIDE), dtype=bool)
    speck[0, 5:7, 5:7] = True
    image = np.full((SIDE, SIDE, 3), 90, np.uint8)
    seen = [random_view(Labelled(image, speck, (True,)), 64, rng(k)) for k in range(20)]
    assert all(view.masks.sum() == 0 or view.masks.sum() >= 6e-4 * 64**2 for view in seen)
    assert any(len(view.masks) == 0 for view in seen)
    assert all(len(view.masks) == len(view.salient) for view in seen)
