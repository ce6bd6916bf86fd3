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
from stages.features import joined_texts, joined_views
from stages.focus import FocusWeights, attention, focus, head_logits, text_span
from stages.fusion import model as module
from stages.fusion.loss import contrastive_loss
from stages.fusion.model import LAMBDAS, Examples, FocusModel, Recipe, choose_lambda, train
from stages.fusion.settings import FusionSettings
from stages.fusion.stage import Fusion
from stages.methods import VARIANTS
from stages.threads import one_thread
from tests.unit.stages.small_study import CLASSES, FEATURES, context, image_rows, study_data, write_bank

COUNTS = {"benign": (9, 4), "malignant": (8, 4), "normal": (7, 4)}
QUICK = FusionSettings(epochs=15)
CELL = Cell("medfocus", 0.5, 1)


def fit(folder: Path, data, settings: FusionSettings = QUICK, cell: Cell = CELL):
    folder.mkdir()
    return Fusion(settings, context()).fit(cell, data, folder)


def bank(rows: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, FEATURES)).astype(np.float32)


def recipe(variant: str = "text-attn", **changes) -> Recipe:
    settings = QUICK.model_copy(update=changes)
    return Recipe(variant, "masked", settings.contrastive_weight, settings)


def trained(labels: np.ndarray, variant: str = "text-attn", **changes) -> FocusWeights:
    images = np.random.default_rng(1).normal(size=(len(labels), FEATURES)).astype(np.float32)
    return train(Examples(images, labels), bank(), recipe(variant, **changes), seed=0)[0]


def model(variant: str = "text-attn", temperature: float = 100.0, **changes) -> FocusModel:
    settings = FusionSettings(temperature=temperature, hidden=8, **changes)
    return FocusModel(bank(), variant, settings, torch.Generator().manual_seed(0))


def unit(images: np.ndarray) -> np.ndarray:
    return images / np.linalg.norm(images, axis=-1, keepdims=True)


def similarity(m: torch.Tensor, texts: torch.Tensor, temperature: float) -> torch.Tensor:
    return temperature * F.normalize(m, dim=1) @ texts.T


def test_m_starts_as_the_layer_norm_of_the_image():
    weights = model().weights("masked")
    images = bank(5, seed=3)
    expected = F.layer_norm(torch.from_numpy(unit(images)).double(), (FEATURES,))
    np.testing.assert_allclose(focus(weights, bank(), images), expected, atol=1e-6)


def test_m_is_the_layer_norm_of_image_plus_w_of_attended_texts():
    weights, images = trained(np.arange(12) % 3), bank(4, seed=5)
    t = bank() / np.linalg.norm(bank(), axis=1, keepdims=True)
    i = images / np.linalg.norm(images, axis=1, keepdims=True)
    a = torch.softmax(torch.from_numpy(100 * i @ t.T), dim=1).numpy()
    summed = torch.from_numpy(i + (a @ t) @ weights.w().T)
    norm = [torch.from_numpy(part) for part in (weights.tensors["norm_weight"], weights.tensors["norm_bias"])]
    expected = F.layer_norm(summed, (FEATURES,), *norm)
    assert np.abs(weights.w()).max() > 1e-3
    np.testing.assert_allclose(focus(weights, bank(), images), expected, atol=1e-4)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(6, FEATURES), (3, 4, FEATURES)])
def test_training_and_stored_weights_give_the_same_m_and_logits(variant, head, shape, tmp_path):
    fused = model(variant, head=head)
    if variant == "text-attn":
        torch.nn.init.normal_(fused.mixing, generator=torch.Generator().manual_seed(1))
    images = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    m = fused(torch.from_numpy(unit(images)), fused.mixtures(images))
    fused.weights("masked").save(tmp_path / "weights.safetensors")
    weights = FocusWeights.load(tmp_path / "weights.safetensors")
    found = focus(weights, bank(), images)
    assert found.shape == (shape[0], 3 if variant == "logits" else FEATURES)
    np.testing.assert_allclose(m.detach().numpy(), found, atol=1e-5)
    np.testing.assert_allclose(fused.head(m).detach().numpy(), head_logits(weights, found), atol=1e-3)


def test_variants_are_what_their_formulas_say():
    images = bank(4, seed=5)
    i, t = unit(images).astype(np.float64), unit(bank()).astype(np.float64)
    mixed = attention(images, bank(), 100.0) @ t
    for variant, expected in {"hadamard": i * mixed, "logits": i @ t.T, "none": i}.items():
        np.testing.assert_allclose(focus(model(variant).weights("v"), bank(), images), expected, atol=1e-6)
    weights = model("concat-mlp").weights("v")
    w = {name: torch.from_numpy(tensor).double() for name, tensor in weights.tensors.items()}
    both = torch.from_numpy(np.concatenate([i, mixed], axis=1))
    first = torch.cat([w["inner_weight"][:, :FEATURES], w["inner_weight"][:, FEATURES:] @ w["span"]], dim=1)
    hidden = F.gelu(both @ first.T + w["inner_bias"])
    expected = hidden @ w["outer_weight"].T + w["outer_bias"]
    np.testing.assert_allclose(focus(weights, bank(), images), expected, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_m_sees_no_label_but_through_its_weights(variant):
    """M of an image is the same whatever other images, and their labels, stand beside it."""
    weights, images = trained(np.arange(12) % 3, variant), bank(5, seed=8)
    together = focus(weights, bank(), images)
    np.testing.assert_allclose(together[::-1], focus(weights, bank(), images[::-1]), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(together[:1], focus(weights, bank(), images[:1]), rtol=1e-9, atol=1e-12)


def test_tokens_are_fused_one_by_one_and_averaged():
    weights, tokens = trained(np.arange(12) % 3), np.random.default_rng(4).normal(size=(2, 3, FEATURES))
    one_by_one = np.stack([focus(weights, bank(), image).mean(axis=0) for image in tokens])
    np.testing.assert_allclose(focus(weights, bank(), tokens), one_by_one, rtol=1e-12)


def test_cosine_head_begins_as_zero_shot():
    fused, images = model("none", head="cosine"), bank(5, seed=6)
    logits = fused.head(fused(torch.from_numpy(unit(images)), fused.mixtures(images)))
    np.testing.assert_allclose(logits.detach(), 100 * unit(images) @ unit(bank()).T, atol=1e-3)


def test_lambda_is_the_one_with_the_least_held_out_loss(monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(24) % 3
    images = (bank()[labels] + random.normal(size=(24, FEATURES))).astype(np.float32)
    examples = Examples(images, labels, [str(i) for i in range(24)])
    tried = []
    original = module._train

    def watched(examples, texts, recipe, seed):
        tried.append((recipe.contrastive_weight, len(examples.labels)))
        return original(examples, texts, recipe, seed)

    monkeypatch.setattr(module, "_train", watched)
    chosen = choose_lambda(examples, bank(), recipe(folds=4), 0)
    assert chosen in LAMBDAS
    assert tried == [(weight, 18) for weight in LAMBDAS for _ in range(4)]
    alone = Examples(images[:3], labels[:3], ["a", "b", "c"])
    assert choose_lambda(alone, bank(), recipe(contrastive_weight=0.3), 0) == 0.3


def test_lambda_by_folds_is_recorded(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    metrics = fit(tmp_path / "out", data, FusionSettings(epochs=3, contrastive_weight="folds"))
    assert metrics["contrastive_weight"] in LAMBDAS


def test_joined_views_meet_the_text_once_a_view(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    fit(tmp_path / "out", data, QUICK, Cell("medfocus-logits@original+masked", 1.0, 0))
    weights = FocusWeights.load(tmp_path / "out" / "weights.safetensors")
    assert weights.views == "original+masked"
    i = unit(data.arrays["image"].astype(np.float64))
    t = unit(np.load(data.artifacts["texts"] / "bank.npy").astype(np.float64))
    texts, images = joined_texts(data, 3, ("original", "masked")), joined_views(data, ("original", "masked"))
    np.testing.assert_allclose(focus(weights, texts, images), (i @ t.T).mean(axis=1), atol=1e-6)


def test_tokens_that_were_not_stored_are_asked_for(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"embeddings.tokens = true"):
        fit(tmp_path / "out", data, QUICK, Cell("medfocus@tokens", 1.0, 0))
    tokens = np.random.default_rng(0).normal(size=(len(data.rows), 4, FEATURES)).astype(np.float16)
    with_tokens = replace(data, arrays={**data.arrays, "tokens": tokens})
    metrics = fit(tmp_path / "with", with_tokens, QUICK, Cell("medfocus@tokens", 1.0, 0))
    assert np.isfinite(metrics["loss"])


def test_training_in_the_span_is_gradient_descent_on_w():
    images, labels = torch.from_numpy(bank(6, seed=2)), torch.arange(6) % 3
    fused = model(temperature=1.0)
    m = fused(images, fused.mixtures(images.numpy()))
    F.cross_entropy(fused.head(m), labels).backward()
    w = torch.zeros(FEATURES, FEATURES, requires_grad=True)
    mixed = fused.mixtures(images.numpy()) @ fused.span
    summed = F.layer_norm(images + mixed @ w.T, (FEATURES,))
    F.cross_entropy(fused.head(summed), labels).backward()
    np.testing.assert_allclose(fused.mixing.grad @ fused.span, w.grad, atol=1e-6)


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
    m = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    loss = contrastive_loss(similarity(m, texts, 1.0), torch.tensor([0, 0, 1]))
    e = np.e
    image_to_text = -np.log(e / (e + 2))
    first, second = -np.log(e / (2 * e + 1)), -np.log(e / (e + 2))
    assert loss.item() == pytest.approx((image_to_text + (first + second) / 2) / 2, abs=1e-6)


def test_one_image_a_class_gives_clips_own_loss():
    generator = torch.Generator().manual_seed(3)
    images, texts = (F.normalize(torch.randn((4, 8), generator=generator), dim=1) for _ in range(2))
    logits, diagonal = 100 * images @ texts.T, torch.arange(4)
    clip = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    torch.testing.assert_close(contrastive_loss(logits, diagonal), clip)


def test_images_of_one_class_are_no_negatives_of_each_other():
    m, texts = torch.eye(3)[[0, 0, 0, 0]], torch.eye(3)
    loss = contrastive_loss(similarity(m, texts, 100.0), torch.zeros(4, dtype=torch.int64))
    assert loss.item() == pytest.approx(np.log(4) / 2, abs=1e-6)


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
    assert not np.array_equal(
        trained(np.arange(12) % 3).tensors["mixing"], trained((np.arange(12) + 1) % 3).tensors["mixing"]
    )


def test_global_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    first, state = trained(np.arange(12) % 3), torch.random.get_rng_state()
    torch.manual_seed(2)
    second = trained(np.arange(12) % 3)
    np.testing.assert_array_equal(first.tensors["head_weight"], second.tensors["head_weight"])
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
    start = model().weights("masked")
    weights = trained(np.arange(12) % 3, contrastive_weight=1.0, weight_decay=0.0)
    np.testing.assert_array_equal(weights.tensors["head_weight"], start.tensors["head_weight"])
    assert np.abs(weights.tensors["mixing"]).max() > 0


def test_row_that_is_not_usable_is_not_trained_on(tmp_path):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    row = next(i for i, row in enumerate(data.rows) if row.split == Split.TRAIN)
    cell = Cell("medfocus", 1.0, 0)
    before = fit(tmp_path / "all", data, cell=cell)
    data.status[row] = Status.FAILED
    data.arrays["image"][row] = np.nan
    after = fit(tmp_path / "out", data, cell=cell)
    assert all(np.isfinite(value) for value in after.values())
    assert after["n_train"] == before["n_train"] - 1


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
    assert loaded.views == "masked"
    np.testing.assert_array_equal(focus(weights, bank(), bank(4)), focus(loaded, bank(), bank(4)))


def test_weights_that_do_not_go_together_are_refused(tmp_path):
    weights = trained(np.arange(12) % 3)
    replace(weights, tensors={**weights.tensors, "norm_bias": weights.tensors["norm_bias"][:-1]}).save(
        tmp_path / "weights.safetensors"
    )
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
