"""SAM and MedSAM: the same answers as transformers' own model, from files of either kind."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from manifests.errors import WeightsError
from stages.models import registry, sam1
from stages.models.sam2 import all_three, load_segmenter, single_mask
from stages.models.sam2_card import CORNERS, INSIDE
from stages.models.weights import WeightsFolder

S = 256
SMALL = sam1.Vit(96, 4, 3, (1, 3))


@pytest.fixture(scope="module")
def theirs() -> SamModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = SamConfig(
            vision_config=SamVisionConfig(
                hidden_size=SMALL.width,
                num_hidden_layers=SMALL.depth,
                num_attention_heads=SMALL.heads,
                global_attn_indexes=list(SMALL.seeing_all),
                image_size=S,
            ),
            prompt_encoder_config=SamPromptEncoderConfig(image_size=S),
            # Meta's decoder has the usual epsilon of layer norms.
            mask_decoder_config=SamMaskDecoderConfig(layer_norm_eps=1e-5),
        )
        model = SamModel(config).eval()
        for weight in model.parameters():
            weight.data = weight.data + 0.05 * torch.randn(weight.shape)
    return model


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("MEDFOCUS_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(sam1, "SIZES", {"sam_vit_b": SMALL})
    known = {name: dataclasses.replace(m, image_px=S) for name, m in registry._BY_NAME.items() if m.kind == "sam"}
    monkeypatch.setattr(registry, "_BY_NAME", registry._BY_NAME | known)


def metas(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys of Meta's files."""
    found = {}
    for key, value in state.items():
        if key == "prompt_encoder.shared_embedding.positional_embedding":
            continue
        name = sam1._renamed(key, sam1._FROM_TRANSFORMERS)
        for ours, meta in (
            (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
            (r"^image_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
            (r"^image_encoder\.layers\.", "image_encoder.blocks."),
            (r"\.neck\.conv1\.", ".neck.0."),
            (r"\.neck\.layer_norm1\.", ".neck.1."),
            (r"\.neck\.conv2\.", ".neck.2."),
            (r"\.neck\.layer_norm2\.", ".neck.3."),
        ):
            name = re.sub(ours, meta, name)
        found[name] = value
    return found


def added(name: str, state: dict[str, torch.Tensor], tmp_path):
    file = tmp_path / "given.safetensors"
    save_file({k: v.clone().contiguous() for k, v in state.items()}, file)
    WeightsFolder().add(name, file)
    return load_segmenter(name, "cpu")


@pytest.mark.parametrize("keys", ["transformers", "meta"])
def test_answers_are_those_of_transformers(theirs, keys, tmp_path) -> None:
    state = theirs.state_dict()
    ours = added("sam-vit-b", state if keys == "transformers" else metas(state), tmp_path)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, S, S, 3), dtype=np.uint8))
    points = torch.tensor([[[[40.0, 60.0]], [[200.0, 100.0]]], [[[128.0, 128.0]], [[5.0, 250.0]]]])
    corners = torch.tensor([[[[20.0, 30.0], [120.0, 200.0]]], [[[0.0, 0.0], [256.0, 256.0]]]])
    features = ours.encode(image)
    pixels = (image.permute(0, 3, 1, 2).float() / 255 - torch.tensor(ours.card["mean"]).view(1, 3, 1, 1)) / (
        torch.tensor(ours.card["std"]).view(1, 3, 1, 1)
    )
    with torch.no_grad():
        for many, wanted in ((True, all_three), (False, single_mask)):
            expected = theirs(pixel_values=pixels, input_points=points, multimask_output=many)
            found = ours.decode(features, points + 0.0, torch.full((2, 2, 1), INSIDE), wanted)
            assert_same(found, expected)
        expected = theirs(pixel_values=pixels, input_boxes=corners.flatten(2), multimask_output=False)
        labels = torch.tensor(CORNERS).expand(2, 1, 2)
        assert_same(ours.decode(features, corners, labels, single_mask), expected)


def assert_same(found, expected) -> None:
    logits = expected.pred_masks.flatten(0, 2)
    spread = float(logits.std())
    assert spread > 0.01
    torch.testing.assert_close(found.logits, logits, atol=1e-3 * spread, rtol=0)
    scores = found.predicted_iou[found.wanted].view(expected.iou_scores.shape)
    torch.testing.assert_close(scores, expected.iou_scores, atol=1e-4, rtol=1e-4)


def test_medsam_sees_pixels_as_they_are(theirs, tmp_path) -> None:
    card = added("medsam-vit-b", theirs.state_dict(), tmp_path).card
    assert (card["mean"], card["std"]) == ([0, 0, 0], [1, 1, 1])


def test_file_of_another_size_is_refused(theirs, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sam1, "SIZES", {"sam_vit_b": sam1.Vit(48, 4, 3, (1, 3))})
    with pytest.raises(WeightsError, match=r"do not fit each other: of another shape: image_encoder\.pos_embed"):
        added("sam-vit-b", theirs.state_dict(), tmp_path)
