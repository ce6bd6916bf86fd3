from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.images import COMPOSITING, Placement, composite, content, letterbox, outline, place, unletterbox
from stages.masks.settings import Compositing

SIZES = [(256, 320), (37, 91), (101, 100), (1, 4000), (4000, 1), (1, 1), (3, 2)]


def disc(height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    return np.asarray((y - height * 0.4) ** 2 + (x - width * 0.6) ** 2 < (min(height, width) * 0.3) ** 2)


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize(("height", "width"), [(256, 320), (700, 431), (91, 137)])
def test_mask_survives_the_round_trip(height: int, width: int) -> None:
    mask = disc(height, width)
    canvas, placement = letterbox(mask, 128)
    back = unletterbox(canvas, placement, height, width)
    assert back.shape == mask.shape
    assert back.dtype == bool
    assert iou(mask, back) > 0.9


def test_square_in_the_image_lands_where_geometry_says() -> None:
    image = np.zeros((200, 400, 3), np.uint8)
    image[50:150, 100:200] = 255
    canvas, placement = letterbox(image, 100)
    assert placement == (25, 0, 50, 100)
    expected = np.zeros((100, 100), bool)
    expected[37:63, 25:50] = True
    assert iou(canvas[..., 0] > 127, expected) > 0.9


def test_image_and_its_mask_stay_aligned_on_the_canvas() -> None:
    mask = disc(311, 477)
    image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * np.uint8(255)
    from_image, a = letterbox(image, 256)
    from_mask, b = letterbox(mask, 256)
    assert a == b
    assert iou(from_image[..., 0] > 127, from_mask) > 0.98


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_size_fits_the_canvas_and_keeps_at_least_one_pixel(height: int, width: int) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    canvas, placement = letterbox(image, 64)
    inside = content(placement, 64)
    assert max(placement.height, placement.width) == 64
    assert min(placement.height, placement.width) >= 1
    assert (canvas[inside] == 200).all()
    assert not canvas[~inside].any()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_full_mask_of_every_size_comes_back_full(height: int, width: int) -> None:
    canvas, placement = letterbox(np.ones((height, width), bool), 64)
    assert (canvas == content(placement, 64)).all()
    assert unletterbox(canvas, placement, height, width).all()


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_mask_of_an_image_that_fits_the_canvas_comes_back_exact_to_the_pixel(
    height: int, width: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    canvas, placement = letterbox(mask, 64)
    assert np.array_equal(unletterbox(canvas, placement, height, width), mask)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    canvas, _ = letterbox(stripes, 64)
    assert 110 < canvas[8:-8, 8:-8].min() <= canvas[8:-8, 8:-8].max() < 145


def test_image_of_canvas_size_is_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (letterbox(image, 64)[0] == image).all()


def test_placement_comes_back_from_its_stored_row() -> None:
    placement = place(33, 77, 64)
    stored = placement.array()
    assert stored.dtype == np.int32
    assert Placement.of(stored) == placement


@pytest.mark.parametrize(
    "array", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)]
)
def test_array_of_another_kind_is_named_with_both_sides(array: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match=r"expected .* got"):
        letterbox(array, 64)


def test_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="have pixels, got 0 x 5"):
        letterbox(np.zeros((0, 5, 3), np.uint8), 64)


def test_placement_of_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="placement: expected"):
        unletterbox(np.ones((64, 64), bool), place(10, 20, 64), 20, 10)


def picture() -> tuple[NDArray[np.uint8], NDArray[np.bool_], Placement]:
    image = np.random.default_rng(1).integers(1, 256, (64, 64, 3), dtype=np.uint8)
    placement = place(32, 64, 64)
    image[~content(placement, 64)] = 0
    mask = np.zeros((64, 64), bool)
    mask[24:36, 10:30] = True
    return image, mask, placement


def test_masked_is_the_image_times_the_mask() -> None:
    image, mask, placement = picture()
    assert (composite(image, mask, "masked", placement) == image * mask[..., None]).all()


def test_binary_is_white_on_black_and_ignores_the_image() -> None:
    image, mask, placement = picture()
    out = composite(image, mask, "binary", placement)
    assert (out == mask[..., None] * 255).all()


def test_overlay_tints_the_mask_and_leaves_the_rest() -> None:
    image, mask, placement = picture()
    out = composite(image, mask, "overlay", placement)
    assert (out[~mask] == image[~mask]).all()
    assert (out[outline(mask)] == (255, 176, 0)).all()
    inner = mask & ~outline(mask)
    assert np.abs(out[inner] - (image[inner] / 2 + np.array([255, 176, 0]) / 2)).max() <= 0.5


def test_crop_enlarges_the_mask_s_box_with_a_margin() -> None:
    image, mask, placement = picture()
    out = composite(image, mask, "crop", placement)
    expected, _ = letterbox(image[22:38, 8:32], 64)
    assert (out == expected).all()


def test_crop_never_shows_the_padding() -> None:
    image, _, placement = picture()
    whole = content(placement, 64)
    assert (composite(image, whole, "crop", placement) == image).all()


def test_crop_of_an_empty_mask_is_refused() -> None:
    image, mask, placement = picture()
    with pytest.raises(ValueError, match="at least one pixel"):
        composite(image, np.zeros_like(mask), "crop", placement)


def test_blur_keeps_the_mask_and_smooths_the_rest() -> None:
    image, mask, placement = picture()
    out = composite(image, mask, "blur", placement)
    rest = content(placement, 64) & ~mask
    assert (out[mask] == image[mask]).all()
    assert out[rest].std() < image[rest].std() / 2
    assert not out[~content(placement, 64)].any()


@pytest.mark.parametrize("mode", sorted(COMPOSITING))
def test_mask_in_the_padding_shows_nothing_there(mode: str) -> None:
    image, mask, placement = picture()
    spilled = mask | ~content(placement, 64)
    assert (composite(image, spilled, mode, placement) == composite(image, mask, mode, placement)).all()


def test_every_compositing_of_the_settings_exists() -> None:
    assert set(get_args(Compositing)) == set(COMPOSITING)


def test_unknown_compositing_is_named() -> None:
    image, mask, placement = picture()
    with pytest.raises(ValueError, match="'shade'"):
        composite(image, mask, "shade", placement)
