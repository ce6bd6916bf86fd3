"""The proposals' engine against SAM2's own automatic mask generator, on the same weights and thresholds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from stages.images import Placement
from stages.models.sam2 import Segmenter, load_segmenter
from stages.models.training.scenes import draw_scene
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings
from tests.reference import package_generator, package_masks, pairs, random_segmenter, scores_of_grid

S = 256
SAME = 0.999


@pytest.fixture(scope="module")
def random_model() -> Segmenter:
    return random_segmenter("sam2-tiny-untrained", gain=0.15)


def scene(number: int, side: int) -> np.ndarray:
    return square(draw_scene(1, number, side).image, side)


def square(image: np.ndarray, side: int) -> np.ndarray:
    canvas = np.zeros((side, side, image.shape[2]), np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def ours(model: Segmenter, settings: ProposalsSettings, image: np.ndarray) -> np.ndarray:
    candidates, _ = next(Proposer(model, settings).propose([image], [Placement(0, 0, *image.shape[:2])]))
    return np.unpackbits(candidates.packed.numpy(), axis=-1).astype(bool)


@pytest.mark.parametrize("nms_iou", [1.0, 0.7])
@pytest.mark.parametrize("number", range(3))
def test_masks_are_those_of_the_package(random_model, number, nms_iou) -> None:
    image = scene(number, S)
    least = float(np.quantile(scores_of_grid(random_model, image, 8), 0.4))
    settings = ProposalsSettings(
        canvas_px=S,
        points_per_side=8,
        min_predicted_iou=least,
        min_stability=0.3,
        nms_iou=nms_iou,
        max_candidates=256,
    )
    expected = package_masks(package_generator(random_model, settings), image)
    found = ours(random_model, settings, image)
    matched, quality = pairs(found, expected, SAME)
    assert len(expected) > (20 if nms_iou == 1 else 0)
    assert len(matched) / (len(found) + len(expected) - len(matched)) >= 0.99
    assert quality.min() >= SAME


def test_trained_model_finds_what_the_package_finds() -> None:
    model = load_segmenter("sam2-lite0", "cpu")
    settings = ProposalsSettings(points_per_side=8, max_candidates=256)
    found = expected = matched = 0
    for number in range(4):
        image = scene(number, 512)
        theirs, mine = package_masks(package_generator(model, settings), image), ours(model, settings, image)
        both, _ = pairs(mine, theirs, SAME)
        found, expected, matched = found + len(mine), expected + len(theirs), matched + len(both)
    assert expected > 8
    assert matched / (found + expected - matched) >= 0.99


def test_one_image_at_a_time_gives_what_a_batch_gives(random_model) -> None:
    images = [scene(n, S) for n in range(3)]
    placements = [Placement(0, 0, S, S)] * 3
    proposer = Proposer(random_model, ProposalsSettings(canvas_px=S, points_per_side=5, nms_iou=1, max_candidates=256))
    together = list(proposer.propose(images, placements))
    for (batched, fixed), image in zip(together, images, strict=True):
        alone, alone_fixed = next(proposer.propose([image], placements[:1]))
        assert len(alone) == len(batched)
        torch.testing.assert_close(batched.scores, alone.scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(fixed.scores, alone_fixed.scores, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_coarse_to_fine_asks_less_than_half_and_finds_what_the_dense_grid_finds(monkeypatch) -> None:
    model, asked, found = load_segmenter("sam2-lite0", "cpu"), Counter[str](), Counter[str]()
    decode = model.decode
    now = ""

    def counted(features, points, labels, wanted):
        asked[now] += points.shape[0] * points.shape[1]
        return decode(features, points, labels, wanted)

    monkeypatch.setattr(model, "decode", counted)
    for number in range(8):
        drawn = draw_scene(1, number, 512)
        image, truths = square(drawn.image, 512), [square(m[..., None], 512)[..., 0] > 0 for m in drawn.masks]
        for now in ("dense", "coarse-to-fine"):
            settings = ProposalsSettings(points_per_side=16, max_candidates=256, prompting=now)
            found[now] += len({j for _, j in pairs(ours(model, settings, image), np.stack(truths), 0.5)[0]})
    assert found["dense"] >= 10
    assert found["coarse-to-fine"] >= 0.9 * found["dense"]
    assert asked["coarse-to-fine"] < 0.5 * asked["dense"]
