"""SAM2 with EfficientNet-Lite0 as image trunk: 512 px, 112 channels, small enough to ship and to run on a CPU.

The trunk is frozen as trained on ImageNet; neck, prompt encoder and mask decoder are shipped, as trained by
`stages.models.training`. See `data/sam2_lite0.md` for the recipe, the figures and the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import timm
import torch
from torch import Tensor, nn

from stages.models.checkpoints import load_strictly
from stages.models.lite0 import load_lite0_state, mirrored, streamline
from stages.models.sam2_architecture import narrow, read_config

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

CHANNELS: Final = 112
TRUNK_CHANNELS: Final = (24, 40, 112, 320)
"""At strides 4, 8, 16 and 32."""
TRUNK_STDS: Final = (8.13, 7.80, 6.24, 2.29)
"""Standard deviation of the four maps on synthetic scenes."""
QUIET: Final = 0.1
"""Standard deviation that the neck is given: SAM2's positions have 0.7, and louder features drown them in training."""


class Lite0Trunk(nn.Module):
    """Feature maps of EfficientNet-Lite0, streamlined, at strides 4, 8, 16 and 32, as SAM2's neck wants them."""

    def __init__(self) -> None:
        super().__init__()
        self._scales = [QUIET / std for std in TRUNK_STDS]
        self.streamlined = False
        self.net = timm.create_model(
            "tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(1, 2, 3, 4)
        )
        self.channel_list = list(reversed(TRUNK_CHANNELS))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode normalised pixels, (B, 3, H, W) -> four maps, fine to coarse."""
        turned = mirrored if self.streamlined else _as_it_is
        maps: list[Tensor] = self.net(turned(pixels.contiguous(memory_format=torch.channels_last)))
        return [turned(m) * scale for m, scale in zip(maps, self._scales, strict=True)]


def _as_it_is(maps: Tensor) -> Tensor:
    return maps


def lite0_config(architecture: str, image_px: int) -> Any:
    """Configuration of SAM2 with this trunk in place of Hiera.

    The neck is the package's own with other options than Hiera's: a convolution sees 3 x 3 cells, and every level has
    the coarser ones added, bilinearly. Hiera's attention has mixed neighbours before; this trunk's early maps have not.
    """
    config = read_config(architecture)
    narrow(config, CHANNELS, image_px)
    neck = config.image_encoder.neck
    neck.kernel_size, neck.padding = 3, 1
    neck.fpn_top_down_levels, neck.fpn_interp_model = [0, 1, 2, 3], "bilinear"
    config.image_encoder.trunk = {"_target_": f"{__name__}.{Lite0Trunk.__name__}"}
    neck.backbone_channel_list = list(reversed(TRUNK_CHANNELS))
    return config


def load_lite0_parts(network: SAM2Base, trained: Mapping[str, Tensor], what: str, *, streamlined: bool = True) -> None:
    """Load the trunk from its package, and the trained parts from the shipped file, each strictly.

    Parameters
    ----------
    network : SAM2Base
        Built from `lite0_config`; changed in place. Its memory parts serve video only and stay as they are.
    trained : Mapping[str, Tensor]
        Keys begin with `neck.`, `prompt.` or `decoder.`.
    what : str
        File and architecture, for messages.
    streamlined : bool
        See `load_trunk`.

    Raises
    ------
    WeightsError
        If the package is missing, or a key or shape differs.
    """
    load_trunk(network, streamlined=streamlined)
    load_strictly(trained_parts(network), trained, what)
    network.no_mem_embed.zero_()


def load_trunk(network: SAM2Base, *, streamlined: bool = True) -> None:
    """Load the trunk of a network built from `lite0_config`, strictly, from its package.

    Parameters
    ----------
    network : SAM2Base
        Changed in place.
    streamlined : bool
        Rearranged for speed; then no gradient passes through it.

    Raises
    ------
    WeightsError
        If the package is missing or its file is altered.
    """
    head = ("conv_head.", "bn2.", "classifier.")
    trunk = {k: v for k, v in load_lite0_state().items() if not k.startswith(head)}
    net = network.image_encoder.trunk.net
    load_strictly(net, trunk, "EfficientNet-Lite0")
    network.image_encoder.trunk.streamlined = streamlined
    if streamlined:
        streamline(net)
    net.to(memory_format=torch.channels_last)


def trained_parts(network: SAM2Base) -> nn.Module:
    """Return what the shipped file holds: `neck`, `prompt` and `decoder`, as one module that shares the weights."""
    parts = nn.Module()
    parts.neck = network.image_encoder.neck
    parts.prompt = network.sam_prompt_encoder
    parts.decoder = network.sam_mask_decoder
    return parts
