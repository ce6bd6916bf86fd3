"""Vision backbones of timm: files that must fit, random weights that say so, and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from manifests.errors import WeightsError
from stages.models import card, timm_files, weights
from stages.models.clip import load_clip
from stages.models.registry import entry, names
from stages.models.weights import WeightsFolder
from stages.report.notes import is_untrained

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(weights.ENVIRONMENT, str(tmp_path / "weights"))
    return tmp_path / "weights"


def published(architecture: str, path: Path, **changed: Any) -> Path:
    """A file as timm publishes it, classifier and all, with random weights."""
    torch.manual_seed(1)
    model = timm.create_model(architecture, pretrained=False)
    save_file({**{k: v.contiguous() for k, v in model.state_dict().items()}, **changed}, path)
    return path


@pytest.mark.parametrize("name", ["resnet50", "res2net50", "seresnet50", "vit-b-16", "swin-t", "swinv2-t"])
def test_card_says_what_timm_says_and_what_the_model_gives(name: str) -> None:
    model = load_clip(f"{name}-untrained", "cpu", "float32")
    given = timm_files.build(model.card["architecture"]).pretrained_cfg
    assert (model.card["mean"], model.card["std"]) == (list(given["mean"]), list(given["std"]))
    assert (model.card["interpolation"], model.card["image_px"]) == (given["interpolation"], given["input_size"][1])
    found = model.encode_image(IMAGES, "trunk", tokens=True)
    cells = card.token_grid(name)
    assert found.tokens is not None
    assert found.vectors.shape == (2, model.card["dims"]["trunk"])
    assert (found.grid, found.tokens.shape) == (cells, (2, cells[0] * cells[1], model.card["dims"]["trunk"]))


def test_vectors_of_a_published_file_are_timms_own(tmp_path: Path) -> None:
    file = published("resnet50", tmp_path / "model.safetensors")
    WeightsFolder().add("resnet50", file)
    model = load_clip("resnet50", "cpu", "float32")
    torch.manual_seed(1)
    theirs = timm.create_model("resnet50", pretrained=False).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs) | {"crop_pct": 1.0})
    with torch.no_grad():
        features = theirs.forward_features(transform(Image.fromarray(IMAGES[0]))[None])
        expected = theirs.forward_head(features, pre_logits=True)
    ours = model.encode_image(IMAGES[:1], "trunk", tokens=False).vectors
    torch.testing.assert_close(ours, torch.nn.functional.normalize(expected, dim=1), atol=1e-4, rtol=0)
    assert not is_untrained(model.card)
    assert len(model.card["weights"]["resnet50"]) == 64


def test_backbone_without_weights_is_refused_and_the_untrained_one_says_so() -> None:
    with pytest.raises(WeightsError, match=r"resnet50 are not here.*weights add resnet50 FILE"):
        load_clip("resnet50", "cpu", "float32")
    first, second = (load_clip("resnet50-untrained", "cpu", "float32") for _ in range(2))
    assert is_untrained(first.card)
    vectors = [model.encode_image(IMAGES[:1], "trunk", tokens=False).vectors for model in (first, second)]
    assert torch.equal(*vectors)
    with pytest.raises(WeightsError, match="no text tower"):
        first.encode_text(["a cat"], "trunk")


def test_file_of_another_backbone_is_refused_by_name(tmp_path: Path) -> None:
    file = published("swin_tiny_patch4_window7_224", tmp_path / "swin.safetensors")
    with pytest.raises(WeightsError, match=r"swin.safetensors and resnet50.*missing"):
        WeightsFolder().add("resnet50", file)
    broken = published("resnet50", tmp_path / "broken.safetensors", **{"conv1.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(WeightsError, match=r"conv1.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"):
        WeightsFolder().add("resnet50", broken)


def test_every_backbone_from_a_file_has_an_untrained_twin() -> None:
    known = names("timm")
    trained = [name for name in known if entry(name).source == "file"]
    assert sorted(known) == sorted(["lite0", *trained, *(f"{name}-untrained" for name in trained)])


def test_lite0_as_a_backbone_gives_the_vectors_of_lite0_minilm() -> None:
    ours, theirs = (load_clip(name, "cpu", "float32") for name in ("lite0", "lite0-minilm"))
    found, expected = (m.encode_image(IMAGES, "trunk", tokens=False).vectors for m in (ours, theirs))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not is_untrained(ours.card)
