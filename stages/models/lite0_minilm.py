"""The embedded model: EfficientNet-Lite0 (ImageNet) and MiniLM as the two towers of an open_clip CustomTextCLIP.

Both come from weights packages of the Python registry; `make_heads` says how the two projections that ship with this
package were made. See `data/lite0_minilm.md` for what the model can and cannot do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch import Tensor

from stages.models.card import LITE0_MINILM
from stages.models.checkpoints import load_strictly
from stages.models.converted import Converted
from stages.models.lite0 import streamline
from stages.models.registry import MINILM
from stages.models.towers import CnnTower, TextEncoder
from stages.models.weights import WeightsFolder

if TYPE_CHECKING:
    from open_clip.hf_model import HFTextEncoder
    from open_clip.tokenizer import HFTokenizer

NAME: Final = "lite0-minilm"
NAME_OF_WEIGHTS: Final = f"{NAME} and its converted weights"
OFFLINE: Final = "HF_HUB_OFFLINE"


def load_towers(name: str, device: str) -> tuple[CnnTower, Callable[[], TextEncoder]]:
    """Load the image tower, and a loader of the text tower.

    Raises
    ------
    WeightsError
        If a weights package is missing, or a file is altered.
    """
    weights = Converted(name, WeightsFolder())

    def load_text() -> TextEncoder:
        encoder = text_encoder()
        load_strictly(encoder, weights.tensors("text."), NAME_OF_WEIGHTS)
        frozen = encoder.to(device).eval().requires_grad_(requires_grad=False)
        return sentence_encoder(frozen, text_tokenizer(), device)

    return image_tower(weights.tensors("visual.")), load_text


def sentence_encoder(encoder: HFTextEncoder, tokenizer: HFTokenizer, device: str) -> TextEncoder:
    """Texts to vectors; columns that are padding in every text are left out, which changes nothing but the time."""

    def tokenize(texts: Sequence[str]) -> Tensor:
        tokens: Tensor = tokenizer(list(texts))
        used = int((tokens != encoder.config.pad_token_id).sum(dim=1).max())
        return tokens[:, :used].to(device)

    return TextEncoder(encoder, tokenize, encoder.transformer.get_input_embeddings(), encoder)


def image_tower(state: Mapping[str, Tensor]) -> CnnTower:
    """Image tower from the `visual.` part of a CustomTextCLIP state dict, without that prefix."""
    from open_clip.timm_model import TimmModel

    vision = LITE0_MINILM["vision_cfg"]
    visual = TimmModel(
        vision["timm_model_name"],
        LITE0_MINILM["embed_dim"],
        image_size=vision["image_size"],
        pool=vision["timm_pool"],
        proj=vision["timm_proj"],
        proj_bias=vision["timm_proj_bias"],
    )
    load_strictly(visual, state, NAME_OF_WEIGHTS)
    streamline(visual.trunk.eval())
    return CnnTower(visual)


def text_encoder() -> HFTextEncoder:
    """MiniLM with a linear projection, with random weights."""
    from open_clip.hf_model import HFTextEncoder

    text = LITE0_MINILM["text_cfg"]
    with offline_hub():
        return HFTextEncoder(
            str(minilm_folder()),
            LITE0_MINILM["embed_dim"],
            pooler_type=text["hf_pooler_type"],
            proj_type=text["hf_proj_type"],
            pretrained=False,
        )


def text_tokenizer() -> HFTokenizer:
    """MiniLM's tokenizer from its package."""
    from open_clip.tokenizer import HFTokenizer

    with offline_hub():
        return HFTokenizer(str(minilm_folder()), context_length=LITE0_MINILM["text_cfg"]["context_length"])


def minilm_folder() -> Path:
    """Folder of the installed package with MiniLM's configuration and tokenizer; their digests are checked.

    Raises
    ------
    WeightsError
        If the package is missing or a file is altered.
    """
    folder = WeightsFolder()
    paths = [folder.package_path(file) for file in MINILM]
    return paths[0].parent


@contextmanager
def offline_hub() -> Iterator[None]:
    """Keep transformers from asking a model hub for anything; what was set before is restored."""
    from huggingface_hub import constants

    before, flag = os.environ.get(OFFLINE), constants.HF_HUB_OFFLINE
    os.environ[OFFLINE] = "1"
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = flag
        os.environ.pop(OFFLINE)
        if before is not None:
            os.environ[OFFLINE] = before
