"""A model's identity card: what its vectors depend on, known without loading it; vectors of two cards never mix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from manifests.errors import StoreError, WeightsError
from stages.models.registry import HALF, Features, entry
from stages.models.weights import WeightsFolder

OPENAI_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Final = (0.26862954, 0.26130258, 0.27577711)

LITE0_MINILM: Final[Mapping[str, Any]] = {
    "embed_dim": 256,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": False,
        "image_size": 224,
    },
    "text_cfg": {"hf_proj_type": "linear", "hf_pooler_type": "mean_pooler", "context_length": 64},
}
"""Model configuration of open_clip's CustomTextCLIP; the text tower's folder is known only where it is installed."""
LITE0_WIDTH: Final = 1280

Interpolation = Literal["bicubic", "bilinear"]

TIMM: Final[Mapping[str, tuple[int, int, Interpolation]]] = {
    "tf_efficientnet_lite0": (LITE0_WIDTH, 7, "bicubic"),
    "resnet50": (2048, 7, "bicubic"),
    "res2net50_26w_4s": (2048, 7, "bilinear"),
    "vit_base_patch16_224": (768, 14, "bicubic"),
    "seresnet50": (2048, 7, "bicubic"),
    "swin_tiny_patch4_window7_224": (768, 7, "bicubic"),
    "swinv2_tiny_window8_256": (768, 8, "bicubic"),
}
"""Entries of a vector, cells of a side, and interpolation of the timm backbones at their own size."""


class Medical(NamedTuple):
    """One two-tower model of medicine, see `medical`."""

    family: str
    """Key of `medical.NAMES`."""
    trunk: str
    """`vit`, `swin` or `resnet`."""
    width: int
    """Entries of a vector before the projection."""
    side: int
    """Cells of a side."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    cased: bool
    """Whether its text tower tells capitals."""
    activation: str


GREY: Final = ((0.5862785803043838,) * 3, (0.27950088968644304,) * 3)
"""Mean and standard deviation of MedCLIP's chest X-rays, the same for every channel."""

MEDICAL: Final[Mapping[str, Medical]] = {
    "biomedclip": Medical("biomedclip", "vit", 768, 14, OPENAI_MEAN, OPENAI_STD, cased=False, activation="gelu"),
    "medclip-vit": Medical("medclip", "swin", 768, 7, *GREY, cased=True, activation="gelu"),
    "medclip-resnet": Medical("medclip", "resnet", 2048, 7, *GREY, cased=True, activation="relu"),
    "cxr-clip-swin": Medical("cxr-clip", "swin", 768, 7, *HALF, cased=True, activation="gelu"),
    "cxr-clip-resnet": Medical("cxr-clip", "resnet", 2048, 7, *HALF, cased=True, activation="relu"),
}
"""By architecture; all see 224 px and project to 512 entries."""

ACTIVATION_BYTES: Final = 64_000_000
"""Upper bound of what one image needs inside an image tower, in bytes."""

SPACE: Final = ("name", "weights", "architecture", "activation", "image_px", "mean", "std", "interpolation", "features")
"""Entries that must be equal for two vectors to be compared; `dtype` only says how exactly they were computed."""


def architecture_config(architecture: str) -> Mapping[str, Any]:
    """Model configuration by name: ours, or the one that the installed open_clip ships; imports neither it nor torch.

    Raises
    ------
    WeightsError
        If open_clip does not know the architecture, or it needs a model hub, or has no vision transformer of
        open_clip's own, whose features before the projection are defined.
    """
    if architecture == "lite0-minilm":
        return LITE0_MINILM
    spec = find_spec("open_clip")
    folder = Path(spec.origin).parent / "model_configs" if spec and spec.origin else Path()
    file = folder / f"{architecture}.json"
    if not file.is_file():
        raise WeightsError(f"open_clip has no architecture {architecture!r}.", "See: pipeline weights list")
    config: Mapping[str, Any] = json.loads(file.read_text("utf-8"))
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision or not isinstance(vision.get("layers"), int) or vision.get("attentional_pool"):
        problem = "its image tower is not open_clip's plain vision transformer"
    elif "hf_model_name" in text or "hf_tokenizer_name" in text or "siglip" in architecture.lower():
        problem = "its text tower or tokenizer comes from a model hub"
    else:
        return config
    raise WeightsError(f"{architecture} cannot be used: {problem}.", "Choose a ViT such as ViT-B-16-quickgelu.")


def feature_dims(name: str) -> dict[str, int]:
    """Entries of a model's vectors by kind of features: `trunk`, and `projected` where there is a text tower."""
    if entry(name).kind == "timm":
        return {"trunk": TIMM[entry(name).architecture][0]}
    if entry(name).kind == "medical":
        return {"trunk": MEDICAL[entry(name).architecture].width, "projected": 512}
    config = architecture_config(entry(name).architecture)
    return {"trunk": config["vision_cfg"].get("width", LITE0_WIDTH), "projected": config["embed_dim"]}


def token_grid(name: str) -> tuple[int, int]:
    """Rows and columns of the tokens that a model gives for one image."""
    if entry(name).kind == "timm":
        return (TIMM[entry(name).architecture][1],) * 2
    if entry(name).kind == "medical":
        return (MEDICAL[entry(name).architecture].side,) * 2
    vision = architecture_config(entry(name).architecture)["vision_cfg"]
    cells = vision["image_size"] // vision.get("patch_size", 32)
    return cells, cells


def seen_px(name: str) -> int:
    """Side of the square that a model sees, in pixels."""
    known = entry(name)
    return known.image_px or int(architecture_config(known.architecture)["vision_cfg"]["image_size"])


def side_px(name: str, wanted_px: int | None) -> int:
    """Side of the square that a timm backbone sees: its own, or another one where its layers allow any.

    Raises
    ------
    WeightsError
        If another side than its own is wanted of a transformer, whose layers are made for one.
    """
    known = entry(name)
    if wanted_px in (None, known.image_px):
        return known.image_px
    if known.architecture.startswith(("vit_", "swin")):
        raise WeightsError(
            f"{name} sees squares of {known.image_px} px, not {wanted_px}.", "Leave finetune.image_px out."
        )
    return int(wanted_px or 0)


def has_attention(name: str) -> bool:
    """Whether a model's image tower is a vision transformer of open_clip's own, whose attention can be biased.

    Raises
    ------
    WeightsError
        If the model is unknown.
    """
    if entry(name).kind in ("timm", "medical"):
        return False
    return "timm_model_name" not in architecture_config(entry(name).architecture)["vision_cfg"]


def model_card(name: str, precision: str, features: Features | None = None) -> dict[str, Any]:
    """Identity card of a model as JSON values: weights, architecture, activation, preprocessing, precision.

    Parameters
    ----------
    name : str
        Name in the registry.
    precision : str
        `float32` or `bfloat16`.
    features : Features, optional
        The space of the vectors that carry this card.

    Raises
    ------
    WeightsError
        If the model is unknown, cannot be used here or has no weights yet.
    """
    known = entry(name)
    ours = known.architecture == "lite0-minilm"
    card: dict[str, Any] = {
        "name": name,
        "weights": dict(WeightsFolder().digests(name)),
        "architecture": known.architecture,
        "dtype": precision,
        "dims": feature_dims(name),
    }
    if known.kind == "timm":
        mean, std = known.mean_std
        card |= {
            "activation": "the architecture's own",
            "image_px": known.image_px,
            "mean": list(mean),
            "std": list(std),
            "interpolation": TIMM[known.architecture][2],
            "untrained": known.source == "random",
        }
    elif known.kind == "medical":
        medical = MEDICAL[known.architecture]
        card |= {
            "activation": medical.activation,
            "image_px": known.image_px,
            "mean": list(medical.mean),
            "std": list(medical.std),
            "interpolation": "bicubic",
        }
    else:
        config = architecture_config(known.architecture)
        card |= {
            "activation": "relu6" if ours else "quickgelu" if config.get("quick_gelu") else "gelu",
            "image_px": config["vision_cfg"]["image_size"],
            "mean": [0.5] * 3 if ours else list(OPENAI_MEAN),
            "std": [0.5] * 3 if ours else list(OPENAI_STD),
            "interpolation": "bicubic",
        }
    return card if features is None else card | {"features": features}


def check_same_card(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Refuse to compare vectors of two models, two spaces or two preprocessings.

    Parameters
    ----------
    a, b : Mapping[str, Any]
        Cards as `model_card` makes them; lists and tuples of equal values are equal.

    Raises
    ------
    StoreError
        If they differ; names the first entry that does and both values.
    """
    for key in SPACE:
        left, right = (json.dumps(card.get(key), sort_keys=True) for card in (a, b))
        if left != right:
            raise StoreError(
                f"Vectors of two models would be mixed: {key} is {left} in one and {right} in the other.",
                "Set texts.model and texts.features to the embeddings' and run both stages again.",
            )
