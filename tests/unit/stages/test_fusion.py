"""F(T, I), its loss, and the fusion stage."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from manifests.errors import ConfigError, StoreError, UnitError
from manifests.types import Cell, Split, Status
from stages import splits
from stages.focus import FocusWeights, attention, focus, text_span
from stages.fusion.loss import contrastive_loss
from stages.fusion.model import FocusModel, one_thread, train
from stages.fusion.settings import FusionSettings
from stages.fusion.stage import Fusion
from tests.unit.stages.small_study import CLASSES, FEATURES, context, image_rows, study_data, write_bank

COUNTS = {"benign": (9, 4), "malignant": (8, 4), "normal": (7, 4)}
QUICK = FusionSettings(epochs=15)
CELL = Cell("medfocus", 0.5, 1)


def fit(folder: Path, data, settings: FusionSettings = QUICK, cell: Cell = CELL):
    folder.mkdir()
    return Fusion(settings, context()).fit(cell, data, folder)


def bank(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


def trained(labels: np.ndarray, **changes) -> FocusWeights:
    images = np.random.default_rng(1).normal(size=(len(labels), FEATURES)).astype(np.float32)
    return train(images, bank(), labels, QUICK.model_copy(update=changes), seed=0)[0]


def test_m_starts_as_the_layer_norm_of_the_image():
    weights = FocusModel(bank(), 100.0, torch.Generator().manual_seed(0)).weights("masked")
    images = bank(5, seed=3)
    unit = torch.from_numpy(images / np.linalg.norm(images, axis=1, keepdims=True)).double()
    expected = F.layer_norm(unit, (FEATURES,))
    np.testing.assert_allclose(focus(weights, bank(), images), expected, atol=1e-6)


def test_m_is_the_layer_norm_of_image_plus_w_of_attended_texts():
    weights, images = trained(np.arange(12) % 3), bank(4, seed=5)
    t = bank() / np.linalg.norm(bank(), axis=1, keepdims=True)
    i = images / np.linalg.norm(images, axis=1, keepdims=True)
    a = torch.softmax(torch.from_numpy(100 * i @ t.T), dim=1).numpy()
    summed = torch.from_numpy(i + (a @ t) @ weights.w().T)
    norm = [torch.from_numpy(part) for part in (weights.norm_weight, weights.norm_bias)]
    expected = F.layer_norm(summed, (FEATURES,), *norm)
    assert np.abs(weights.w()).max() > 1e-3
    np.testing.assert_allclose(focus(weights, bank(), images), expected, atol=1e-4)


def test_training_and_stored_weights_give_the_same_m():
    model = FocusModel(bank(), 100.0, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.mixing, generator=torch.Generator().manual_seed(1))
    images = bank(6, seed=2)
    unit = torch.from_numpy(images / np.linalg.norm(images, axis=1, keepdims=True))
    m = model(unit, model.mixtures(images)).detach().numpy()
    np.testing.assert_allclose(m, focus(model.weights("masked"), bank(), images), atol=1e-5)


def test_training_in_the_span_is_gradient_descent_on_w():
    images, labels = torch.from_numpy(bank(6, seed=2)), torch.arange(6) % 3
    model = FocusModel(bank(), 1.0, torch.Generator().manual_seed(0))
    m = model(images, model.mixtures(images.numpy()))
    F.cross_entropy(model.head(m), labels).backward()
    w = torch.zeros(FEATURES, FEATURES, requires_grad=True)
    mixed = model.mixtures(images.numpy()) @ model.span
    summed = F.layer_norm(images + mixed @ w.T, (FEATURES,))
    F.cross_entropy(model.head(summed), labels).backward()
    np.testing.assert_allclose(model.mixing.grad @ model.span, w.grad, atol=1e-6)


def test_attention_looks_at_the_whole_bank():
    shares = attention(bank(5, seed=1), bank(), 2.0)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares > 0).all()


def test_span_of_repeated_and_dependent_texts_is_orthonormal():
    t = bank()
    span = text_span(np.stack([t[0], t[0], t[1], t[0] + t[1], t[2]]))
    assert span.shape == (3, FEATURES)
    np.testing.assert_allclose(span @ span.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(t @ span.T @ span, t, atol=1e-6)


def test_contrastive_loss_of_a_hand_made_batch():
    texts = torch.eye(3)
    loss = contrastive_loss(torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]]), texts, torch.tensor([0, 0, 1]), 1.0)
    e = np.e
    image_to_text = -np.log(e / (e + 2))
    first, second = -np.log(e / (2 * e + 1)), -np.log(e / (e + 2))
    assert loss.item() == pytest.approx((image_to_text + (first + second) / 2) / 2, abs=1e-6)


def test_one_image_a_class_gives_clips_own_loss():
    generator = torch.Generator().manual_seed(3)
    images, texts = (F.normalize(torch.randn((4, 8), generator=generator), dim=1) for _ in range(2))
    logits, diagonal = 100 * images @ texts.T, torch.arange(4)
    clip = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, diagonal, 100.0), clip)


def test_images_of_one_class_are_no_negatives_of_each_other():
    m, texts = torch.eye(3)[[0, 0, 0, 0]], torch.eye(3)
    loss = contrastive_loss(m, texts, torch.zeros(4, dtype=torch.int64), 100.0)
    assert loss.item() == pytest.approx(np.log(4) / 2, abs=1e-6)


def test_logits_do_not_depend_on_the_labels_of_test_rows(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    turned = [replace(r, label=CLASSES[CLASSES.index(r.label) - 1]) if r.split == Split.TEST else r for r in data.rows]
    fit(tmp_path / "a", data)
    fit(tmp_path / "b", replace(data, rows=tuple(turned)))
    assert (tmp_path / "a" / "logits.npy").read_bytes() == (tmp_path / "b" / "logits.npy").read_bytes()


def test_test_rows_do_not_influence_training(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    test = np.flatnonzero([row.split == Split.TEST for row in data.rows])
    order = dict(zip(test.tolist(), test[::-1].tolist(), strict=True))
    rows = tuple(replace(r, label=data.rows[order.get(i, i)].label) for i, r in enumerate(data.rows))
    vectors = data.arrays["image"].copy()
    vectors[test] = np.random.default_rng(0).permutation(vectors[test])
    fit(tmp_path / "a", data)
    fit(tmp_path / "b", replace(data, rows=rows, arrays={"image": vectors}))
    for name in ("weights.safetensors", "history.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_training_labels_do_influence_training():
    assert not np.array_equal(trained(np.arange(12) % 3).mixing, trained((np.arange(12) + 1) % 3).mixing)


def test_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    first, state = trained(np.arange(12) % 3), torch.random.get_rng_state()
    torch.manual_seed(2)
    second = trained(np.arange(12) % 3)
    np.testing.assert_array_equal(first.head_weight, second.head_weight)
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_threads_are_given_back_after_training():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_loss_falls_and_the_head_learns(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    metrics = fit(tmp_path / "out", data, FusionSettings(epochs=100, learning_rate=1e-2), Cell("medfocus", 1.0, 0))
    with (tmp_path / "out" / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert len(history) == 100
    assert float(history[-1]["loss"]) < 0.7 * float(history[0]["loss"])
    assert metrics["loss"] == float(history[-1]["loss"])
    assert metrics["train_accuracy"] > 0.9


def test_loss_weight_one_leaves_the_head_untrained_but_for_decay():
    start = FocusModel(bank(), 100.0, torch.Generator().manual_seed(0)).weights("masked")
    weights = trained(np.arange(12) % 3, contrastive_weight=1.0, weight_decay=0.0)
    np.testing.assert_array_equal(weights.head_weight, start.head_weight)
    assert np.abs(weights.mixing).max() > 0


def test_logits_of_unusable_rows_are_nan(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    data.status[3] = Status.FAILED
    data.arrays["image"][3] = np.nan
    fit(tmp_path / "out", data)
    logits = np.load(tmp_path / "out" / "logits.npy")
    assert (logits.shape, logits.dtype) == ((len(data.rows), 3), np.float32)
    assert np.flatnonzero(np.isnan(logits).any(axis=1)).tolist() == [3]


def test_class_missing_in_training_and_single_class_are_trained(tmp_path):
    for name, counts in {"two": {"benign": (5, 1), "normal": (4, 1)}, "one": {"benign": (5, 1)}}.items():
        (tmp_path / name).mkdir()
        data = study_data(image_rows(counts), folder=tmp_path / name)
        metrics = fit(tmp_path / name / "out", data)
        assert all(np.isfinite(value) for value in metrics.values())


def test_weights_survive_saving(tmp_path):
    weights = trained(np.arange(12) % 3)
    weights.save(tmp_path / "weights.safetensors")
    loaded = FocusWeights.load(tmp_path / "weights.safetensors")
    assert loaded.view == "masked"
    np.testing.assert_array_equal(focus(weights, bank(), bank(4)), focus(loaded, bank(), bank(4)))


def test_weights_that_do_not_go_together_are_refused(tmp_path):
    weights = trained(np.arange(12) % 3)
    replace(weights, norm_bias=weights.norm_bias[:-1]).save(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="norm_bias"):
        FocusWeights.load(tmp_path / "weights.safetensors")


def test_loss_that_explodes_names_the_learning_rate():
    with pytest.raises(ConfigError, match="learning_rate"):
        trained(np.arange(12) % 3, learning_rate=1e38)


def test_view_that_was_not_embedded_is_refused(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    with pytest.raises(ConfigError, match="no view 'roi', only original, masked"):
        fit(tmp_path / "out", data, FusionSettings(view="roi"))


def test_texts_of_another_model_are_refused(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    other = write_bank(tmp_path / "other", np.eye(3, FEATURES), {"name": "small", "weights": {"file": "1" * 64}})
    with pytest.raises(StoreError, match="weights"):
        fit(tmp_path / "out", replace(data, artifacts={"texts": other}))


def test_bank_without_a_text_for_each_class_is_refused(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    other = write_bank(tmp_path / "other", np.eye(2, FEATURES))
    with pytest.raises(StoreError, match=r"\(2, 12\), expected \(3, 12\)"):
        fit(tmp_path / "out", replace(data, artifacts={"texts": other}))


def test_vector_that_is_not_finite_is_refused(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    data.arrays["image"][0, 1, 0] = np.inf
    with pytest.raises(StoreError, match=data.rows[0].image_id):
        fit(tmp_path / "out", data)


def test_every_fit_checks_its_rows(tmp_path, monkeypatch):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    monkeypatch.setattr("stages.fusion.stage.train_indices", lambda data, *_: splits.test_indices(data))
    with pytest.raises(ValueError, match="got test"):
        fit(tmp_path / "out", data)


def test_no_training_row_is_refused(tmp_path):
    data = study_data(image_rows({"benign": (0, 3)}), folder=tmp_path)
    with pytest.raises(UnitError, match="left to train on"):
        fit(tmp_path / "out", data)


def test_identity_follows_settings_classes_and_inputs():
    base = Fusion(QUICK, context()).identity()
    others = [
        Fusion(FusionSettings(epochs=16), context()),
        Fusion(QUICK, context(CLASSES[::-1])),
        Fusion(QUICK, replace(context(), upstream={"embeddings": "d" * 64, "texts": "b" * 64})),
    ]
    assert len({base.fingerprint, *(o.identity().fingerprint for o in others)}) == 4
    assert [c.unit for c in Fusion(QUICK, context()).cells()] == [
        f"medfocus-{f}-{s}" for f in (50, 100) for s in (0, 1)
    ]
