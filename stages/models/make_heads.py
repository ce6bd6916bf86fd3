"""Make the two projections of `lite0-minilm` that ship with this package: `python -m stages.models.make_heads OUT`.

Both towers have seen ImageNet's classes: Lite0 as the rows F of its classifier, MiniLM as their names. The image
projection P is made of the 256 leading directions of the centred rows; the text projection is the ridge regression of
the names' sentence vectors onto the rows' projections. No image is used. Deterministic up to the last bits of the
linear algebra; the digest of the shipped file is in the registry.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo
from torch import Tensor

from stages.models.card import LITE0_MINILM
from stages.models.checkpoints import load_strictly
from stages.models.converted import minilm_state
from stages.models.lite0 import load_lite0_state
from stages.models.lite0_minilm import sentence_encoder, text_encoder, text_tokenizer
from stages.models.weights import WeightsFolder

TEMPLATES = ("a photo of a {}.", "{}", "an image of the {}.")
NAMES_PER_CLASS = 3
RIDGE = 10.0
LOGIT_SCALE = 30.0
BATCH = 64

log = logging.getLogger(__name__)


def class_prompts() -> list[list[str]]:
    """Prompts of the 1000 ImageNet classes: up to three names of each in three templates."""
    info = ImageNetInfo()
    names = (info.index_to_description(i).split(", ")[:NAMES_PER_CLASS] for i in range(1000))
    return [[t.format(name) for name in group for t in TEMPLATES] for group in names]


@torch.inference_mode()
def sentence_vectors(texts: Sequence[str]) -> Tensor:
    """Mean-pooled vectors of MiniLM before any projection, (len(texts), 384) float32."""
    encoder = text_encoder()
    encoder.proj = torch.nn.Identity()
    load_strictly(encoder, minilm_state(WeightsFolder()), "MiniLM and its package")
    encode = sentence_encoder(encoder.eval(), text_tokenizer(), "cpu")
    parts = []
    for start in range(0, len(texts), BATCH):
        parts.append(encode(texts[start : start + BATCH]))
        log.info("%d of %d prompts", min(start + BATCH, len(texts)), len(texts))
    return torch.cat(parts)


def image_projection(rows: Tensor) -> Tensor:
    """Leading right singular vectors of the centred classifier rows, (256, 1280) float32 with orthonormal rows."""
    directions: Tensor = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)[2]
    return directions[: LITE0_MINILM["embed_dim"]].contiguous()


def text_projection(sentences: Tensor, targets: Tensor) -> Tensor:
    """Ridge regression of unit targets on sentence vectors, W of min |S W^T - T|^2 + RIDGE |W|^2.

    Parameters
    ----------
    sentences : Tensor of float32, (n, 384)
        S.
    targets : Tensor of float32, (n, 256)
        T.

    Returns
    -------
    Tensor of float32, (256, 384)
    """
    gram = sentences.T @ sentences + RIDGE * torch.eye(sentences.shape[1])
    weights: Tensor = torch.linalg.solve(gram, sentences.T @ targets)
    return weights.T.contiguous()


def make_heads() -> dict[str, Tensor]:
    """Both projections and the logit scale, under the keys of an open_clip CustomTextCLIP.

    Raises
    ------
    WeightsError
        If a weights package is missing or altered.
    """
    rows = load_lite0_state()["classifier.weight"]
    prompts = class_prompts()
    labels = torch.tensor([i for i, group in enumerate(prompts) for _ in group])
    projection = image_projection(rows)
    targets = F.normalize((rows - rows.mean(dim=0)) @ projection.T, dim=1)
    sentences = sentence_vectors([text for group in prompts for text in group])
    return {
        "visual.head.proj.weight": projection,
        "text.proj.weight": text_projection(sentences, targets[labels]),
        "logit_scale": torch.tensor(math.log(LOGIT_SCALE)),
    }


def main() -> None:
    """Write the heads to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    save_file(make_heads(), arguments.out)


if __name__ == "__main__":
    main()
