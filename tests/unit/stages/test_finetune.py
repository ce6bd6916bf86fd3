"""Classifiers that are trained end to end: crops, schedule, channel attention, and the stages."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import SqueezeExcite

from manifests.errors import ConfigError, WeightsError
from manifests.types import Cell, Split, Status
from stages import splits
from stages.base import StageContext, StageData
from stages.finetune import training
from stages.finetune.classifier import ChannelAttention, Classifier, Depth, SlcaClassifier, at, sources, stages_of
from stages.finetune.settings import FinetuneSettings, SlcaSettings
from stages.finetune.stage import Finetune, Slca
from stages.finetune.training import random_places, rate, whole
from stages.models.card import side_px
from stages.models.lite0 import fold_norms
from stages.models.sam2_card import depth_channels
from stages.models.timm_files import load_backbone
from tests.unit.stages.small_study import CLASSES, STUDY, image_rows

PX = 32
COUNTS = dict.fromkeys(CLASSES, (8, 4))
QUICK = {"epochs": 8, "min_steps": 1, "batch_items": 8, "head_rate": 1e-2, "folds": 4, "patience": 1.0}
CELL = Cell("finetune", 1.0, 0)
DEPTHS = depth_channels("sam2-lite0")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def context() -> StageContext:
    return StageContext(upstream={"pictures": "a" * 64, "grids": "b" * 64}, classes=CLASSES, study=STUDY)


def study(*, coloured: bool = True, seed: int = 0) -> StageData:
    """Pictures whose colour tells the class, or that tell nothing; depths whose channels tell it in either case."""
    rows = image_rows(COUNTS)
    random = np.random.default_rng(seed)
    labels = np.array([CLASSES.index(row.label) for row in rows])
    pictures = random.integers(0, 120, (len(rows), PX, PX, 3), dtype=np.uint8)
    if coloured:
        pictures[np.arange(len(rows)), :, :, labels] += 100
    arrays: dict[str, Any] = {"picture": pictures}
    for number, channels in enumerate(DEPTHS):
        depth = random.normal(0, 0.1, (len(rows), channels, 2, 2))
        depth[np.arange(len(rows)), labels] += 1
        arrays[f"depth{number}"] = depth.astype(np.float16)
    status = np.full(len(rows), Status.OK, np.uint8)
    return StageData(tuple(rows), ("first",) * len(rows), status, arrays, {}, {})


def fit(folder: Path, data: StageData, stage: type[Finetune] = Finetune, **changes: Any) -> dict[str, float]:
    folder.mkdir()
    settings = SlcaSettings if stage is Slca else FinetuneSettings
    return dict(stage(settings(**QUICK | changes), context()).fit(CELL, data, folder))


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def plain_depth(channels: int) -> Depth:
    return Depth(torch.zeros(channels), torch.ones(channels))


def test_with_one_cell_the_attention_is_squeeze_and_excitation():
    theirs = SqueezeExcite(32, rd_channels=2)
    ours = ChannelAttention(plain_depth(32), 32, 16, 0.0, seeded())
    for own, other in ((ours.squeeze, theirs.fc1), (ours.excite, theirs.fc2)):
        own.load_state_dict(other.state_dict())
    maps = torch.randn(2, 32, 6, 5, generator=seeded())
    weights = at(ours(maps.mean(dim=(2, 3), keepdim=True)), whole(2), 6, 5)
    torch.testing.assert_close(maps * weights, theirs(maps))


@pytest.mark.parametrize("name", ["lite0", "resnet50-untrained", "swin-t-untrained"])
def test_without_attention_slca_is_the_plain_classifier_and_with_it_is_not(name):
    side = side_px(name, None) if "swin" in name else 64
    pixels, depths = torch.randn(2, 3, side, side, generator=seeded()), [torch.randn(2, 6, 4, 4)] * 2
    plain = Classifier(load_backbone(name), 3, seeded())
    slca = SlcaClassifier(load_backbone(name), 3, seeded(), [plain_depth(6)] * 2, reduction=2, residual=True)
    slca.head.load_state_dict(plain.head.state_dict())
    for part in slca.attention:
        torch.nn.init.constant_(part.excite.bias, -1e9)
    expected = plain(pixels, whole(2))
    torch.testing.assert_close(slca(pixels, whole(2), depths), expected, atol=1e-4, rtol=1e-4)
    for part in slca.attention:
        torch.nn.init.normal_(part.excite.bias, generator=seeded())
    assert (slca(pixels, whole(2), depths) - expected).abs().max() > 1e-3


def test_attention_reaches_the_cells_of_a_crop_and_its_mirror():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    left_half = torch.tensor([[[0.5, 0.0, -0.5], [0.0, 1.0, 0.0]]])
    assert at(maps, left_half, 4, 2)[0, 0].tolist() == [[0, 1], [4, 5], [8, 9], [12, 13]]
    mirrored = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert torch.equal(at(maps, mirrored, 4, 4), maps.flip(-1))
    assert torch.equal(at(maps, whole(1), 8, 8), maps.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_stages_and_depths_run_from_early_to_late():
    assert sources(4, 5) == [0, 1, 3, 4]
    assert sources(1, 5) == [0]
    assert [channels for _, channels in stages_of(load_backbone("lite0"))] == [24, 40, 112, 320]
    with pytest.raises(ConfigError, match=r"VisionTransformer has no stages.*slca\.models"):
        stages_of(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0))


def test_folding_norms_keeps_the_function():
    net, folded = load_backbone("lite0"), load_backbone("lite0")
    fold_norms(folded)
    x = torch.randn(2, 3, 64, 64, generator=seeded())
    torch.testing.assert_close(folded(x), net(x), atol=1e-4, rtol=1e-4)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules()) == 0
    assert all(p.requires_grad for p in folded.parameters())


def test_crops_stay_inside_and_are_mirrored_only_if_asked():
    places = random_places(500, 0.5, seeded(), flip=True)
    sides, middle = torch.stack([places[:, 0, 0].abs(), places[:, 1, 1]], dim=1), places[:, :, 2]
    assert (middle.abs() + sides).max() <= 1 + 1e-6
    assert 0.45 < float((places[:, 0, 0] < 0).float().mean()) < 0.55
    assert float(sides.prod(dim=1).min()) > 0.45
    assert float(sides.prod(dim=1).min()) < 0.6
    assert (random_places(50, 0.5, seeded(), flip=False)[:, 0, 0] > 0).all()
    assert torch.equal(random_places(3, 1.0, seeded(), flip=False), whole(3))


def test_learning_rate_rises_and_falls():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 0.01


def test_classifier_learns_what_the_pictures_show(tmp_path):
    record = fit(tmp_path / "cell", study())
    assert record["accuracy"] > 0.9
    assert record["n_train"] == 24
    assert float(history(tmp_path / "cell")[-1]["loss"]) < float(history(tmp_path / "cell")[0]["loss"])
    assert sorted(f.name for f in (tmp_path / "cell").iterdir()) == ["history.csv", "predictions.csv", "scores.json"]


def test_slca_learns_what_only_the_segmenter_saw(tmp_path):
    grey = study(coloured=False)
    attended = fit(tmp_path / "slca", grey, Slca, epochs=40, head_rate=3e-2)
    assert attended["accuracy"] > 0.6
    assert fit(tmp_path / "plain", grey, epochs=40, head_rate=3e-2)["accuracy"] < 0.5


def test_test_pictures_change_no_training(tmp_path):
    data = study()
    other = dict(data.arrays) | {"picture": data.arrays["picture"].copy()}
    of_test = np.array([row.split == Split.TEST for row in data.rows])
    other["picture"][of_test] = 0
    fit(tmp_path / "a", data)
    fit(tmp_path / "b", replace(data, arrays=other))
    assert history(tmp_path / "a") == history(tmp_path / "b")
    a, b = ((tmp_path / name / "predictions.csv").read_text() for name in "ab")
    assert a != b


def test_test_row_in_the_subset_is_refused(tmp_path, monkeypatch):
    data = study()
    everything = np.arange(len(data.rows))
    monkeypatch.setattr("stages.finetune.stage.train_indices", lambda *_: everything)
    with pytest.raises(ValueError, match="fit rows"):
        fit(tmp_path / "cell", data)
    assert splits.test_indices(data).size


def test_best_epoch_is_kept_and_patience_ends_the_training(tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    states: list[torch.Tensor] = []

    def held_out(self: training.Trainer, *_: Any) -> float:
        states.append(self._model.head.weight.detach().clone())
        return next(losses)

    seen: list[torch.Tensor] = []
    real = training.Trainer.probabilities

    def probabilities(self: training.Trainer, shown: training.Shown) -> Any:
        seen.append(self._model.head.weight.detach().clone())
        return real(self, shown)

    monkeypatch.setattr(training.Trainer, "_held_out", held_out)
    monkeypatch.setattr(training.Trainer, "probabilities", probabilities)
    record = fit(tmp_path / "cell", study(), patience=0.375)
    assert (record["epoch"], record["epochs"]) == (2, 5)
    assert torch.equal(seen[0], states[1])
    assert not torch.equal(seen[0], states[-1])


def test_subset_too_small_to_hold_any_out_is_trained_to_the_end(tmp_path):
    folder = tmp_path / "cell"
    folder.mkdir()
    settings = FinetuneSettings(**QUICK | {"epochs": 2, "min_steps": 5})
    record = Finetune(settings, context()).fit(Cell("finetune", 0.0, 0, 1), study(), folder)
    assert record["epochs"] == 5  # one step an epoch
    assert "held_out_loss" not in record
    assert {line["held_out_loss"] for line in history(folder)} == {""}


def test_images_a_few_at_a_time_give_the_same_steps(tmp_path, monkeypatch):
    fit(tmp_path / "few", study(), epochs=2)
    monkeypatch.setattr(training, "CPU_BATCH", 100)
    fit(tmp_path / "all", study(), epochs=2)
    few, together = ([float(line["loss"]) for line in history(tmp_path / name)] for name in ("few", "all"))
    np.testing.assert_allclose(few, together, rtol=1e-3)


def test_features_are_standardised_by_the_training_subset_alone():
    features = torch.randn(6, 3, 2, 2, generator=seeded()) * 5 + 2
    depth = Depth.of(features)
    standard = (features - depth.mean.view(1, 3, 1, 1)) / depth.std.view(1, 3, 1, 1)
    assert standard.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(standard.std(dim=(0, 2, 3), correction=0), torch.ones(3))
    assert torch.isfinite(Depth.of(torch.zeros(2, 3, 1, 1)).std).all()


def test_transformer_takes_its_own_side_alone():
    assert side_px("lite0", 96) == 96
    assert side_px("swinv2-t", None) == 256
    with pytest.raises(WeightsError, match=r"swin-t sees squares of 224 px, not 128.*finetune\.image_px"):
        side_px("swin-t", 128)


def test_fingerprint_knows_backbone_view_and_attention():
    plain = Finetune(FinetuneSettings(), context()).identity()
    assert plain.weights == Finetune(FinetuneSettings(view="masked"), context()).identity().weights
    others = [
        Finetune(FinetuneSettings(view="masked"), context()),
        Finetune(FinetuneSettings(model="resnet50-untrained"), context()),
        Slca(SlcaSettings(), context()),
        Slca(SlcaSettings(grid=4), context()),
    ]
    assert len({plain.fingerprint, *(stage.identity().fingerprint for stage in others)}) == 5
