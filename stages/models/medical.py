"""Two-tower models of medicine with a BERT as text tower: BiomedCLIP, MedCLIP and CXR-CLIP, from local files.

Their files are read strictly into towers that are built here of transformers' and timm's own classes; no code in a
file is run, and nothing is asked of a model hub. The vocabulary of the text tower is a file of its own. Architectures:
BiomedCLIP (arXiv 2303.00915), MedCLIP (arXiv 2210.10163), CXR-CLIP (arXiv 2310.13292). What users should know of each
is in docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import timm
import torch
import torchvision
from torch import Tensor, nn

from manifests.errors import WeightsError
from stages.models.card import MEDICAL
from stages.models.checkpoints import load_strictly, read_state
from stages.models.registry import entry
from stages.models.timm_files import TimmTower
from stages.models.towers import Bias, TextEncoder, TrunkOutput
from stages.models.weights import WeightsFolder

PROJECTED: Final = 512
BERT: Final[dict[str, int]] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
"""Size of both BERTs."""
SWIN: Final[dict[str, Any]] = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
"""Swin-T, as transformers builds it."""
PAD: Final = "[PAD]"
"""Word piece that fills up; the first of every vocabulary of a BERT."""
CONTEXT: Final = 256
"""Tokens of a text at most, the marks of its beginning and end among them."""
WITHOUT_USE: Final = ("logit_scale", "position_ids", "text_encoder.text_encoder.pooler.", "cls.", "mlm_head.")
"""Parts of the files that no vector depends on."""
NAMES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "biomedclip": (
        ("visual.trunk.", "image.trunk."),
        ("visual.head.proj.", "image.projection."),
        ("text.transformer.", "text.bert."),
        ("text.proj.", "text.projection."),
    ),
    "medclip": (
        ("vision_model.projection_head.", "image.projection."),
        ("vision_model.model.fc.", "image.projection."),
        ("vision_model.model.", "image.trunk."),
        ("text_model.projection_head.", "text.projection."),
        ("text_model.model.", "text.bert."),
    ),
    "cxr-clip": (
        ("image_encoder.image_encoder.", "image.trunk."),
        ("image_encoder.resnet.", "image.trunk."),
        ("image_projection.projection.", "image.projection."),
        ("text_encoder.text_encoder.", "text.bert."),
        ("text_projection.projection.", "text.projection."),
    ),
}
"""Beginnings of the keys of each family's files, and of the modules here."""


class SwinTower(nn.Module):
    """Swin-T of transformers: pooled is the mean of its tokens, or the first one.

    Parameters
    ----------
    first : bool
        CXR-CLIP's code takes the first token for a class token, which Swin has none of: it is the upper left cell.
    """

    def __init__(self, *, first: bool) -> None:
        from transformers import SwinConfig, SwinModel

        super().__init__()
        self.trunk: Any = SwinModel(SwinConfig(image_size=224, patch_size=4, window_size=7, **SWIN))
        self.first = first

    def forward(self, pixels: Tensor) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, 224, 224)."""
        tokens: Tensor = self.trunk(pixels).last_hidden_state
        side = round(tokens.shape[1] ** 0.5)
        return TrunkOutput(tokens[:, 0] if self.first else tokens.mean(dim=1), tokens, (side, side))


class ResNetTower(nn.Module):
    """ResNet-50 of torchvision without its classifier: pooled is the mean of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = torchvision.models.resnet50(weights=None)
        del self.trunk.fc

    def forward(self, pixels: Tensor) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, 224, 224)."""
        t = self.trunk
        maps = t.maxpool(t.relu(t.bn1(t.conv1(pixels))))
        maps = t.layer4(t.layer3(t.layer2(t.layer1(maps))))
        cells = maps.flatten(2).transpose(1, 2)
        return TrunkOutput(cells.mean(dim=1), cells, (maps.shape[2], maps.shape[3]))


class VitTimmTower(nn.Module):
    """ViT-B/16 of timm: pooled is its class token."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)

    def forward(self, pixels: Tensor) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, 224, 224)."""
        out: TrunkOutput = TimmTower(self.trunk)(pixels)
        return out


class MedicalTower(nn.Module):
    """An image tower whose last step is a linear projection, perhaps with a bias.

    Parameters
    ----------
    trunk : nn.Module
        Gives a `TrunkOutput`.
    weight : Tensor, (projected dim, trunk dim)
        Of the projection.
    bias : Tensor, (projected dim,), or None
        Of the projection.
    """

    def __init__(self, trunk: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self._encode = trunk
        self.projection: Tensor = weight.detach().float().T.clone()
        self.projection_bias = None if bias is None else bias.detach().float().clone()

    def forward(self, pixels: Tensor, bias: Bias | None = None) -> TrunkOutput:
        """Encode normalised pixels, (B, 3, 224, 224); no attention can be biased."""
        if bias is not None:
            raise ValueError("bias: the attention of this tower cannot be biased here")
        out: TrunkOutput = self._encode(pixels)
        return out


class BertText(nn.Module):
    """A BERT, what is pooled of its tokens, and a projection.

    Parameters
    ----------
    family : str
        Key of `NAMES`.
    vocabulary : int
        Number of word pieces.
    biased : bool
        Whether the projection has a bias; BiomedCLIP's, of two layers, never has.
    """

    def __init__(self, family: str, vocabulary: int, *, biased: bool) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(vocab_size=vocabulary, **BERT)
        self.bert: Any = BertModel(config, add_pooling_layer=family == "medclip")
        width, self.family = BERT["hidden_size"], family
        between = (width + PROJECTED) // 2
        self.projection: nn.Module = nn.Linear(width, PROJECTED, bias=biased)
        if family == "biomedclip":
            layers = nn.Linear(width, between, bias=False), nn.GELU(), nn.Linear(between, PROJECTED, bias=False)
            self.projection = nn.Sequential(*layers)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids, (K, n) -> (K, 512)."""
        seen = ids != 0  # PAD
        out = self.bert(input_ids=ids, attention_mask=seen.long(), output_hidden_states=True)
        last: Tensor = out.last_hidden_state
        if self.family == "biomedclip":
            pooled = last[:, 0]
        elif self.family == "cxr-clip":
            pooled = last[torch.arange(len(ids), device=ids.device), seen.sum(dim=1) - 1]
        else:
            layers = torch.stack([out.hidden_states[i] for i in (1, 2, -1)]).mean(dim=0)
            pooled = (layers * seen[..., None]).sum(dim=1) / seen.sum(dim=1, keepdim=True)
        projected: Tensor = self.projection(pooled)
        return projected


def load_towers(name: str, device: str) -> tuple[MedicalTower, Callable[[], TextEncoder]]:
    """Load the image tower, and a loader of the text tower, whose vocabulary must be in the weights folder too.

    Raises
    ------
    WeightsError
        If a file is missing, altered or of another architecture.
    """
    known, folder = entry(name), WeightsFolder()
    image, text = load_checked(known.architecture, folder.verified_path(name))

    def load_text() -> TextEncoder:
        words = read_vocabulary(folder.verified_path(known.base))
        if len(words) != text.bert.config.vocab_size:
            size = text.bert.config.vocab_size
            raise WeightsError(
                f"{known.base} has {len(words)} word pieces, {name} knows {size}.", "Add the vocabulary of this model."
            )
        return _encoder(text.to(device), words, device, cased=MEDICAL[known.architecture].cased)

    return image, load_text


def load_checked(architecture: str, path: Path) -> tuple[MedicalTower, BertText]:
    """Build both towers and load the whole of a file into them, on the CPU.

    Raises
    ------
    WeightsError
        If the file is damaged, holds code or does not fit.
    """
    card, state = MEDICAL[architecture], {}
    names = NAMES[card.family]
    for key, value in read_state(path).items():
        plain = key.removeprefix("module.")
        if not plain.startswith(WITHOUT_USE) and not plain.endswith("position_ids"):
            begin, ours = next(((b, o) for b, o in names if plain.startswith(b)), ("", ""))
            state[ours + plain.removeprefix(begin)] = value
    what = f"{path.name} and {architecture}"
    trunks: dict[str, Callable[[], nn.Module]] = {
        "swin": lambda: SwinTower(first=card.family == "cxr-clip"),
        "resnet": ResNetTower,
        "vit": VitTimmTower,
    }
    vocabulary = state.get("text.bert.embeddings.word_embeddings.weight", torch.zeros(1, 1)).shape[0]
    biased = "text.projection.bias" in state
    parts = nn.Module()
    parts.image = trunks[card.trunk]()
    parts.image.projection = nn.Linear(card.width, PROJECTED, bias="image.projection.bias" in state)
    parts.text = BertText(card.family, vocabulary, biased=biased)
    load_strictly(parts, state, what)
    parts.eval().requires_grad_(requires_grad=False)
    projection: Any = parts.image.projection
    tower = MedicalTower(parts.image, projection.weight, projection.bias)
    return tower.eval(), parts.text


def read_vocabulary(path: Path) -> list[str]:
    """Word pieces of a BERT, one a line, in the order of their numbers.

    Raises
    ------
    WeightsError
        If the file is no such list.
    """
    try:
        words = path.read_text("utf-8").removesuffix("\n").split("\n")  # some word pieces are line separators
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path.name} cannot be read: {error}.", "Get the vocab.txt of the model.") from error
    missing = [special for special in (PAD, "[UNK]", "[CLS]", "[SEP]") if special not in words]
    if missing or len(set(words)) != len(words) or words[0] != PAD:
        what = f"lacks {', '.join(missing)}" if missing else f"does not begin with {PAD}"
        what = "holds a word piece twice" if len(set(words)) != len(words) else what
        raise WeightsError(f"{path.name} is no vocabulary of a BERT: it {what}.", "Get the vocab.txt of the model.")
    return words


def _encoder(text: BertText, words: Sequence[str], device: str, *, cased: bool) -> TextEncoder:
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer({word: i for i, word in enumerate(words)}, lowercase=not cased)
    tokenizer.enable_truncation(CONTEXT)
    tokenizer.enable_padding(pad_id=0, pad_token=PAD)

    def tokenize(texts: Sequence[str]) -> Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(list(texts))], device=device)

    return TextEncoder(text, tokenize, text.bert.get_input_embeddings(), text)
