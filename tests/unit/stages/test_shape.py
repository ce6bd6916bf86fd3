"""The numbers that describe a mask."""

from __future__ import annotations

import numpy as np
import pytest

from stages.images import Placement
from stages.shape import SHAPE, mask_shape

S = 64


def test_shape_says_where_a_mask_lies_and_how_large_it_is() -> None:
    mask = np.zeros((S, S), dtype=bool)
    placement = Placement(0, 0, 40, 60)
    mask[10:20, 30:60] = True
    mask[28, 4] = True
    named = dict(zip(SHAPE, mask_shape(mask, placement).tolist(), strict=True))
    assert named["area"] == pytest.approx(301 / 2400)
    assert (named["height"], named["width"], named["parts"]) == pytest.approx((19 / 40, 56 / 60, 0.2))
    assert named["centroid_x"] > 0.5 > named["centroid_y"]
    assert 0.3 < named["solidity"] < 1
    assert mask_shape(np.zeros((S, S), dtype=bool), placement).tolist() == [0.0] * len(SHAPE)
    assert np.isfinite(mask_shape(np.eye(S, dtype=bool), placement)).all()
