"""CLIP-LoRA: it begins as zero-shot CLIP, trains nothing but its updates, and counts its steps by shots."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from manifests.errors import ConfigError
from manifests.types import Cell, Status
from pipeline.config import load_config
from stages import splits
from stages.base import StageContext, StageData
from stages.finetune.lora import ClipLora, LoraTraining, LowRank
from stages.finetune.settings import LoraSettings
from stages.models.clip import ClipModel, load_clip
from stages.models.towers import TextEncoder, VitTower
from tests.unit.stages.small_study import CLASSES, STUDY, image_rows

NAMES = ["benign", "malignant", "normal"]
PX = 32
SETTINGS = LoraSettings(learning_rate=2e-2, steps_per_shot=5, smallest_crop=0.5, batch_items=8)


def vit() -> ClipModel:
    """A small vision transformer of open_clip's with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = open_clip.CLIP(
            embed_dim=32,
            vision_cfg={"image_size": PX, "layers": 2, "width": 64, "patch_size": 16},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
        )
    network = network.eval().requires_grad_(requires_grad=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    tower = VitTower(network.visual)
    text = TextEncoder(network.encode_text, lambda texts: tokenizer(list(texts)), network.token_embedding, network)
    network.visual = None
    card = {"name": "small", "dtype": "float32", "mean": [0.5] * 3, "std": [0.5] * 3}
    return ClipModel({**card, "image_px": PX, "interpolation": "bicubic"}, tower, lambda: text, "cpu")


def study() -> StageData:
    """Pictures whose colour tells the class."""
    rows = image_rows(dict.fromkeys(CLASSES, (6, 3)))
    random = np.random.default_rng(0)
    labels = np.array([CLASSES.index(row.label) for row in rows])
    pictures = random.integers(0, 90, (len(rows), PX, PX, 3), dtype=np.uint8)
    pictures[np.arange(len(rows)), :, :, labels] += 150
    status = np.full(len(rows), Status.OK, np.uint8)
    return StageData(tuple(rows), ("first",) * len(rows), status, {"picture": pictures}, {}, {})


def labels_of(data: StageData) -> np.ndarray:
    return np.array([CLASSES.index(row.label) for row in data.rows])


def training(model: ClipModel, **changes: Any) -> LoraTraining:
    generator = torch.Generator().manual_seed(0)
    return LoraTraining(model, NAMES, SETTINGS.model_copy(update=changes), generator)


@pytest.mark.parametrize("load", [vit, lambda: load_clip("lite0-minilm", "cpu", "float32")], ids=["vit", "lite0"])
def test_without_training_it_is_zero_shot(load: Any) -> None:
    model, pictures = load(), study().arrays["picture"][:4]
    images = model.image_tower(model.normalised(torch.from_numpy(pictures).permute(0, 3, 1, 2))).pooled
    images = torch.nn.functional.normalize(model.project(images), dim=1)
    with torch.no_grad():
        texts = model.text_tower([SETTINGS.template.replace("{}", name) for name in NAMES])
    words = torch.nn.functional.normalize(texts.float(), dim=1)
    expected = (100 * images.detach() @ words.T).double().softmax(dim=1).numpy()
    np.testing.assert_allclose(training(model).probabilities(pictures), expected, atol=1e-5)


def test_attention_of_both_towers_is_updated_and_nothing_else_moves() -> None:
    model, data = vit(), study()
    trained = training(model)
    assert (len(trained.of_image), len(trained.of_text)) == (4, 4)  # two blocks each, A and B
    towers: tuple[Any, ...] = (model.image_tower, model.text_tower.tower)
    before = [{k: v.clone() for k, v in tower.state_dict().items()} for tower in towers]
    history = trained.train(data.arrays["picture"], labels_of(data), 150)
    assert [step for step, _ in history] == [100, 150]
    assert history[-1][1] < history[0][1]
    for tower, kept in zip(towers, before, strict=True):
        moved = {k for k, v in tower.state_dict().items() if not torch.equal(v, kept[k])}
        assert moved
        assert all(".parametrizations.in_proj_weight.0." in key for key in moved)
    assert (trained.probabilities(data.arrays["picture"]).argmax(axis=1) == labels_of(data)).mean() > 0.8


def test_tower_without_attention_stays_and_its_vectors_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = load_clip("lite0-minilm", "cpu", "float32"), study()
    trained = training(model, learning_rate=1e-3)
    assert not trained.of_image
    assert len(trained.of_text) == 6 * 3 * 2  # blocks; query, key and value; A and B
    calls: list[int] = []
    encode = LoraTraining._encode
    monkeypatch.setattr(LoraTraining, "_encode", lambda self, p: calls.append(len(p)) or encode(self, p))
    trained.train(data.arrays["picture"], labels_of(data), 3)
    assert sum(calls) == len(data.rows)


def test_update_is_b_times_a_of_each_part() -> None:
    weight = torch.randn(6, 4)
    update = LowRank(weight, 3, LoraSettings(rank=2, alpha=1), torch.Generator().manual_seed(0)).eval()
    torch.testing.assert_close(update(weight), weight)
    torch.nn.init.normal_(update.up)
    change = update(weight) - weight
    for part in range(3):
        rows = change[2 * part : 2 * part + 2]
        torch.testing.assert_close(rows, 0.5 * update.up[part] @ update.down[part])
    assert not torch.equal(update.train()(weight), update.train()(weight))


@pytest.mark.parametrize(("cell", "steps"), [(Cell("clip-lora", 0.0, 0, 2), 10), (Cell("clip-lora", 1.0, 0), 15)])
def test_stage_counts_steps_by_images_a_class(
    cell: Cell, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.clip.load_clip", lambda *_: vit())
    context = StageContext({"pictures": "a" * 64}, CLASSES, STUDY)
    stage = ClipLora(SETTINGS.model_copy(update={"most_shots": 3}), context)
    assert [c.method for c in stage.cells()] == ["clip-lora"] * 4
    record = stage.fit(cell, study(), tmp_path)
    assert record["steps"] == steps
    with (tmp_path / "history.csv").open(newline="") as lines:
        assert list(csv.DictReader(lines))[-1]["step"] == str(steps)
    files = {file.name for file in tmp_path.iterdir()}
    assert files == {"history.csv", "predictions.csv", "scores.json", "updates.safetensors"}


def test_test_row_that_reaches_a_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.finetune.lora.train_indices", lambda data, _: splits.test_indices(data))
    context = StageContext({"pictures": "a" * 64}, CLASSES, STUDY)
    with pytest.raises(ValueError, match="got test"):
        ClipLora(SETTINGS, context).fit(Cell("clip-lora", 1.0, 0), study(), tmp_path)


def test_template_needs_one_place_for_the_name() -> None:
    with pytest.raises(ConfigError, match=r"lora\.template.*exactly one \{\}"):
        load_config(overrides=['lora.template="a photo"'])
