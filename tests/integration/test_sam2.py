"""SAM2 as it is loaded here: the package's own predictor, the shipped model, and Meta's file format."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sam2.sam2_image_predictor import SAM2ImagePredictor

from manifests.errors import WeightsError
from stages.base import StageContext
from stages.images import Placement
from stages.models import weights
from stages.models.sam2 import Segmenter, best_of_three, load_segmenter, single_mask
from stages.models.weights import WeightsFolder
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings
from stages.proposals.stage import Proposals

S = 512
TINY_PX = 256
LESION = ((300, 220), (70, 45))
"""Centre x, y and half axes of the phantom's ellipse, in pixels."""


@pytest.fixture(scope="module")
def tiny() -> Segmenter:
    return load_segmenter("sam2-tiny-untrained", "cpu")


@pytest.fixture(scope="module")
def embedded() -> Segmenter:
    return load_segmenter("sam2-lite0", "cpu")


@pytest.fixture
def predictor(tiny: Segmenter) -> Iterator[SAM2ImagePredictor]:
    with warnings.catch_warnings():
        # The package scripts its transforms, which newer versions of torch deprecate.
        warnings.filterwarnings("ignore", message=r".*torch\.jit")
        predictor = SAM2ImagePredictor(tiny.network)
    predictor._bb_feat_sizes = [(64, 64), (32, 32), (16, 16)]
    yield predictor
    predictor.reset_predictor()


def noise(seed: int, side: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


def phantom(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A speckled canvas with a dark ellipse, as a cyst looks in ultrasound, and the ellipse."""
    (cx, cy), (a, b) = LESION
    y, x = np.mgrid[:S, :S]
    inside = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 < 1
    speckle = np.random.default_rng(seed).rayleigh(1.0, (S, S))
    grey = np.clip(np.where(inside, 15, 95) * speckle, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), inside


def best_mask(segmenter: Segmenter, image: np.ndarray, points: list, labels: list) -> np.ndarray:
    features = segmenter.encode(torch.from_numpy(image[None]))
    wanted = best_of_three if len(points) == 1 else single_mask
    logits, _, _ = segmenter.decode(features, torch.tensor([[points]]), torch.tensor([[labels]]), wanted)
    return (F.interpolate(logits[None], (S, S), mode="bilinear")[0, 0] > 0).numpy()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("side", [TINY_PX, 512, 192])
def test_one_click_equals_the_predictor_of_the_package(tiny, predictor, side) -> None:
    image = noise(side, side)
    predictor.set_image(image)
    _, expected_iou, expected = predictor.predict(
        np.array([[side * 0.7, side * 0.4]]), np.array([1]), return_logits=True
    )
    features = tiny.encode(torch.from_numpy(image[None]))
    logits, found_iou, _ = tiny.decode(features, torch.tensor([[[[side * 0.7, side * 0.4]]]]), torch.tensor([[[1]]]))
    np.testing.assert_allclose(found_iou[0, 0, 1:], expected_iou, atol=1e-6)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_box_equals_the_predictor_of_the_package(tiny, predictor) -> None:
    image = noise(1, S)
    predictor.set_image(image)
    _, expected_iou, expected = predictor.predict(box=np.array([40, 60, 300, 420]), return_logits=True)
    features = tiny.encode(torch.from_numpy(image[None]))
    corners = torch.tensor([[[[40.0, 60.0], [300.0, 420.0]]]])
    logits, found_iou, _ = tiny.decode(features, corners, torch.tensor([[[2, 3]]]))
    np.testing.assert_allclose(found_iou[0, 0, 1:], expected_iou, atol=1e-6)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_single_mask_equals_that_of_the_package(tiny, predictor) -> None:
    image = noise(1, S)
    predictor.set_image(image)
    # The package falls back on the multimask output where its single mask is not stable.
    predictor.model.sam_mask_decoder.dynamic_multimask_via_stability = False
    box = np.array([40, 60, 300, 420])
    _, expected_iou, expected = predictor.predict(box=box, multimask_output=False, return_logits=True)
    corners = torch.tensor([[[[40.0, 60.0], [300.0, 420.0]]]])
    logits, found_iou, _ = tiny.decode(
        tiny.encode(torch.from_numpy(image[None])), corners, torch.tensor([[[2, 3]]]), single_mask
    )
    np.testing.assert_allclose(found_iou[0, 0, :1], expected_iou, atol=1e-6)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_images_and_prompts_of_one_call_equal_one_prompt_a_call(tiny) -> None:
    features = tiny.encode(torch.from_numpy(np.stack([noise(1, TINY_PX), noise(2, TINY_PX)])))
    points = torch.rand(2, 7, 1, 2, generator=torch.Generator().manual_seed(0)) * TINY_PX
    together, predicted, _ = tiny.decode(features, points, torch.ones(2, 7, 1))
    one_by_one = [
        tiny.decode(features.of(i), points[i, p].view(1, 1, 1, 2), torch.ones(1, 1, 1))
        for i in range(2)
        for p in range(7)
    ]
    torch.testing.assert_close(together, torch.cat([one.logits for one in one_by_one]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predicted.flatten(0, 1), torch.cat([one.predicted_iou[0] for one in one_by_one]))
    assert together.view(2, 7, 3, -1).std(dim=1).max() > 1e-4


def test_only_wanted_masks_are_made_and_they_are_the_same(tiny) -> None:
    features = tiny.encode(torch.from_numpy(np.stack([noise(1, TINY_PX), noise(2, TINY_PX)])))
    points = torch.rand(2, 5, 1, 2, generator=torch.Generator().manual_seed(0)) * TINY_PX
    wanted = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(1)) > 0.7
    every = tiny.decode(features, points, torch.ones(2, 5, 1), lambda q: q < 2).logits.view(2, 5, 4, 64, 64)
    some = tiny.decode(features, points, torch.ones(2, 5, 1), lambda _: wanted)
    assert 0 < len(some.logits) == wanted.sum() < 40
    torch.testing.assert_close(some.logits, every[wanted], rtol=1e-4, atol=1e-5)
    assert not len(tiny.decode(features, points, torch.ones(2, 5, 1), lambda q: q > 2).logits)


def test_untrained_model_says_so_and_is_always_the_same(tiny, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        again = load_segmenter("sam2-tiny-untrained", "cpu")
    assert "untrained" in caplog.text
    for a, b in zip(tiny.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_loading_draws_no_random_number_of_others() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_segmenter("sam2-tiny-untrained", "cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("images", [torch.zeros(1, 8, 8, 3), torch.zeros(1, 8, 9, 3, dtype=torch.uint8)])
def test_images_of_another_form_are_refused(tiny, images) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, S, S, 3\) uint8, got"):
        tiny.encode(images)


def test_points_outside_the_canvas_are_refused(tiny) -> None:
    features = tiny.encode(torch.zeros(1, TINY_PX, TINY_PX, 3, dtype=torch.uint8))
    for x in (-1.0, TINY_PX + 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"in 0\.\.256"):
            tiny.decode(features, torch.tensor([[[[x, 5.0]]]]), torch.ones(1, 1, 1))


def test_embedded_model_segments_a_phantom_from_a_click_and_from_a_box(embedded) -> None:
    image, lesion = phantom()
    (cx, cy), (a, b) = LESION
    assert iou(best_mask(embedded, image, [[float(cx), float(cy)]], [1]), lesion) > 0.75
    corners = [[float(cx - a), float(cy - b)], [float(cx + a), float(cy + b)]]
    assert iou(best_mask(embedded, image, corners, [2, 3]), lesion) > 0.75


def test_proposals_of_the_phantom_hold_its_lesion(embedded) -> None:
    image, lesion = phantom()
    proposer = Proposer(embedded, ProposalsSettings())
    candidates, fixed = next(proposer.propose([image], [Placement(0, 0, S, S)]))
    masks = np.unpackbits(candidates.packed, axis=-1).astype(bool)
    assert max(iou(m, lesion) for m in masks) > 0.75
    assert len(fixed) == 2


def test_batch_size_changes_no_mask(embedded) -> None:
    images = [phantom(seed)[0] for seed in range(4)]
    placements = [Placement(0, 0, S, S)] * 4
    proposer = Proposer(embedded, ProposalsSettings(points_per_side=2))
    together = list(proposer.propose(images, placements))
    alone = [next(proposer.propose([i], [p])) for i, p in zip(images, placements, strict=True)]
    for (a, fixed_a), (b, fixed_b) in zip(together, alone, strict=True):
        assert len(a) == len(b)
        for one, other in ((a, b), (fixed_a, fixed_b)):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
            masks = [np.unpackbits(m.packed, axis=-1).astype(bool) for m in (one, other)]
            assert all(iou(x, y) >= 0.999 for x, y in zip(*masks, strict=True))


def test_card_is_known_without_loading_and_pins_every_file(embedded) -> None:
    card = Proposals(ProposalsSettings(), StageContext()).attributes()["card"]
    assert card == embedded.card
    assert len(card["weights"]) == 2


def test_altered_shipped_file_is_refused(tmp_path, monkeypatch) -> None:
    for file in weights.SHIPPED.glob("sam2_*.safetensors"):
        copy = Path(shutil.copy(file, tmp_path))
        copy.write_bytes(copy.read_bytes()[:-4] + b"\0\0\1\0")
    monkeypatch.setattr(weights, "SHIPPED", tmp_path)
    with pytest.raises(WeightsError, match="was altered"):
        load_segmenter("sam2-lite0", "cpu")


@pytest.mark.slow
def test_checkpoint_in_the_format_of_meta_is_added_and_loaded(tmp_path, monkeypatch) -> None:
    from stages.models.sam2_architecture import instantiate_seeded, read_config

    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "folder"))
    network = instantiate_seeded(read_config("sam2.1/sam2.1_hiera_t.yaml"))
    torch.save({"model": network.state_dict()}, tmp_path / "sam2.1_hiera_tiny.pt")
    WeightsFolder().add("sam2.1_hiera_tiny", tmp_path / "sam2.1_hiera_tiny.pt")
    loaded = load_segmenter("sam2.1_hiera_tiny", "cpu")
    assert torch.equal(loaded.network.no_mem_embed, network.no_mem_embed)
    for other in ("sam2.1_hiera_small", "sam2_hiera_tiny"):
        with pytest.raises(WeightsError, match="do not fit each other"):
            WeightsFolder().add(other, tmp_path / "sam2.1_hiera_tiny.pt")
    WeightsFolder().add("medsam2", tmp_path / "sam2.1_hiera_tiny.pt")
    medsam2 = load_segmenter("medsam2", "cpu")
    assert medsam2.image_px == S
    features = medsam2.encode(torch.from_numpy(noise(0, S)[None]))
    logits, _, _ = medsam2.decode(features, torch.tensor([[[[200.0, 200.0]]]]), torch.ones(1, 1, 1))
    assert logits.shape == (3, S // 4, S // 4)
    assert bool(logits.isfinite().all())


@pytest.mark.slow
def test_compiled_encoder_gives_the_same_features(tiny) -> None:
    compiled = load_segmenter("sam2-tiny-untrained", "cpu", compiled=True)
    assert hasattr(compiled._encode, "_torchdynamo_orig_callable")
    image = torch.from_numpy(noise(0, TINY_PX)[None])
    expected, found = (m.encode(image).maps.source for m in (tiny, compiled))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.std()), rtol=0)


def test_clip_model_is_refused_as_a_segmenter() -> None:
    with pytest.raises(WeightsError, match="is neither SAM nor SAM2"):
        load_segmenter("lite0-minilm", "cpu")


@pytest.mark.parametrize(
    ("points", "labels", "said"),
    [
        ([[30.0, 10.0], [10.0, 30.0]], [2, 3], "upper left"),
        ([[10.0, 30.0], [30.0, 10.0]], [2, 3], "upper left"),
        ([[10.0, 10.0], [30.0, 30.0]], [3, 2], "upper left"),
        ([[10.0, 10.0]], [7], "labels"),
        ([[10.0, 10.0]], [-5], "labels"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(tiny, points, labels, said):
    features = tiny.encode(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))
    with pytest.raises(ValueError, match=said):
        tiny.decode(features, torch.tensor([[points]]), torch.tensor([[labels]]))


def test_no_prompt_is_refused_and_a_thousand_boxes_are_not(tiny):
    features = tiny.encode(torch.zeros((1, 64, 64, 3), dtype=torch.uint8))
    with pytest.raises(ValueError, match="labels"):
        tiny.decode(features, torch.zeros((1, 0, 1, 2)), torch.zeros((1, 0, 1), dtype=torch.int64))
    boxes = torch.tensor([[8.0, 8.0], [40.0, 40.0]]).expand(1, 1000, 2, 2)
    decoded = tiny.decode(features, boxes, torch.tensor([2, 3]).expand(1, 1000, 2))
    assert decoded.predicted_iou.shape[:2] == (1, 1000)
    assert torch.isfinite(decoded.predicted_iou).all()
