"""SAM, the first, and MedSAM: transformers' ViT encoder, and the prompt encoder and mask decoder of the sam2 package.

SAM2 kept SAM's prompt encoder and decoder and only added to them, so that SAM's weights go into the package's classes,
and everything that is made for SAM2 serves SAM too. Files may have Meta's keys (`sam_vit_b_01ec64.pth`,
`medsam_vit_b.pth`) or those of transformers (`model.safetensors`). Architecture: arXiv 2304.02643.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from manifests.errors import WeightsError
from stages.models.checkpoints import load_strictly

CHANNELS: Final = 256
CELL_PX: Final = 16


class Vit(NamedTuple):
    """One size of SAM's image encoder."""

    width: int
    depth: int
    heads: int
    seeing_all: tuple[int, ...]
    """Blocks whose attention sees the whole image; that of the others sees windows."""


SIZES: Final[Mapping[str, Vit]] = {
    "sam_vit_b": Vit(768, 12, 12, (2, 5, 8, 11)),
    "sam_vit_l": Vit(1024, 24, 16, (5, 11, 17, 23)),
    "sam_vit_h": Vit(1280, 32, 16, (7, 15, 23, 31)),
}

_FROM_META: Final = (
    (r"^image_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.(\d+)\.norm([12])\.", r"image_encoder.layers.\1.layer_norm\2."),
    (r"^image_encoder\.blocks\.", "image_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "image_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "image_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "image_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "image_encoder.neck.layer_norm2."),
    (r"^(prompt_encoder|mask_decoder)\.", r"sam_\1."),
    (r"^(sam_mask_decoder\.transformer\.layers\.\d+\.mlp)\.lin1\.", r"\1.layers.0."),
    (r"^(sam_mask_decoder\.transformer\.layers\.\d+\.mlp)\.lin2\.", r"\1.layers.1."),
)
"""Keys of Meta's files, as the module below has them."""
_FROM_TRANSFORMERS: Final = (
    (r"^vision_encoder\.", "image_encoder."),
    (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
    (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
    (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
    (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
    (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm([1-4])\.", r"\1.norm\2."),
    (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
)
"""Keys of transformers, as Meta's files have them; the order matters."""
_SHARED_TWICE: Final = "prompt_encoder.shared_embedding.positional_embedding"
"""A second name of one tensor in files of transformers."""


class Sam(nn.Module):
    """SAM with the attributes that are used of a SAM2Base.

    Parameters
    ----------
    architecture : str
        Key of `SIZES`.
    image_px : int
        Side of the square that the network sees, in pixels; 1024 as published.
    """

    directly_add_no_mem_embed = False
    boxes_are_padded = False
    """SAM2 adds a point that says nothing to a box's corners, SAM does not."""

    def __init__(self, architecture: str, image_px: int) -> None:
        from sam2.modeling.sam.mask_decoder import MaskDecoder
        from sam2.modeling.sam.prompt_encoder import PromptEncoder
        from sam2.modeling.sam.transformer import TwoWayTransformer
        from transformers import SamVisionConfig
        from transformers.models.sam.modeling_sam import SamVisionEncoder

        super().__init__()
        size, cells = SIZES[architecture], image_px // CELL_PX
        self.image_encoder = SamVisionEncoder(
            SamVisionConfig(
                hidden_size=size.width,
                num_hidden_layers=size.depth,
                num_attention_heads=size.heads,
                global_attn_indexes=list(size.seeing_all),
                image_size=image_px,
            )
        )
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=CHANNELS,
            image_embedding_size=(cells, cells),
            input_image_size=(image_px, image_px),
            mask_in_chans=16,
        )
        transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, mlp_dim=2048, num_heads=8)
        self.sam_mask_decoder = MaskDecoder(transformer_dim=CHANNELS, transformer=transformer)

    def forward_image(self, pixels: Tensor) -> dict[str, list[Tensor]]:
        """Encode normalised pixels, (B, 3, S, S) -> one map, (B, 256, S / 16, S / 16)."""
        return {"backbone_fpn": [self.image_encoder(pixels).last_hidden_state]}


def build_sam(architecture: str, image_px: int, state: Mapping[str, Tensor], what: str) -> Sam:
    """Build SAM and load a file of Meta's or of transformers' into it, strictly.

    Parameters
    ----------
    architecture : str
        Key of `SIZES`.
    image_px : int
        Side of the square that the network sees, in pixels.
    state : Mapping[str, Tensor]
        What the file holds.
    what : str
        File and architecture, for messages.

    Raises
    ------
    WeightsError
        If the architecture is unknown, or a key or shape differs.
    """
    if architecture not in SIZES:
        raise WeightsError(f"There is no SAM named {architecture!r}.", f"Known: {', '.join(SIZES)}.")
    with torch.random.fork_rng(devices=[]):
        network = Sam(architecture, image_px)
    load_strictly(network, to_package(state), what)
    return network.eval().requires_grad_(requires_grad=False)


def to_package(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a file, whichever of the two kinds it is, to those of `Sam`."""
    if any(key.startswith("vision_encoder.") for key in state):
        state = {_renamed(k, _FROM_TRANSFORMERS): v for k, v in state.items() if k != _SHARED_TWICE}
    return {_renamed(k, _FROM_META): v for k, v in state.items()}


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key
