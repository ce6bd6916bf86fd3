"""Small holes and islands."""

from __future__ import annotations

import numpy as np
import torch

from stages.images import Placement, place
from stages.proposals.bits import pack
from stages.proposals.candidates import measured
from stages.proposals.regions import cleaned, without_small_regions

S = 64


def square(*boxes: tuple[int, int, int, int], side: int = 20) -> np.ndarray:
    mask = np.zeros((side, side), dtype=bool)
    for y, x, height, width in boxes:
        mask[y : y + height, x : x + width] = True
    return mask


def scored(mask: np.ndarray, placement: Placement):
    packed = pack(torch.from_numpy(mask[None]))
    return measured(packed, torch.tensor([0.8]), torch.tensor([0.6]), placement)


def test_small_hole_is_filled_and_small_island_dropped() -> None:
    solid = square((2, 2, 10, 10))
    given = solid ^ square((5, 5, 2, 2)) | square((16, 16, 2, 2))
    np.testing.assert_array_equal(without_small_regions(given, 5), solid)


def test_regions_of_that_many_pixels_stay() -> None:
    given = square((2, 2, 10, 10)) ^ square((5, 5, 2, 2)) | square((16, 16, 2, 2))
    np.testing.assert_array_equal(without_small_regions(given, 4), given)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    given = square((2, 2, 1, 1), (3, 3, 1, 1), (4, 4, 1, 1))
    np.testing.assert_array_equal(without_small_regions(given, 3), given)


def test_of_small_islands_alone_the_largest_stays() -> None:
    given = square((2, 2, 2, 2), (10, 10, 3, 3))
    np.testing.assert_array_equal(without_small_regions(given, 100), square((10, 10, 3, 3)))


def test_empty_and_full_masks_stay() -> None:
    for given in (square(), square((0, 0, 20, 20))):
        np.testing.assert_array_equal(without_small_regions(given, 50), given)


def test_scores_are_measured_anew_and_padding_is_no_hole() -> None:
    placement = place(S // 2, S, S)
    mask = np.zeros((S, S), dtype=bool)
    mask[placement.slices] = True
    given = mask.copy()
    given[S // 2, 10:12] = given[placement.y0, 30] = False
    found = cleaned(scored(given, placement), placement, 10)
    assert found.scores[0].tolist() == torch.tensor([0.8, 0.6, 1, 1]).tolist()
    np.testing.assert_array_equal(np.unpackbits(found.packed[0].numpy(), axis=-1).astype(bool), mask)


def test_nothing_changes_without_a_least_size() -> None:
    masks = scored(np.eye(S, dtype=bool), Placement(0, 0, S, S))
    assert cleaned(masks, Placement(0, 0, S, S), 0) is masks
