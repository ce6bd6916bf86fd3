"""Attention rollout of towers against their weights by hand, and the maps that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from torch import Tensor

from pipeline.workspace import Workspace
from stages.models import card, clip, open_clip_files
from stages.models.rollout import AttentionLayers, attention_layers, rolled_out
from stages.models.timm_files import TimmTower
from stages.models.towers import Bias, TrunkOutput, VitTower
from stages.models.weights import WeightsFolder
from tests.integration.pipelines import copy_source
from tests.integration.test_attention import assert_as_committed, committed_study, look
from tests.integration.test_clip import TINY, TINY_NAME, save

pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A vision transformer of open_clip's with two heads and random weights, added to the weights folder."""
    config = TINY | {"vision_cfg": TINY["vision_cfg"] | {"head_width": 32}}  # type: ignore[operator]
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", config)
    for module in (card, open_clip_files):
        monkeypatch.setattr(module, "architecture_config", lambda _name: config)
    torch.manual_seed(0)
    model = open_clip_files.build("tiny-quickgelu").eval()
    WeightsFolder().add(TINY_NAME, save(model, tmp_path / "tiny.safetensors"))
    return model


def by_hand(visual: Any, pixels: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rollout of a tower from softmax(Q K^T) of its own weights, row of the class token, (B, h * w)."""
    product = torch.eye(visual.positional_embedding.shape[0])
    inputs: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
        for block in visual.transformer.resblocks
    ]
    visual(pixels)
    for hook in hooks:
        hook.remove()
    for block, x in zip(visual.transformer.resblocks, inputs, strict=True):
        joined = torch.nn.functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        heads = block.attn.num_heads
        q, k, _ = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + torch.nn.functional.pad(bias, (1, 0))[:, None, None]
        mixed = 0.5 * logits.softmax(dim=-1).mean(dim=1) + 0.5 * torch.eye(logits.shape[-1])
        product = mixed / mixed.sum(dim=-1, keepdim=True) @ product
    return product[:, 0, 1:]


def layers_of(tower: Any) -> AttentionLayers:
    layers = attention_layers(tower)
    assert layers is not None
    return layers


@torch.inference_mode()
def test_rollout_is_that_of_the_weights_by_hand(tiny: Any) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    tower = VitTower(tiny.visual)
    with rolled_out(layers_of(tower)) as found:
        tower(pixels)
    shares = found.of_patches(layers_of(tower))
    torch.testing.assert_close(shares, by_hand(tower.visual, pixels), atol=1e-5, rtol=0)
    assert shares.std() > 1e-4


@torch.inference_mode()
def test_rollout_sees_the_bias_of_the_attention(tiny: Any) -> None:
    tiny.visual.transformer.resblocks = tiny.visual.transformer.resblocks[:1]  # so that the bias meets the same input
    pixels, values = torch.randn(2, 3, 32, 32), torch.tensor([[0.0, 0.0, 0.0, -9.0]] * 2)
    tower = VitTower(tiny.visual)
    with rolled_out(layers_of(tower)) as found:
        tower(pixels, Bias(values, 1))
    shares = found.of_patches(layers_of(tower))
    torch.testing.assert_close(shares, by_hand(tower.visual, pixels, values), atol=1e-5, rtol=0)
    assert (shares[:, 3] < 1e-3).all()


def test_vectors_stay_the_same_to_the_last_bit(tiny: Any) -> None:
    model = clip.load_clip(TINY_NAME, "cpu", "float32")
    plain, rolled = (model.encode_image(IMAGES, "trunk", tokens=True, rollout=asked) for asked in (False, True))
    assert torch.equal(plain.vectors, rolled.vectors)
    assert torch.equal(plain.tokens, rolled.tokens)  # type: ignore[arg-type]
    assert plain.rollout is None
    assert rolled.rollout is not None
    assert (rolled.rollout.shape, rolled.rollout.dtype) == ((3, 4), torch.float32)
    assert (rolled.rollout >= 0).all()
    assert (rolled.rollout.sum(dim=1) <= 1 + 1e-6).all()


def test_nothing_is_left_behind_after_an_exception(tiny: Any) -> None:
    tower = VitTower(tiny.visual)
    with pytest.raises(KeyError), rolled_out(layers_of(tower)):
        raise KeyError
    assert not any(block.attn._forward_hooks for block in tower.visual.transformer.resblocks)


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_rollout_of_timms_transformer_is_that_of_its_weights(pool: str) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}
    model = timm.models.VisionTransformer(**sizes, num_classes=0, global_pool=pool).eval()
    tower, pixels = TimmTower(model), torch.randn(2, 3, 32, 32)
    plain = tower(pixels)
    with rolled_out(layers_of(tower)) as found:
        out: TrunkOutput = tower(pixels)
    assert torch.equal(out.pooled, plain.pooled)
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_pre_hooks for block in model.blocks)

    x = model._pos_embed(model.patch_embed(pixels))
    product = torch.eye(5)
    for block in model.blocks:
        q, k, _ = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        product = (0.5 * (q @ k.mT / 32**0.5).softmax(dim=-1).mean(dim=1) + 0.5 * torch.eye(5)) @ product
        x = block(x)
    expected = product[:, 0, 1:] if pool == "token" else product[:, 1:, 1:].mean(dim=1)
    torch.testing.assert_close(found.of_patches(layers_of(tower)), expected, atol=1e-5, rtol=0)


def test_convolutions_have_no_rollout() -> None:
    model = clip.load_clip("lite0-minilm", "cpu", "float32")
    assert not model.has_rollout
    with pytest.raises(ValueError, match="lite0-minilm has no attention"):
        model.encode_image(IMAGES, "trunk", tokens=False, rollout=True)


@pytest.fixture
def transformer(tiny: Any, phantom_folder: Path, tmp_path: Path) -> Workspace:
    copy_source(phantom_folder, tmp_path / "source")
    methods = ('probes.methods=["roi","original"]', 'embeddings.views=["original","roi"]', "fusion.view=roi")
    return committed_study(tmp_path, "masks.policy=supplied", f"embeddings.model={TINY_NAME}", *methods)


def test_transformer_is_rolled_out_but_for_what_is_pooled_from_its_tokens(transformer: Workspace) -> None:
    attention, committed = look(transformer)
    assert attention.left_out == ()
    assert {(m.method, m.kind, m.heat.shape) for m in attention.maps} == {
        ("roi", "Grad-CAM", (2, 2)),
        ("original", "attention rollout", (2, 2)),
    }
    assert_as_committed(transformer, committed, attention)
