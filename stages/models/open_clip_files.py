"""open_clip models from a local weights file: strict, offline, and without running any code in it.

The model is built and filled here instead of by `open_clip.create_model(pretrained=path)`, which stretches position
embeddings of another image size in silence. No file says which activation it was trained with, and open_clip warns of
a mismatch only for files that it downloads itself (https://github.com/mlfoundations/open_clip/issues/771): the
registry's names of OpenAI's models fix QuickGELU, and under `open_clip:<ModelName>` the name decides.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from torch import Tensor

from manifests.errors import WeightsError
from stages.models.card import architecture_config
from stages.models.checkpoints import load_strictly, read_state
from stages.models.registry import entry
from stages.models.towers import TextEncoder, VitTower
from stages.models.weights import WeightsFolder

TRANSPOSED: Final = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
"""Projections, which open_clip keeps the other way round."""
FROM_TRANSFORMERS: Final = (
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)
"""Keys of open_clip's models, and of transformers' CLIPModel."""


def load_towers(name: str, device: str) -> tuple[VitTower, Callable[[], TextEncoder]]:
    """Load the image tower, and a loader of the text tower, of an open_clip model whose file is in the weights folder.

    Raises
    ------
    WeightsError
        If the file is missing, altered or of another architecture.
    """
    architecture = entry(name).architecture
    model = load_checked(architecture, WeightsFolder().verified_path(name))
    tower = VitTower(model.visual)
    model.visual = None

    def load_text() -> TextEncoder:
        tokenizer = open_clip.get_tokenizer(architecture)
        encoder = model.to(device)

        def tokenize(texts: Sequence[str]) -> Tensor:
            tokens: Tensor = tokenizer(list(texts)).to(device)
            return tokens

        return TextEncoder(encoder.encode_text, tokenize, _embedding_of(encoder), encoder)

    return tower, load_text


def _embedding_of(model: Any) -> Any:
    """Where a model's text tower looks tokens up: open_clip's own, within the model or beside it, or Hugging Face's."""
    tower = getattr(model, "text", model)
    return tower.transformer.get_input_embeddings() if hasattr(tower, "pooler") else tower.token_embedding


def load_checked(architecture: str, path: Path) -> Any:
    """Build an open_clip model and load the whole of a file into it, on the CPU: every key and every shape fits.

    Parameters
    ----------
    architecture : str
        Name of an open_clip model.
    path : Path
        State dict as open_clip publishes it, or a checkpoint of its training code.

    Raises
    ------
    WeightsError
        If the architecture is unknown or cannot be used, or the file is damaged, holds code or does not fit.
    """
    model = build(architecture)
    if _is_torchscript(path):
        raise WeightsError(
            f"{path.name} is a TorchScript archive, as OpenAI published its models: it holds code, which is not run.",
            "Get open_clip_model.safetensors of the same model instead.",
        )
    state = from_transformers({key.removeprefix("module."): value for key, value in read_state(path).items()})
    load_strictly(model, state, f"{path.name} and {architecture}")
    return model


def from_transformers(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the keys of transformers' CLIPModel to open_clip's; a state dict of open_clip's stays as it is."""
    if "visual_projection.weight" not in state:
        return state
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in TRANSPOSED:
            found[TRANSPOSED[key]] = value.T
        elif not key.endswith("position_ids"):
            found[_renamed(key)] = value
    for key in [key for key in found if ".attn.q_proj." in key]:
        parts = [found.pop(key.replace(".q_proj.", f".{part}_proj."), value[:0]) for part in "qkv"]
        found[key.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return found


def _renamed(key: str) -> str:
    for ours, theirs in FROM_TRANSFORMERS:
        key = key.replace(theirs, ours, 1)
    return key


def build(architecture: str) -> Any:
    """Build an open_clip model with random weights, on the CPU and in evaluation mode.

    Raises
    ------
    WeightsError
        If the architecture is unknown or cannot be used.
    """
    config = dict(architecture_config(architecture))
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return kind(**config).eval().requires_grad_(requires_grad=False)


def _is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())
