"""Small trained parts for a frozen SAM2 that segments without a prompt: SAM-Adapter, and SAMed's LoRA.

SAM-Adapter (Chen et al., arXiv 2304.09148; for SAM2 arXiv 2408.04579): before each block of the image trunk a prompt
is added, made of the image's high frequencies and of the features themselves; the mask decoder is trained too. SAMed
(Zhang and Liu, arXiv 2304.13785): low-rank updates of the attention. Differences from both are in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manifests.errors import WeightsError
from stages.models.checkpoints import check_state
from stages.models.registry import AdapterKind

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

HIGH_PASS: Final = 0.25
"""Share of the spectrum, around its middle, that is taken out of the image."""
SCALE: Final = 32
"""Channels of a stage for one of its prompts' inner ones."""
LEAST_WIDTH: Final = 8
FIRST_STRIDE: Final = 4
"""Blocks whose maps are finer are left alone; Hiera has none."""
RANK: Final = 4
LORA_TARGETS: Final = (
    r"image_encoder\.trunk\.blocks\.\d+\.attn\.qkv"
    r"|image_encoder\.trunk\.net\.blocks\.\d+\.\d+\.conv_pwl?"
    r"|sam_mask_decoder\.transformer\..*\.(q_proj|v_proj)"
)
"""Attention of Hiera, which joins q, k and v in one layer, and of the mask decoder; EfficientNet-Lite0 has none, and
its convolutions of one cell stand in."""
SEED: Final = 0


class Block(NamedTuple):
    """One block of an image trunk."""

    module: nn.Module
    channels: int
    """Of its input."""
    stride: int
    """Pixels of the image for one cell of its input."""


class StagePrompts(nn.Module):
    """Prompts of consecutive blocks whose inputs have one shape.

    Parameters
    ----------
    channels, stride : int
        Of the blocks' inputs.
    n_blocks : int
        How many.
    """

    def __init__(self, channels: int, stride: int, n_blocks: int) -> None:
        super().__init__()
        width = max(LEAST_WIDTH, channels // SCALE)
        self.picture = nn.Conv2d(3, width, stride, stride)
        self.embedding = nn.Linear(channels, width)
        self.each = nn.ModuleList(nn.Linear(width, width) for _ in range(n_blocks))
        self.up = nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def start(self, picture: Tensor, features: Tensor) -> Tensor:
        """What all prompts of the stage are made of, (B, h, w, width), from (B, 3, H, W) and (B, h, w, C)."""
        of_picture: Tensor = self.picture(picture).permute(0, 2, 3, 1)
        started: Tensor = of_picture + self.embedding(features)
        return started

    def prompt(self, start: Tensor, block: int) -> Tensor:
        """Prompt of one block, (B, h, w, C)."""
        prompt: Tensor = self.up(F.gelu(self.each[block](start)))
        return prompt


class SamAdapter(nn.Module):
    """Adds prompts to the inputs of a trunk's blocks; at the start they are zero.

    Parameters
    ----------
    trunk : nn.Module
        Hiera or `Lite0Trunk`; hooks are attached to it.

    Raises
    ------
    WeightsError
        If the trunk is of another kind.
    """

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self._picture: Tensor | None = None
        self._start: Tensor | None = None
        self._channels_last = hasattr(trunk, "patch_embed")
        trunk.register_forward_pre_hook(self._see)
        stages = []
        for (channels, stride), blocks in groupby(_blocks(trunk), key=lambda b: (b.channels, b.stride)):
            members = list(blocks)
            stages.append(StagePrompts(channels, stride, len(members)))
            for number, block in enumerate(members):
                block.module.register_forward_pre_hook(self._addition(stages[-1], number))
        self.stages = nn.ModuleList(stages)

    def _see(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._picture = high_pass(inputs[0].float())

    def _addition(self, stage: StagePrompts, number: int) -> Any:
        """Hook that adds a prompt to a block's input."""

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            features = inputs[0] if self._channels_last else inputs[0].permute(0, 2, 3, 1)
            if self._picture is None:
                raise RuntimeError("a block of an adapted trunk runs inside its trunk alone")
            if number == 0:
                self._start = stage.start(self._picture, features)
            if self._start is None:
                raise RuntimeError("the blocks of an adapted trunk run in order")
            added = features + stage.prompt(self._start, number).to(features.dtype)
            return (added if self._channels_last else added.permute(0, 3, 1, 2), *inputs[1:])

        return hook


def high_pass(pixels: Tensor) -> Tensor:
    """Magnitude of images without their low frequencies, (B, C, H, W); each image by itself."""
    height, width = pixels.shape[-2:]
    half = round((height * width * HIGH_PASS) ** 0.5 / 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(pixels), dim=(-2, -1))
    kept = torch.ones(height, width, device=pixels.device)
    kept[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
    high: Tensor = torch.fft.ifft2(torch.fft.ifftshift(spectrum * kept, dim=(-2, -1))).real
    return high.abs()


def attach(network: SAM2Base, kind: AdapterKind) -> dict[str, nn.Parameter]:
    """Add what an adapter adds to a frozen network, in place; at first the network does what it did before.

    Returns
    -------
    dict[str, nn.Parameter]
        What is trained, by name in the network: the new parts, and those of the mask decoder that the method trains.

    Raises
    ------
    WeightsError
        If the network has another trunk than Hiera or EfficientNet-Lite0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if kind == "sam-adapter":
            network.adapter = SamAdapter(network.image_encoder.trunk)
        else:
            from peft import LoraConfig, inject_adapter_in_model

            inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LORA_TARGETS), network)
    parameters = {name: p for name, p in network.named_parameters() if _is_trained(name, kind)}
    if not any(name.startswith("adapter.") or "lora_" in name for name in parameters):
        raise WeightsError("This network has nothing to adapt.", "Adapt a SAM2 with Hiera, or sam2-lite0.")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in parameters)
    return parameters


def load_adapter(network: SAM2Base, kind: AdapterKind, state: Mapping[str, Tensor], what: str) -> None:
    """Attach an adapter, load its file strictly, and fold LoRA into the weights.

    Raises
    ------
    WeightsError
        If a key is missing or left over, a shape differs, or the network has nothing to adapt.
    """
    parameters = attach(network, kind)
    check_state(parameters, state, what)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
    network.requires_grad_(requires_grad=False)
    if kind == "samed":
        _merge(network)


def _is_trained(name: str, kind: AdapterKind) -> bool:
    decoder = name.startswith("sam_mask_decoder.")
    if kind == "sam-adapter":
        return decoder or name.startswith("adapter.")
    return "lora_" in name or (decoder and ".transformer." not in name)


def _merge(network: nn.Module) -> None:
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            layer: Any = module
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, layer.get_base_layer())


def _blocks(trunk: Any) -> list[Block]:
    """Blocks of a trunk with a stride of `FIRST_STRIDE` or more, in order."""
    if hasattr(trunk, "patch_embed"):
        blocks, stride = [], 4
        for block in trunk.blocks:
            blocks.append(Block(block, block.dim, stride))
            stride *= 2 if block.q_stride else 1
        return blocks
    blocks, stride = [], 2
    for block in (block for stage in getattr(getattr(trunk, "net", None), "blocks", ()) for block in stage):
        first = block.conv_pw if block.conv_pw.in_channels != block.conv_dw.out_channels else block.conv_dw
        blocks.append(Block(block, first.in_channels, stride))
        stride *= block.conv_dw.stride[0]
    return [block for block in blocks if block.stride >= FIRST_STRIDE]
