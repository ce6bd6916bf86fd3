"""Features of segmenters' encoders at five depths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from manifests.types import ItemOutcome, Status
from stages.base import StageContext, empty_arrays
from stages.models.registry import entry
from stages.models.sam1 import Sam
from stages.models.sam2 import Segmenter, load_segmenter
from stages.models.sam2_card import depth_channels
from stages.models.sam2_depths import encode_depths
from stages.pictures.grids import Grids
from stages.pictures.settings import GridsSettings

IMAGES = [np.random.default_rng(seed).integers(0, 256, (96, 80, 3), dtype=np.uint8) for seed in range(3)]


def small_sam() -> Segmenter:
    """SAM's ViT-B with random weights, on squares of 64 pixels."""
    known = replace(entry("sam-vit-b"), image_px=64)
    network = Sam(known.architecture, 64).eval().requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    mean, std = known.mean_std
    return Segmenter(known, network, {"mean": mean, "std": std, "precision": "float32"}, "cpu")


@pytest.fixture(scope="module", params=["sam2-lite0", "sam2-tiny-untrained", "sam-vit-b"])
def model(request: pytest.FixtureRequest) -> Segmenter:
    return small_sam() if request.param == "sam-vit-b" else load_segmenter(request.param, "cpu")


def test_depths_have_the_channels_that_the_store_is_made_for(model: Segmenter) -> None:
    depths = encode_depths(model, IMAGES, 4)
    assert [depth.shape for depth in depths] == [(3, channels, 4, 4) for channels in depth_channels(model.name)]
    assert all(np.isfinite(depth).all() and depth.astype(np.float32).std() > 0 for depth in depths)


def test_image_alone_gives_what_it_gives_among_others(model: Segmenter) -> None:
    for alone, together in zip(encode_depths(model, IMAGES[1:2], 2), encode_depths(model, IMAGES, 2), strict=True):
        np.testing.assert_allclose(alone[0], together[1], atol=2e-3)


def test_features_that_are_not_finite_make_a_failed_row() -> None:
    stage = Grids(GridsSettings(model="sam2-tiny-untrained", grid=2), StageContext())
    arrays = empty_arrays(stage.outputs(), 2)
    for name in set(arrays) - {"status"}:
        arrays[name][:] = 1
    arrays["depth3"][1, 0, 0, 0] = np.inf
    fine, lost = (stage._judged(ItemOutcome(row, "a", Status.OK), arrays, row) for row in range(2))
    assert (fine.status, lost.status, lost.reason) == (Status.OK, Status.FAILED, "grid.nonfinite")
    assert np.isnan(arrays["depth0"][1]).all()
    assert (arrays["depth0"][0] == 1).all()


def test_one_cell_is_the_mean_of_many_and_the_last_depth_is_the_neck(model: Segmenter) -> None:
    for one, many in zip(encode_depths(model, IMAGES, 1), encode_depths(model, IMAGES, 4), strict=True):
        mean = many.astype(np.float32).mean(axis=(2, 3))
        np.testing.assert_allclose(one[:, :, 0, 0], mean, atol=2e-3 * np.abs(mean).max())
    square = torch.from_numpy(np.zeros((1, model.image_px, model.image_px, 3), np.uint8))
    with torch.inference_mode():
        neck = model.network.forward_image(model.normalised(square))["backbone_fpn"][-1]
    last = encode_depths(model, [square[0].numpy()], 1)[-1]
    np.testing.assert_allclose(last[0, :, 0, 0], neck[0].mean(dim=(1, 2)), atol=2e-3)
    assert not model.network.image_encoder._forward_hooks
