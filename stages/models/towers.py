"""The image towers that CLIP models have here: one feature before the projection, one after, and tokens of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from manifests.errors import WeightsError
from stages.models.lite0 import mirrored

CPU_BATCH = (2, 8)
"""Images that the first and the last stages of a convolutional trunk take at once on a CPU: large maps of more images
leave its cache, small maps of fewer make small products. 13.4 ms an image; 13.9 with 4 throughout, 16.1 with 8."""
LARGE_STAGES = 3
"""Stages of the trunk whose maps are large."""


class TextEncoder:
    """A text tower: texts to vectors after CLIP's text projection, (K, projected dim).

    Parameters
    ----------
    forward : Callable[[Tensor], Tensor]
        Token ids, (K, n), to vectors.
    tokenize : Callable[[Sequence[str]], Tensor]
        Texts to ids on the tower's device, (K, n); the first of each row says that a text begins.
    embedding : nn.Embedding
        Where `forward` looks the ids up.
    tower : nn.Module
        Holds the weights that `forward` uses.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        tokenize: Callable[[Sequence[str]], Tensor],
        embedding: nn.Embedding,
        tower: nn.Module,
    ) -> None:
        self._forward = forward
        self.tower = tower
        self.tokenize = tokenize
        self.embedding = embedding

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode texts."""
        return self.encode(self.tokenize(texts))

    def encode(self, ids: Tensor) -> Tensor:
        """Encode token ids, (K, n)."""
        return self._forward(ids)

    def with_context(self, ids: Tensor, context: Tensor) -> Tensor:
        """Encode texts whose first tokens are given as vectors; gradients flow to them.

        Everything else (positions, the causal mask, where the text is pooled) is the tower's own, so that a context
        taken from words gives exactly what the words give.

        Parameters
        ----------
        ids : Tensor of int, (K, n)
            Texts that begin with M tokens to be replaced, after the mark of their beginning.
        context : Tensor, (M, d) or (K, M, d)
            Embeddings, one set for all texts or one each.
        """

        def replaced(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            own = context.expand(len(ids), -1, -1).to(embedded.dtype)
            return torch.cat((embedded[:, :1], own, embedded[:, 1 + own.shape[1] :]), dim=1)

        hook = self.embedding.register_forward_hook(replaced)
        try:
            return self._forward(ids)
        finally:
            hook.remove()


class TrunkOutput(NamedTuple):
    """What an image tower gives before CLIP's projection."""

    pooled: Tensor
    """One vector an image, (B, D)."""
    tokens: Tensor
    """One vector a patch or grid cell, row by row, (B, h * w, D)."""
    grid: tuple[int, int]
    """h and w."""
    rollout: Tensor | None = None
    """Attention rollout, (B, h * w) float32; None if not asked."""


class Bias(NamedTuple):
    """What the last blocks of a vision transformer add to the attention to each patch."""

    values: Tensor
    """(B, h * w) float32; 0 changes nothing, below 0 the patch is attended to less."""
    blocks: int
    """How many of the last blocks."""


class ImageTower(Protocol):
    """A frozen image encoder whose last step is a linear projection without bias."""

    projection: Tensor
    """P^T, (trunk dim, projected dim) float32 whatever the tower's type: projected = trunk @ projection."""

    def __call__(self, pixels: Tensor, bias: Bias | None = None) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, H, W)."""
        ...


class VitTower(nn.Module):
    """open_clip's VisionTransformer: pooled is ln_post(CLS), tokens are ln_post(patches).

    Parameters
    ----------
    visual : VisionTransformer
        Image tower of an open_clip model; its projection is taken out of it.

    Raises
    ------
    WeightsError
        If the tower is of another kind, or pools by attention so that no token lies in its feature space.
    """

    def __init__(self, visual: Any) -> None:
        from open_clip.transformer import VisionTransformer

        super().__init__()
        if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
            raise WeightsError(
                f"Image tower {type(visual).__name__}: its features before the projection are not defined here.",
                "Choose a model with open_clip's own vision transformer, such as ViT-B-16-quickgelu.",
            )
        self.projection: Tensor = visual.proj.detach().float().clone()
        visual.proj = None
        visual.output_tokens = True
        self.visual = visual

    def forward(self, pixels: Tensor, bias: Bias | None = None) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, image_px, image_px)."""
        with ExitStack() as hooks:
            if bias is not None:
                for block in self.visual.transformer.resblocks[-bias.blocks :]:
                    added = _to_keys(bias.values, block.attn.num_heads)
                    hooks.callback(block.register_forward_pre_hook(added, with_kwargs=True).remove)
            pooled, tokens = self.visual(pixels)
        if self.visual.final_ln_after_pool:
            tokens = self.visual.ln_post(tokens)
        return TrunkOutput(pooled, tokens, tuple(self.visual.grid_size))


def _to_keys(values: Tensor, heads: int) -> Callable[..., Any]:
    """Hook that gives an attention block an additive mask: values for the patches, nothing for the class token."""

    def hook(_module: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        keys = torch.nn.functional.pad(values, (1, 0))
        mask = keys[:, None, :].expand(-1, keys.shape[1], -1).repeat_interleave(heads, dim=0)
        return inputs, named | {"attn_mask": mask.to(inputs[0].dtype)}

    return hook


class CnnTower(nn.Module):
    """A convolutional trunk: pooled is the mean over the last feature map, tokens are its cells.

    Parameters
    ----------
    visual : TimmModel
        open_clip's wrapper of timm's EfficientNet, streamlined, that ends in average pooling and a linear projection
        without bias.
    """

    def __init__(self, visual: Any) -> None:
        super().__init__()
        trunk = visual.trunk.to(memory_format=torch.channels_last)
        large = nn.Sequential(trunk.conv_stem, trunk.bn1, *trunk.blocks[:LARGE_STAGES])
        self.halves = nn.ModuleList([large, nn.Sequential(*trunk.blocks[LARGE_STAGES:], trunk.conv_head, trunk.bn2)])
        self.projection: Tensor = visual.head.proj.weight.detach().float().T.clone()

    def forward(self, pixels: Tensor, bias: Bias | None = None) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, image_px, image_px); there is no attention to bias."""
        if bias is not None:
            raise ValueError("bias: a convolutional trunk has no attention")
        features = mirrored(pixels.contiguous(memory_format=torch.channels_last))
        for half, size in zip(self.halves, CPU_BATCH, strict=True):
            parts = torch.split(features, size if pixels.device.type == "cpu" else len(pixels))
            features = torch.cat([half(part) for part in parts])
        features = mirrored(features)
        cells = features.flatten(2).transpose(1, 2)
        return TrunkOutput(cells.mean(dim=1), cells, (features.shape[2], features.shape[3]))
