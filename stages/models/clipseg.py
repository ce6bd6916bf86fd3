"""CLIPSeg (arXiv 2112.10003) through transformers, from a local file: one mask for every text.

The published model `clipseg-rd64-refined` is a CLIP ViT-B/16 whose activations after the blocks 3, 6 and 9 go through
a small decoder that a text conditions. An image is encoded once, whatever the number of texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.models.checkpoints import load_strictly, read_state
from stages.models.clip import resize
from stages.models.registry import entry
from stages.models.sam2_card import segmenter_card
from stages.models.weights import WeightsFolder

SIZES: Final[dict[str, Any]] = {
    "vision_config": {"patch_size": 16, "image_size": 224},
    "text_config": {},
    "use_complex_transposed_convolution": True,
}
"""What the published model changes of transformers' defaults."""
TOKENIZER: Final = "ViT-B-16"
"""Name of the open_clip model whose tokenizer is CLIP's own."""


class TextSegmenter:
    """A loaded CLIPSeg.

    Parameters
    ----------
    model : CLIPSegForImageSegmentation
        With its weights; is moved to the device.
    card : Mapping[str, Any]
        JSON values that say what masks depend on.
    texts : Sequence[str]
        What is looked for, P.
    device : str
        Torch device.
    """

    def __init__(self, model: Any, card: Mapping[str, Any], texts: Sequence[str], device: str) -> None:
        self.card = dict(card)
        self.device = torch.device(device)
        self.image_px: int = card["image_px"]
        self._model = model.to(self.device)
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(card["mean"], device=self.device).view(shape)
        self._std = torch.tensor(card["std"], device=self.device).view(shape)
        ids = open_clip.get_tokenizer(TOKENIZER)(list(texts)).to(self.device)
        with torch.inference_mode():
            self._conditions = model.get_conditional_embeddings(len(ids), ids)

    @torch.inference_mode()
    def logits(self, canvases: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Mask of every text on each image, (B, P, image_px, image_px) float32; 0 is an even chance.

        Parameters
        ----------
        canvases : Sequence[ndarray of uint8, (S, S, 3)]
            RGB.
        """
        squares = torch.stack([resize(torch.tensor(canvas), self.image_px) for canvas in canvases])
        pixels = (squares.to(self.device).float().div(255) - self._mean) / self._std
        vision = self._model.clip.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
        activations = [vision.hidden_states[layer + 1] for layer in self._model.extract_layers]
        found = []
        for index in range(len(canvases)):
            of_image = [a[index : index + 1].expand(len(self._conditions), -1, -1) for a in activations]
            found.append(self._model.decoder(of_image, self._conditions).logits.float())
        return torch.stack(found)


def load_text_segmenter(name: str, texts: Sequence[str], device: str) -> TextSegmenter:
    """Load CLIPSeg by its name in the registry, from a local file alone.

    Raises
    ------
    WeightsError
        If its file is missing, altered or of another architecture.
    """
    model = load_checked(WeightsFolder().verified_path(entry(name).name))
    return TextSegmenter(model, segmenter_card(name, "float32"), texts, device)


def load_checked(path: Path) -> Any:
    """Build CLIPSeg and load the whole of a file into it, on the CPU.

    Raises
    ------
    WeightsError
        If the file is damaged, holds code or does not fit.
    """
    model = build()
    state = {key: value for key, value in read_state(path).items() if not key.endswith("position_ids")}
    load_strictly(model, state, f"{path.name} and CLIPSeg")
    return model


def build() -> Any:
    """Build CLIPSeg with random weights, on the CPU and in evaluation mode."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    return CLIPSegForImageSegmentation(CLIPSegConfig(**SIZES)).eval().requires_grad_(requires_grad=False)
