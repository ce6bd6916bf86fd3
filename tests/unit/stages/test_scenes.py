"""Synthetic scenes: reproducible, of any size, with outlines where the picture has its edges; no torch."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stages.models.training.scene_families import FAMILIES
from stages.models.training.scenes import LARGEST, MOST_OBJECTS, SMALLEST, Scene, draw_scene

SIDE = 128
SCENES = tuple(draw_scene(7, number, SIDE) for number in range(60))


def outline(mask: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour is on the other side."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    return edge


def contrast(scene: Scene, where: np.ndarray) -> float:
    """Mean difference of grey values between pixels two to the left and two to the right, or above and below."""
    grey = scene.image.astype(float).mean(axis=2)
    dx = np.abs(np.roll(grey, 2, axis=1) - np.roll(grey, -2, axis=1))
    dy = np.abs(np.roll(grey, 2, axis=0) - np.roll(grey, -2, axis=0))
    return float(np.hypot(dx, dy)[where].mean())


def test_same_arguments_give_the_same_scene() -> None:
    again = draw_scene(7, 3, SIDE)
    assert (again.image == SCENES[3].image).all()
    assert (again.masks == SCENES[3].masks).all()
    assert not np.array_equal(again.image, draw_scene(8, 3, SIDE).image)


def test_every_family_occurs() -> None:
    assert {scene.family for scene in SCENES} == set(FAMILIES)


def test_scenes_have_the_shape_they_promise() -> None:
    for scene in SCENES:
        height, width = scene.image.shape[:2]
        assert max(height, width) == SIDE
        assert 0.58 < min(height, width) / SIDE <= 1
        assert scene.masks.shape == (len(scene.kinds), height, width)
        assert 1 <= len(scene.kinds) <= MOST_OBJECTS


def test_objects_are_neither_specks_nor_everything() -> None:
    shares = np.concatenate([scene.masks.mean(axis=(1, 2)) for scene in SCENES])
    assert shares.min() >= SMALLEST
    assert shares.max() <= LARGEST
    assert np.quantile(shares, 0.1) < 0.02
    assert np.quantile(shares, 0.9) > 0.12


def test_parts_lie_in_another_object() -> None:
    parts = 0
    for scene in SCENES:
        for k, kind in enumerate(scene.kinds):
            if kind == "part":
                others = np.delete(scene.masks, k, axis=0)
                inside = [(scene.masks[k] & other).sum() / scene.masks[k].sum() for other in others]
                parts += max(inside, default=0) > 0.8
    assert parts > 20


def test_picture_changes_at_the_outlines() -> None:
    higher = []
    for scene in SCENES:
        edges = np.any([outline(mask) for mask in scene.masks], axis=0)
        higher.append(contrast(scene, edges) > contrast(scene, ~edges))
    assert np.mean(higher) > 0.85


@pytest.mark.parametrize("number", range(8))
def test_a_larger_side_shows_the_same_objects(number: int) -> None:
    large = draw_scene(7, number, 2 * SIDE)
    small = SCENES[number]
    assert large.family == small.family
    found = []
    for mask in small.masks:
        wide = Image.fromarray(mask).resize(large.image.shape[1::-1], Image.Resampling.NEAREST)
        shown = np.asarray(wide)
        found.append(max((shown & m).sum() / (shown | m).sum() for m in large.masks))
    assert np.median(found) > 0.85
