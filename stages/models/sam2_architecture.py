"""SAM2's networks from the yaml files of the sam2 package: as published, or narrower.

The files are read with OmegaConf and instantiated with hydra, as the package does, but without its global
initialisation, and without `apply_postprocessing`: that option only changes video, single masks and hole filling,
whose CUDA extension is missing on most machines, so that masks would differ silently between two of them.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from manifests.errors import WeightsError

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

MEMORY_CHANNELS = 16
"""Channels of a narrow network's memory, which serves video only."""
TINY_CHANNELS = 64


def read_config(architecture: str, image_px: int = 1024) -> Any:
    """`model` node of one of the package's files, such as `sam2.1/sam2.1_hiera_t.yaml`.

    Parameters
    ----------
    architecture : str
        Path below the package's folder of configurations.
    image_px : int
        Side of the square that the network sees, in pixels; 1024 as published.

    Raises
    ------
    WeightsError
        If the sam2 package is not installed, or has no such file.
    """
    from omegaconf import OmegaConf

    spec = find_spec("sam2")
    path = Path(spec.origin).parent / "configs" / architecture if spec and spec.origin else None
    if path is None or not path.is_file():
        raise WeightsError(f"The sam2 package with configs/{architecture} is not installed.", "Run: make setup")
    config = OmegaConf.load(path).model
    config.image_size = image_px
    return config


def narrow(config: Any, channels: int, image_px: int) -> None:
    """Change a configuration in place to fewer channels and smaller images; memory parts shrink to a token size.

    Parameters
    ----------
    config : DictConfig
        What `read_config` returned.
    channels : int
        Channels of the image embedding, d_model; 256 as published.
    image_px : int
        Side of the square that the network sees, in pixels.
    """
    config.image_size = image_px
    neck = config.image_encoder.neck
    neck.d_model = neck.position_encoding.num_pos_feats = channels
    attention = config.memory_attention
    attention.num_layers = 1
    attention.d_model = attention.layer.d_model = channels
    attention.layer.dim_feedforward = 64
    attention.layer.self_attention.embedding_dim = attention.layer.cross_attention.embedding_dim = channels
    memory = config.memory_encoder
    memory.fuser.layer.dim = channels
    memory.out_dim = memory.position_encoding.num_pos_feats = MEMORY_CHANNELS
    attention.layer.cross_attention.kv_in_dim = MEMORY_CHANNELS


def tiny_config(architecture: str, image_px: int) -> Any:
    """Configuration of a network that is small enough for tests: Hiera with 32 channels and 8 blocks."""
    config = read_config(architecture)
    narrow(config, TINY_CHANNELS, image_px)
    trunk = config.image_encoder.trunk
    trunk.embed_dim, trunk.stages, trunk.global_att_blocks = 32, [1, 2, 3, 2], [4, 5]
    config.image_encoder.neck.backbone_channel_list = [256, 128, 64, 32]
    return config


def instantiate_seeded(config: Any) -> SAM2Base:
    """Build the network on the CPU; its random start depends on nothing, and no other random number is drawn."""
    from hydra.utils import instantiate

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: SAM2Base = instantiate(config, _recursive_=True)
    return network.eval().requires_grad_(requires_grad=False)
