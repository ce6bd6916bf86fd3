"""EfficientNet-Lite0 from its weights package, under the keys of timm's tf_efficientnet_lite0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stages.models.checkpoints import read_state
from stages.models.registry import LITE0
from stages.models.weights import WeightsFolder

BLOCKS_PER_STAGE: Final = (1, 2, 2, 3, 3, 4, 1)
"""Inverted residual blocks of EfficientNet-B0 and Lite0, stage by stage (arXiv 1905.11946, table 1)."""

_OUTSIDE: Final = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE: Final = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""The first stage does not expand, so that timm builds it of a block with two convolutions."""
_INVERTED: Final = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def load_lite0_state() -> dict[str, Tensor]:
    """Read the package's file, checked against the registry's digest, and rename its keys.

    Returns
    -------
    dict[str, Tensor]
        Complete state dict of timm's `tf_efficientnet_lite0`, on the CPU.

    Raises
    ------
    WeightsError
        If the package is missing or its file is altered.
    """
    return to_timm(read_state(WeightsFolder().package_path(LITE0)))


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of efficientnet_pytorch (`_blocks.3._bn0.weight`) to timm's (`blocks.2.0.bn1.weight`)."""
    places = tuple(_places(BLOCKS_PER_STAGE))
    return {_timm_key(key, places): value for key, value in state.items()}


def streamline(net: nn.Module) -> None:
    """Rearrange a network for speed in channels-last order, in place: afterwards it maps mirrored images.

    `net(x)` is then `mirrored(net(mirrored(x)))`, up to rounding, and takes less than half the time on a CPU. Batch
    norms and ReLU6 are folded into their convolutions. TensorFlow pads even sides on the right alone, which costs a
    copy of every map; mirrored it is the left, and there common padding on both sides reads the same cells.

    Parameters
    ----------
    net : nn.Module
        A network of timm in evaluation mode, with its weights, for squares with a side that is a multiple of 32;
        afterwards it takes no state dict of its kind.
    """
    for block, name, convolution, norm_name, norm in _normed(net):
        limited = isinstance(norm.act, nn.ReLU6)
        setattr(block, name, MirroredConvolution(fuse_conv_bn_eval(convolution, norm), limited=limited))
        setattr(block, norm_name, nn.Identity() if limited else norm.act)


def fold_norms(net: nn.Module) -> None:
    """Fold the batch norms of timm's EfficientNets into the convolutions before them, in place; all can be trained.

    Up to rounding the function stays the same, of frozen statistics. On a CPU an image takes 11 to 40 % less time.

    Parameters
    ----------
    net : nn.Module
        In evaluation mode, with its weights; a network of another kind stays as it is.
    """
    for block, name, convolution, norm_name, norm in _normed(net):
        setattr(block, name, fuse_conv_bn_eval(convolution, norm).requires_grad_(requires_grad=True))
        setattr(block, norm_name, norm.act)


def _normed(net: nn.Module) -> list[tuple[nn.Module, str, nn.Conv2d, str, BatchNormAct2d]]:
    """Each convolution that a batch norm follows: the block, and name and module of both."""
    return [
        (block, name, convolution, norm_name, norm)
        for block in net.modules()
        for (name, convolution), (norm_name, norm) in pairwise(block.named_children())
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNormAct2d)
    ]


def mirrored(maps: Tensor) -> Tensor:
    """Reverse rows and columns of (..., h, w)."""
    return maps.flip(-2, -1)


class MirroredConvolution(nn.Module):
    """A frozen convolution of mirrored maps of even sides, padded alike on all sides, and perhaps ReLU6.

    On a CPU it is the operation of oneDNN that `torch.compile` would choose: weights in its own order, the activation
    applied before a map leaves the cache.

    Parameters
    ----------
    convolution : nn.Conv2d
        With a bias; its weights are taken.
    limited : bool
        ReLU6 follows.
    """

    def __init__(self, convolution: nn.Conv2d, *, limited: bool) -> None:
        super().__init__()
        if convolution.bias is None:
            raise ValueError("a folded convolution has a bias")
        self.weight = nn.Parameter(mirrored(convolution.weight.detach()).contiguous(), requires_grad=False)
        self.bias = nn.Parameter(convolution.bias.detach(), requires_grad=False)
        self._geometry = ([side // 2 for side in convolution.kernel_size], list(convolution.stride), [1, 1])
        self._groups = convolution.groups
        self._limited = limited
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, h, w) to (B, out, h, w), or to half the sides."""
        padding, stride, dilation = self._geometry
        plain = x.device.type != "cpu" or x.dtype != torch.float32 or torch.compiler.is_compiling()
        if plain or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, self._groups)
            return F.relu6(y, inplace=True) if self._limited else y
        ops = torch.ops.mkldnn
        if self._packed is None:
            self._packed = ops._reorder_convolution_weight(self.weight, *self._geometry, self._groups, list(x.shape))
        after = ("hardtanh", [0.0, 6.0], "") if self._limited else ("none", [], "")
        out: Tensor = ops._convolution_pointwise(x, self._packed, self.bias, *self._geometry, self._groups, *after)
        return out


def _places(blocks_per_stage: Iterable[int]) -> Iterable[tuple[int, int]]:
    for stage, blocks in enumerate(blocks_per_stage):
        for block in range(blocks):
            yield stage, block


def _timm_key(key: str, places: tuple[tuple[int, int], ...]) -> str:
    first, rest = key.split(".", 1)
    if first != "_blocks":
        return f"{_OUTSIDE[first]}.{rest}"
    number, part, leaf = rest.split(".", 2)
    stage, block = places[int(number)]
    names = _SEPARABLE if stage == 0 else _INVERTED
    return f"blocks.{stage}.{block}.{names[part]}.{leaf}"
