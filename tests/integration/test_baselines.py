"""Zero-shot, Tip-Adapter, CoOp and CoCoOp, with the real text towers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from manifests.errors import ConfigError
from manifests.types import Cell, Split
from stages import splits
from stages.base import StageData
from stages.baselines import prompts, schedule, tip
from stages.baselines.settings import BaselinesSettings
from stages.baselines.stage import Baselines
from stages.models.clip import ClipModel, load_clip
from stages.models.registry import Features
from stages.models.towers import TextEncoder
from tests.unit.stages.small_study import CARD, CLASSES, context, image_rows, study_data

NAMES = ["benign tumor", "malignant tumor", "normal tissue"]
COUNTS = dict.fromkeys(CLASSES, (6, 4))


@pytest.fixture(scope="module")
def lite0() -> ClipModel:
    return load_clip("lite0-minilm", "cpu", "float32")


def data_in(model_width: int, tmp_path: Path) -> StageData:
    """A small study whose vectors are as wide as the model's, noisy about the class texts' places."""
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    random = np.random.default_rng(0)
    bank = random.normal(size=(len(CLASSES), model_width))
    of = np.array([CLASSES.index(row.label) for row in data.rows])
    vectors = (bank[of] + 3 * random.normal(size=(len(of), model_width))).astype(np.float32)
    data.arrays["image"] = np.stack([vectors] * 2, axis=1)  # type: ignore[index]
    np.save(tmp_path / "texts" / "bank.npy", (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32))
    assert CARD["features"] == "trunk"
    return data


@pytest.mark.parametrize("features", ["trunk", "projected"])
def test_coop_before_training_is_zero_shot(lite0: ClipModel, features: Features) -> None:
    images = normalize(torch.randn((5, lite0.card["dims"][features]), generator=torch.Generator().manual_seed(0)))
    learner = prompts.Prompts(lite0, NAMES, "a photo of a", features, 100.0)
    words = lite0.encode_text([f"a photo of a {name}." for name in NAMES], features).clone()
    torch.testing.assert_close(learner(images), 100 * images @ words.T, atol=1e-5, rtol=0)
    assert learner.context.shape == (4, 384)


def open_clip_tower(architecture: dict[str, Any]) -> tuple[Any, ClipModel]:
    torch.manual_seed(0)
    network = open_clip.CLIP(**architecture).eval().requires_grad_(requires_grad=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    tower = TextEncoder(network.encode_text, lambda texts: tokenizer(list(texts)), network.token_embedding, network)

    class Model:
        text_tower = tower

        def text_features(self, vectors: torch.Tensor, _features: str) -> torch.Tensor:
            return normalize(vectors, dim=-1)

    return network, Model()  # type: ignore[return-value]


def test_coop_on_open_clips_own_text_tower_keeps_the_causal_mask() -> None:
    network, model = open_clip_tower(
        {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
        }
    )
    learner = prompts.Prompts(model, NAMES, "a photo of a", "projected", 100.0)
    ids = open_clip.tokenize([f"a photo of a {name}." for name in NAMES])
    expected = normalize(network.encode_text(ids), dim=-1)
    assert learner.context.shape == (4, 64)
    torch.testing.assert_close(learner.texts(learner.context), expected, atol=1e-6, rtol=1e-5)
    network.attn_mask = torch.zeros_like(network.attn_mask)
    assert (learner.texts(learner.context) - expected).abs().max() > 1e-3


def test_gradients_reach_the_context_alone(lite0: ClipModel) -> None:
    learner = prompts.Prompts(lite0, NAMES, "a photo of a", "trunk", 100.0)
    learner(normalize(torch.ones(2, 1280))).sum().backward()
    assert learner.context.grad is not None
    assert learner.context.grad.abs().max() > 0
    assert [name for name, _ in learner.named_parameters()] == ["context"]
    assert all(p.grad is None for p in lite0.text_tower.embedding.parameters())


def test_meta_net_has_the_papers_shape_and_moves_every_token_alike(lite0: ClipModel) -> None:
    generator = torch.Generator().manual_seed(0)
    learner = prompts.ConditionalPrompts(
        lite0, NAMES, "a photo of a", "projected", 100.0, width=512, generator=generator
    )
    assert [tuple(p.shape) for p in learner.meta.parameters()] == [(32, 512), (32,), (384, 32), (384,)]
    images = normalize(torch.randn((3, 256), generator=generator))
    learner = prompts.ConditionalPrompts(
        lite0, NAMES, "a photo of a", "projected", 100.0, width=256, generator=generator
    )
    with torch.no_grad():
        together = learner(images)
        for i, image in enumerate(images):
            moved = learner.context + learner.meta(image)
            expected = 100 * learner.texts(moved) @ image
            torch.testing.assert_close(together[i], expected, atol=1e-3, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_context_that_melts_into_the_class_name_is_refused() -> None:
    def one_token_a_text(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1, len(text), 2] for text in texts])

    with pytest.raises(ConfigError, match="'a photo' apart from the class name"):
        prompts._shared_tokens(one_token_a_text, "a photo", torch.tensor([[1, 3, 2]]))


@pytest.mark.parametrize(
    ("n", "classes", "epochs"), [(3, 3, 50), (12, 3, 100), (13, 3, 200), (600, 3, 200), (1000, 3, 50)]
)
def test_epochs_follow_the_images_of_a_class(n: int, classes: int, epochs: int) -> None:
    assert schedule.coop_epochs(n, classes) == epochs


def test_tip_adapter_is_the_papers_formula() -> None:
    random = np.random.default_rng(0)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (random.normal(size=(n, 8)) for n in (6, 3, 4))]
    keys, texts, images = unit
    keys = keys * random.uniform(0.5, 2, (6, 1))  # as training may leave them
    labels = np.array([0, 1, 2, 0, 1, 2])
    cache = tip.Cache(*(torch.from_numpy(x) for x in (keys, labels, texts)), 100.0)
    expected = np.array(
        [
            [
                100 * f @ texts[k] + 0.7 * sum(np.exp(-2.5 * (1 - f @ key)) for key in keys[labels == k])
                for k in range(3)
            ]
            for f in images
        ]
    )
    np.testing.assert_allclose(cache.logits(torch.from_numpy(images), 0.7, 2.5).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("trained", [False, True])
def test_tip_adapter_uses_the_training_images_where_texts_say_nothing(trained: bool) -> None:
    random = np.random.default_rng(1)
    centres = random.normal(size=(3, 16))
    labels = np.arange(30) % 3

    def drawn() -> np.ndarray:
        x = centres[labels] + 0.5 * random.normal(size=(30, 16))
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    texts = np.tile(random.normal(size=(1, 16)), (3, 1))
    subset = tip.Subset(drawn(), labels, [str(i) for i in range(30)])
    tuned = tip.tip_adapter(subset, texts / np.linalg.norm(texts), 100.0, folds=5, seed=0, trained=trained)
    probabilities = tuned.probabilities(drawn())
    assert (probabilities.argmax(axis=1) == labels).mean() > 0.9
    assert tuned.held_out_accuracy is not None
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_subset_that_cannot_be_folded_keeps_the_papers_values() -> None:
    x = np.eye(3)
    tuned = tip.tip_adapter(tip.Subset(x, np.arange(3), ["a", "b", "c"]), x, 100.0, folds=5, seed=0, trained=False)
    assert (tuned.alpha, tuned.beta, tuned.held_out_accuracy) == (1.0, 5.5, None)


@pytest.mark.parametrize("method", ["zero-shot", "tip-adapter", "tip-adapter-f", "coop", "cocoop"])
def test_cell_is_the_same_again_and_ignores_the_labels_of_test_rows(tmp_path: Path, method: str) -> None:
    settings = BaselinesSettings(cocoop_epochs=1)
    stage, cell = Baselines(settings, context()), Cell(method, 0.5, 0)
    data = data_in(1280, tmp_path)
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    scores = stage.fit(cell, data, folders[0])
    stage.fit(cell, data, folders[1])
    assert scores["n_train"] == 9
    assert 0 <= scores["accuracy"] <= 1
    files = sorted(f.name for f in folders[0].iterdir())
    assert {"predictions.csv", "scores.json"} <= set(files)
    assert all((folders[0] / name).read_bytes() == (folders[1] / name).read_bytes() for name in files)
    assert json.loads((folders[0] / "scores.json").read_text())["method"] == method
    other = {"benign": "normal", "normal": "malignant", "malignant": "benign"}
    rows = [r if r.split == Split.TRAIN else _relabelled(r, other[r.label]) for r in data.rows]
    stage.fit(cell, _with_rows(data, rows), folders[2])
    assert _probabilities(folders[0]) == _probabilities(folders[2])


def test_test_row_that_reaches_a_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.baselines.stage.train_indices", lambda data, *_: splits.test_indices(data))
    with pytest.raises(ValueError, match="fit rows: expected split"):
        Baselines(BaselinesSettings(), context()).fit(Cell("zero-shot", 1.0, 0), data_in(1280, tmp_path), tmp_path)


def test_coop_lowers_its_loss_and_moves_the_context(tmp_path: Path, lite0: ClipModel) -> None:
    stage = Baselines(BaselinesSettings(), context())
    (tmp_path / "out").mkdir()
    scores = stage.fit(Cell("coop", 1.0, 0), data_in(1280, tmp_path), tmp_path / "out")
    learned = load_file(tmp_path / "out" / "prompts.safetensors")["context"]
    start = prompts.Prompts(lite0, list(CLASSES), "a photo of a", "trunk", 100.0).context.detach()
    assert (learned - start).abs().max() > 1e-3
    assert scores["epochs"] == 200
    assert scores["loss"] < 1.2


def _relabelled(row: Any, label: str) -> Any:
    return replace(row, label=label)


def _with_rows(data: StageData, rows: list[Any]) -> StageData:
    return replace(data, rows=tuple(rows))


def _probabilities(folder: Path) -> list[list[str]]:
    return [line.split(",")[6:] for line in (folder / "predictions.csv").read_text().splitlines()[1:]]
