"""The engine on a GPU gives what it gives on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.images import Placement
from stages.models.sam2 import Segmenter, load_segmenter
from stages.models.training.samples import HELD_OUT_SEED
from stages.models.training.scenes import draw_scene
from stages.proposals import bits
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings
from tests.reference import pairs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

S = 512


def scenes(n: int) -> list[np.ndarray]:
    images = []
    for number in range(n):
        canvas = np.zeros((S, S, 3), np.uint8)
        drawn = draw_scene(HELD_OUT_SEED, number, S).image
        canvas[: drawn.shape[0], : drawn.shape[1]] = drawn
        images.append(canvas)
    return images


def proposed(model: Segmenter, images: list[np.ndarray], prompting: str) -> list[np.ndarray]:
    settings = ProposalsSettings(points_per_side=8, max_candidates=256, prompting=prompting)
    found = Proposer(model, settings).propose(images, [Placement(0, 0, S, S)] * len(images))
    return [np.unpackbits(masks.packed.cpu().numpy(), axis=-1).astype(bool) for masks, _ in found]


@pytest.mark.parametrize("prompting", ["dense", "coarse-to-fine"])
def test_masks_are_those_of_the_cpu(prompting: str) -> None:
    images = scenes(4)
    both = other = 0
    for ours, theirs in zip(
        *(proposed(load_segmenter("sam2-lite0", d), images, prompting) for d in ("cuda", "cpu")), strict=True
    ):
        same, _ = pairs(ours, theirs, 0.99)
        both, other = both + len(same), other + len(ours) + len(theirs) - 2 * len(same)
    assert both > 8
    assert both / (both + other) >= 0.95


def test_bfloat16_finds_most_of_the_same_masks() -> None:
    images = scenes(4)
    exact, rough = (proposed(load_segmenter("sam2-lite0", "cuda", p), images, "dense") for p in ("float32", "bfloat16"))
    found = sum(len(pairs(a, b, 0.9)[0]) for a, b in zip(rough, exact, strict=True))
    assert found / sum(map(len, exact)) >= 0.8


def test_cells_of_the_kernel_give_the_masks_of_written_cells() -> None:
    model = load_segmenter("sam2-lite0", "cuda", "bfloat16")
    images = scenes(4)
    assert model._decoder.fused
    fused = proposed(model, images, "dense")
    model._decoder.fused = False
    written = proposed(model, images, "dense")
    found = sum(len(pairs(a, b, 0.9)[0]) for a, b in zip(fused, written, strict=True))
    assert found / sum(map(len, written)) >= 0.9


def test_packed_bits_are_those_of_the_cpu() -> None:
    masks = torch.rand(7, 64, 64) > 0.7
    masks[3] = False
    packed = bits.pack(masks)
    on_device = bits.pack(masks.cuda())
    assert torch.equal(on_device.cpu(), packed)
    assert torch.equal(bits.areas(on_device).cpu(), bits.areas(packed))
    assert torch.equal(bits.boxes(on_device).cpu(), bits.boxes(packed))


def test_memory_is_flat_in_the_number_of_images() -> None:
    model = load_segmenter("sam2-lite0", "cuda")
    images = scenes(4)
    proposed(model, images, "dense")
    torch.cuda.reset_peak_memory_stats()
    proposed(model, images, "dense")
    first = torch.cuda.max_memory_allocated()
    for _ in range(8):
        proposed(model, images, "dense")
    assert torch.cuda.max_memory_allocated() <= 1.05 * first
