"""Attention rollout: how much of each patch reaches what a vision transformer pools, through all of its blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn


class AttentionLayers(NamedTuple):
    """What a vision transformer mixes its tokens with."""

    modules: tuple[nn.Module, ...]
    """Attention of each block, first to last."""
    prefix: int
    """Tokens before the patches; the first of them is the class token."""
    averaged: bool
    """Whether the tower pools by the mean of its patches, not by the class token."""


def attention_layers(tower: Any) -> AttentionLayers | None:
    """Find the attention of a tower; None for another network, and for attention whose weights cannot be read here."""
    from open_clip.transformer import VisionTransformer as OpenClipTransformer
    from timm.layers import Attention
    from timm.models.vision_transformer import VisionTransformer as TimmTransformer

    for module in tower.modules():
        if isinstance(module, OpenClipTransformer):
            attentions = tuple(block.attn for block in module.transformer.resblocks)
            if all(isinstance(attention, nn.MultiheadAttention) for attention in attentions):
                return AttentionLayers(attentions, 1, averaged=module.pool_type == "avg")
        if isinstance(module, TimmTransformer):
            attentions = tuple(block.attn for block in module.blocks)
            if all(isinstance(attention, Attention) for attention in attentions):
                return AttentionLayers(attentions, module.num_prefix_tokens, averaged=module.global_pool == "avg")
    return None


class Rollout:
    """Product of the attention of all blocks so far: per block A' = (A + I) / 2, rows scaled to sum to 1."""

    def __init__(self) -> None:
        self._product: Tensor | None = None

    def add(self, weights: Tensor) -> None:
        """Go through one more block, whose attention is (B, n, n), averaged over its heads."""
        exact = weights.float()
        mixed = (exact + torch.eye(exact.shape[-1], device=exact.device)) / 2
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        self._product = mixed if self._product is None else mixed @ self._product

    def of_patches(self, layers: AttentionLayers) -> Tensor:
        """Share of each patch in what is pooled, (B, h * w) float32; the rest comes from the other tokens."""
        if self._product is None:
            raise RuntimeError("rollout: no block was run")
        patches = self._product[:, :, layers.prefix :]
        return patches[:, layers.prefix :].mean(dim=1) if layers.averaged else patches[:, 0]


@contextmanager
def rolled_out(layers: AttentionLayers) -> Iterator[Rollout]:
    """Follow the attention of a forward pass (Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020).

    Each attention is asked once more for its weights, beside the pass, whose results stay the same to the last bit:
    attention that returns weights rounds differently. Nothing is left behind, whatever happens inside.
    """
    found = Rollout()

    def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], _output: Any) -> None:
        found.add(_weights(module, inputs, named))

    with ExitStack() as hooks:
        for module in layers.modules:
            hooks.callback(module.register_forward_hook(look, with_kwargs=True).remove)
        yield found


def _weights(module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Attention of one call, (B, n, n), averaged over heads, under the call's own mask."""
    if isinstance(module, nn.MultiheadAttention):
        return cast("Tensor", module.forward(*inputs, **(named | {"need_weights": True}))[1])
    seen: list[Tensor] = []
    hook = module.attn_drop.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    fused, module.fused_attn = module.fused_attn, False
    try:
        module.forward(*inputs, **named)
    finally:
        module.fused_attn = fused
        hook.remove()
    return seen[0].mean(dim=1)
