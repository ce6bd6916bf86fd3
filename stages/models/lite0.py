"""EfficientNet-Lite0 from its weights package, under the keys of timm's tf_efficientnet_lite0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
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
    """Fold batch norms, and paddings that TensorFlow has on one side alone, into their convolutions, in place.

    The numbers stay, up to rounding, and on a CPU in channels-last order a map takes less than half the time.

    Parameters
    ----------
    net : nn.Module
        A network of timm in evaluation mode, with its weights, for squares with a side that is a multiple of 32;
        afterwards it takes no state dict of its kind.
    """
    for block in list(net.modules()):
        for (name, convolution), (norm_name, norm) in pairwise(list(block.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(block, name, fuse_conv_bn_eval(convolution, norm))
                setattr(block, norm_name, norm.act)
    for block in list(net.modules()):
        for name, convolution in list(block.named_children()):
            if isinstance(convolution, Conv2dSame):
                setattr(block, name, _padded_alike(convolution))


def _padded_alike(convolution: Conv2dSame) -> nn.Conv2d:
    """Return the same map of even sides without a copy of its input: a row and a column of zeros more in the kernel."""
    side = convolution.kernel_size[0]
    with torch.random.fork_rng(devices=[]):
        alike = nn.Conv2d(
            convolution.in_channels,
            convolution.out_channels,
            side + 1,
            convolution.stride,
            padding=side // 2,
            groups=convolution.groups,
            bias=convolution.bias is not None,
        )
    with torch.no_grad():
        alike.weight.zero_()
        alike.weight[:, :, 1:, 1:] = convolution.weight
        if alike.bias is not None and convolution.bias is not None:
            alike.bias.copy_(convolution.bias)
    return alike.eval().requires_grad_(requires_grad=False)


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
