"""Logistic regression, the choice of C, and the probes stage."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from manifests.errors import ConfigError, RefusedError
from manifests.types import Cell, Split, Status
from stages import splits
from stages.fusion.settings import FusionSettings
from stages.fusion.stage import Fusion
from stages.probes.linear import LinearProbe, frequencies, prepare
from stages.probes.logistic import FoldLoss, fit, rotate
from stages.probes.settings import ProbesSettings
from stages.probes.stage import Probes
from stages.probes.strength import choose_c, grid, search
from stages.splits import inner_folds
from tests.unit.stages.small_study import CLASSES, FEATURES, context, image_rows, study_data

COUNTS = {"benign": (9, 5), "malignant": (8, 5), "normal": (7, 5)}
FIXED = ProbesSettings(C=10.0)


def problem(n: int, width: int, classes: int, scale: float = 1.0):
    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    centres = random.normal(size=(classes, width))
    return scale * (3 + centres[labels] + random.normal(size=(n, width))), labels


def run(folder: Path, data, method: str = "masked", settings: ProbesSettings = FIXED):
    folder.mkdir(exist_ok=True)
    return Probes(settings, context()).fit(Cell(method, 1.0, 0), data, folder)


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize(("n", "width"), [(30, 200), (200, 20)])
def test_rotated_fit_equals_the_direct_fit(n, width, classes, c):
    x, labels = problem(n, width, classes)
    x = prepare(x, normalise=True)
    fitted = fit(rotate(x, labels), c, classes, 1000, normalise=True)
    direct = LogisticRegression(C=c, solver="newton-cg", tol=1e-10, max_iter=1000).fit(x, labels)
    new = problem(50, width, classes, scale=2.0)[0]
    expected = direct.predict_proba(prepare(new, normalise=True))
    np.testing.assert_allclose(fitted.probe.probabilities(new), expected, atol=1e-6)
    assert fitted.converged


def test_class_never_seen_gets_probability_zero():
    x, labels = problem(30, 10, 2)
    probabilities = fit(rotate(x, 2 * labels), 1.0, 4, 1000, normalise=False).probe.probabilities(x)
    assert probabilities[:, [1, 3]].max() == 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (probabilities.argmax(axis=1) == 2 * labels).mean() > 0.9


def test_one_class_is_predicted_for_certain():
    x, _ = problem(5, 10, 1)
    fitted = fit(rotate(x, np.full(5, 2)), 1.0, 3, 1000, normalise=True)
    np.testing.assert_array_equal(fitted.probe.probabilities(x), np.tile([0.0, 0.0, 1.0], (5, 1)))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("normalise", [True, False])
def test_any_scale_and_collinear_features_are_fitted(scale, normalise):
    x, labels = problem(40, 60, 3, scale)
    x[:, 1] = x[:, 0]
    x[:, 2] = scale
    strength = 10.0 if normalise else 10.0 / scale**2
    fitted = fit(rotate(prepare(x, normalise=normalise), labels), strength, 3, 1000, normalise=normalise)
    assert fitted.converged
    assert (fitted.probe.probabilities(x).argmax(axis=1) == labels).mean() > 0.9


def test_equal_images_give_class_frequencies():
    fitted = fit(rotate(np.ones((4, 6)), np.array([0, 0, 0, 1])), 1.0, 2, 1000, normalise=True)
    np.testing.assert_allclose(fitted.probe.probabilities(np.ones((1, 6))), [[0.75, 0.25]], atol=1e-6)


def test_zero_vector_is_left_alone():
    np.testing.assert_array_equal(prepare(np.zeros((1, 3)), normalise=True), np.zeros((1, 3)))


def test_unfinished_fit_is_said_to_be_unfinished():
    x, labels = problem(40, 60, 3)
    fitted = fit(rotate(x, labels), 100.0, 3, 1, normalise=False)
    assert not fitted.converged
    assert fitted.gradient_norm > 1e-6


def test_reported_gradient_is_the_slope_of_the_objective():
    x, labels = problem(40, 5, 2)
    fitted = fit(rotate(x, labels), 0.1, 2, 1, normalise=False)
    w, b = 2 * fitted.probe.coef[1], 2 * fitted.probe.intercept[1]
    z, y = x - x.mean(axis=0), 2 * labels - 1

    def objective(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -y * (z @ w + b)).mean() + w @ w / (2 * 0.1 * 40))

    slopes = [(objective(w + step) - objective(w - step)) / 2e-6 for step in 1e-6 * np.eye(5)]
    length = np.sqrt((z**2).sum(axis=1).mean())
    slope = (1 / (1 + np.exp(-(z @ w + b))) - labels).mean()
    expected = np.sqrt(2) * np.hypot(np.linalg.norm(slopes) / length, slope)  # the fit holds w / sqrt(2)
    assert fitted.gradient_norm == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # of the reference, at its last digit
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("n", "width"), [(60, 200), (300, 30)])
def test_folds_fitted_together_equal_each_fitted_alone(n, width, classes):
    x, labels = problem(n, width, classes)
    rotated = rotate(prepare(x, normalise=True), labels)
    folds = inner_folds(labels, [str(i) for i in range(n)], 5, 0)
    assert folds is not None
    together = FoldLoss(rotated, folds, 1000)
    strengths = (1e-4, 1.0, 1e5, 1e2, 1e-2)
    found_losses = together(strengths[:1])  # the others begin where it ended, two of them at once
    found_losses += [loss for pair in (strengths[1:3], strengths[3:]) for loss in together(pair)]
    for c, loss in zip(strengths, found_losses, strict=True):
        losses = []
        for fold, (seen, held) in enumerate(folds):
            alone = LogisticRegression(C=c * rotated.scale**2, solver="newton-cg", tol=1e-12, max_iter=5000)
            logs = alone.fit(rotated.z[seen], labels[seen]).predict_log_proba(rotated.z[held])
            expected = np.exp(logs[np.arange(len(held)), labels[held]])
            found = np.exp(together.known[c].log_probabilities[fold, held])
            np.testing.assert_allclose(found, expected, atol=1e-4)
            losses.append(-np.log(expected))
        assert loss == pytest.approx(np.concatenate(losses).mean(), abs=1e-5)


def test_columns_are_orthogonal_and_lengths_and_angles_are_kept():
    for n, width in ((20, 50), (50, 20)):
        x, labels = problem(n, width, 2)
        rotated = rotate(x, labels)
        gram = rotated.z.T @ rotated.z
        np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-9)
        centred = x - x.mean(axis=0)
        np.testing.assert_allclose(rotated.z @ rotated.z.T * rotated.scale**2, centred @ centred.T, atol=1e-9)
        np.testing.assert_allclose(rotated.axes @ rotated.axes.T, np.eye(len(rotated.axes)), atol=1e-12)


def test_frequencies_ignore_the_image():
    probe = frequencies(np.array([3, 0, 1]), 0)
    np.testing.assert_allclose(probe.probabilities(np.zeros((2, 0))), [[0.75, 0.0, 0.25]] * 2)


def test_probe_survives_saving(tmp_path):
    x, labels = problem(30, 10, 3)
    probe = fit(rotate(x, labels), 1.0, 4, 1000, normalise=True).probe
    probe.save(tmp_path / "coef.safetensors")
    np.testing.assert_array_equal(
        LinearProbe.load(tmp_path / "coef.safetensors").probabilities(x), probe.probabilities(x)
    )


@pytest.mark.parametrize("best", [0, 5, 16, 47, 53, 90, 96])
def test_search_finds_the_lowest_point_of_a_valley(best):
    asked = []

    def losses(strengths):
        asked.extend(strengths)
        return [abs(np.log10(c) - np.log10(grid()[best])) for c in strengths]

    assert search(losses)[0] == grid()[best]
    assert len(asked) == len(set(asked)) <= 16


def test_no_larger_c_is_tried_once_the_loss_has_clearly_risen():
    asked = []

    def losses(strengths):
        asked.extend(strengths)
        return [1 + abs(np.log10(c) - 1) for c in strengths]

    assert search(losses)[0] == pytest.approx(10)
    assert max(asked) == pytest.approx(1e2)  # twice the least there, so 1e3 is not asked


def test_equal_losses_choose_the_smaller_c():
    assert search(lambda strengths: [0.0 if c >= 1 else 1.0 for c in strengths]) == (1.0, 0.0)
    assert search(lambda strengths: [0.0 for _ in strengths])[0] == 1e-6


def test_fold_search_separates_signal_from_noise():
    x, labels = problem(60, 30, 2)
    noise = np.random.default_rng(1).permutation(labels)
    groups = [str(i) for i in range(60)]
    on_signal, on_noise = (choose_c(rotate(x, y), groups, ProbesSettings(), 0) for y in (labels, noise))
    assert on_signal[0] > 10 * on_noise[0]
    assert on_signal[1] is not None
    assert on_noise[1] is not None
    assert on_signal[1] < 0.5 * on_noise[1]


def test_c_does_not_depend_on_the_order_of_rows():
    x, labels = problem(40, 30, 2)
    groups = [str(i) for i in range(40)]
    order = np.random.default_rng(2).permutation(40)
    turned = choose_c(rotate(x[order], labels[order]), [groups[i] for i in order], ProbesSettings(), 0)
    assert turned[0] == choose_c(rotate(x, labels), groups, ProbesSettings(), 0)[0]


@pytest.mark.parametrize(("normalise", "c"), [(False, 0.316), (True, 31.6)])
def test_class_with_one_patient_falls_back_to_the_published_c(normalise, c):
    x, labels = problem(6, 5, 2)
    settings = ProbesSettings(normalise=normalise)
    chosen, loss = choose_c(rotate(x, labels), ["a", "b", "c", "b", "d", "b"], settings, 0)
    assert chosen == pytest.approx(c)
    assert loss is None


def test_fixed_c_is_taken_as_it_is(tmp_path):
    assert run(tmp_path / "out", study_data(image_rows(COUNTS)))["C"] == 10.0


@pytest.mark.parametrize("method", ["masked", "original"])
def test_probe_beats_the_constant_class(tmp_path, method):
    data = study_data(image_rows(COUNTS))
    constant = run(tmp_path / "constant", data, "constant")
    assert run(tmp_path / "probe", data, method, ProbesSettings())["accuracy"] > constant["accuracy"] + 0.3
    assert constant["accuracy"] == pytest.approx(1 / 3)


def with_fusion(folder: Path):
    """Data with a bank of texts and a trained fusion cell."""
    data = study_data(image_rows(COUNTS), folder=folder)
    (folder / "fusion").mkdir()
    settings = FusionSettings(epochs=40, learning_rate=1e-2)
    Fusion(settings, context()).fit(Cell("medfocus", 1.0, 0), data, folder / "fusion")
    return replace(data, artifacts={**data.artifacts, "fusion": folder / "fusion"})


def test_medfocus_reads_the_fusion_of_its_subset(tmp_path):
    for method in ("medfocus", "medfocus-hadamard@roi"):
        needs = Probes(FIXED, context()).needs(Cell(method, 0.5, 1))
        assert needs == {"fusion": Cell(method, 0.5, 1), "texts": Cell("bank", 1.0, 0)}
    data = with_fusion(tmp_path)
    medfocus, masked = run(tmp_path / "a", data, "medfocus"), run(tmp_path / "b", data, "masked")
    assert medfocus["accuracy"] > 0.6
    assert predictions(tmp_path / "a") != predictions(tmp_path / "b")
    assert medfocus["n_test"] == masked["n_test"]


@pytest.mark.parametrize("method", ["medfocus-none@original", "medfocus-none"])
def test_fusion_that_changes_nothing_scores_as_its_view(tmp_path, method):
    data = study_data(image_rows(COUNTS), folder=tmp_path)
    (tmp_path / "fusion").mkdir()
    Fusion(FusionSettings(epochs=1), context()).fit(Cell(method, 1.0, 0), data, tmp_path / "fusion")
    fused = replace(data, artifacts={**data.artifacts, "fusion": tmp_path / "fusion"})
    run(tmp_path / "fused", fused, method)
    run(tmp_path / "plain", data, "original" if "@" in method else "masked")
    for ours, theirs in zip(predictions(tmp_path / "fused"), predictions(tmp_path / "plain"), strict=True):
        assert ours["predicted"] == theirs["predicted"]
        assert float(ours["p_benign"]) == pytest.approx(float(theirs["p_benign"]), abs=1e-6)


def test_tokens_are_read_only_where_they_are_fused():
    stage = Probes(FIXED, context())
    assert "tokens" in stage.reads(Cell("medfocus-logits@tokens", 1.0, 0))
    assert "tokens" not in stage.reads(Cell("medfocus", 1.0, 0))


def test_m_does_not_change_when_labels_are_permuted(tmp_path):
    data, stage = with_fusion(tmp_path), Probes(FIXED, context())
    turned = replace(data, rows=tuple(replace(r, label=CLASSES[CLASSES.index(r.label) - 1]) for r in data.rows))
    every = np.arange(len(data.rows))
    m, other = (stage.features("medfocus", d, every) for d in (data, turned))
    np.testing.assert_array_equal(m, other)
    assert not np.allclose(m, stage.features("masked", data, every))


def test_joined_views_stand_side_by_side(tmp_path):
    data = study_data(image_rows(dict.fromkeys(CLASSES, (6, 4))))
    stage, rows = Probes(FIXED, context()), np.array([3, 0])
    joined = stage.features("original+masked", data, rows)
    np.testing.assert_array_equal(joined[:, :FEATURES], data.arrays["image"][rows, 0])
    np.testing.assert_array_equal(joined[:, FEATURES:], data.arrays["image"][rows, 1])
    assert run(tmp_path, data, "original+masked")["accuracy"] > 1 / 3


def test_shape_is_read_as_it_is(tmp_path):
    data = study_data(image_rows(dict.fromkeys(CLASSES, (6, 4))))
    every = np.arange(len(data.rows))
    features = Probes(FIXED, context()).features("shape", data, every)
    np.testing.assert_array_equal(features, data.arrays["shape"])
    run(tmp_path, data, "shape")
    assert not LinearProbe.load(tmp_path / "coef.safetensors").normalise


def test_other_methods_need_no_cell():
    stage = Probes(FIXED, context())
    assert [dict(stage.needs(Cell(m, 1.0, 0))) for m in ("masked", "original", "constant")] == [{}] * 3


def test_predictions_hold_test_rows_only(tmp_path):
    data = study_data(image_rows(COUNTS))
    data.status[9] = Status.FAILED  # the first test row
    metrics = run(tmp_path / "out", data)
    lines = predictions(tmp_path / "out")
    test = {row.image_id: row.label for row in data.rows[:9] + data.rows[10:] if row.split == Split.TEST}
    assert {line["image_id"]: line["label"] for line in lines} == test
    assert sum(line["label"] == line["predicted"] for line in lines) == metrics["correct"]
    for line in lines:
        shares = {name: float(line[f"p_{name}"]) for name in CLASSES}
        assert max(shares, key=shares.__getitem__) == line["predicted"]
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["n_test_failed"] == 1


def test_class_name_is_no_formula_in_a_spreadsheet(tmp_path):
    data = study_data(image_rows({"=1+1": (3, 1), "normal": (3, 1)}))
    Probes(FIXED, context(("=1+1", "normal"))).fit(Cell("constant", 1.0, 0), data, tmp_path)
    assert [line["label"] for line in predictions(tmp_path)] == ["'=1+1", "normal"]


def test_leaked_test_images_are_flagged(tmp_path):
    rows = image_rows(COUNTS)
    leaked = next(i for i, row in enumerate(rows) if row.split == Split.TEST)
    rows[leaked] = replace(rows[leaked], group_id=rows[0].group_id)
    metrics = run(tmp_path / "out", study_data(rows))
    assert metrics["n_test_unflagged"] == metrics["n_test"] - 1
    marked = [line["image_id"] for line in predictions(tmp_path / "out") if line["flagged"] == "1"]
    assert marked == [rows[leaked].image_id]


def test_test_rows_do_not_influence_the_fit(tmp_path):
    data = study_data(image_rows(COUNTS))
    test = splits.test_indices(data)
    vectors = data.arrays["image"].copy()
    vectors[test] = np.random.default_rng(0).permutation(vectors[test])
    labels = {**dict(zip(test.tolist(), [data.rows[i].label for i in test[::-1]], strict=True))}
    rows = tuple(replace(row, label=labels.get(i, row.label)) for i, row in enumerate(data.rows))
    one = run(tmp_path / "a", data, settings=ProbesSettings())
    two = run(tmp_path / "b", replace(data, rows=rows, arrays={"image": vectors}), settings=ProbesSettings())
    coefs = [(tmp_path / name / "coef.safetensors").read_bytes() for name in "ab"]
    assert coefs[0] == coefs[1]
    assert one["C"] == two["C"]
    assert one["accuracy"] != two["accuracy"]


def test_every_fit_checks_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.probes.stage.train_indices", lambda data, *_: splits.test_indices(data))
    with pytest.raises(ValueError, match="got test"):
        run(tmp_path / "out", study_data(image_rows(COUNTS)))


def test_data_set_without_test_split_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="no usable test image"):
        run(tmp_path / "out", study_data(image_rows({"benign": (3, 0), "normal": (3, 0)})))


def test_missing_view_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no view 'roi'"):
        run(tmp_path / "out", study_data(image_rows(COUNTS)), "original+roi")


@pytest.mark.parametrize("counts", [{"benign": (4, 2), "normal": (0, 2)}, {"benign": (4, 0), "normal": (4, 2)}])
def test_class_missing_on_one_side_is_scored(tmp_path, counts):
    metrics = run(tmp_path / "out", study_data(image_rows(counts)), settings=ProbesSettings())
    assert 0 <= metrics["accuracy"] <= 1
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["n_test"] == metrics["n_test"]


def test_unfinished_fit_is_recorded_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        metrics = run(tmp_path / "out", study_data(image_rows(COUNTS)), settings=ProbesSettings(C=1e6, max_iter=1))
    assert metrics["converged"] == 0
    assert "raise probes.max_iter" in caplog.text


def test_same_cell_gives_the_same_bytes(tmp_path):
    data = study_data(image_rows(COUNTS))
    for name in "ab":
        run(tmp_path / name, data, settings=ProbesSettings())
    for file in ("coef.safetensors", "predictions.csv", "scores.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_list_of_methods_is_outside_the_fingerprint():
    one, two = Probes(ProbesSettings(), context()), Probes(ProbesSettings(methods=("masked",)), context())
    assert one.identity().fingerprint == two.identity().fingerprint
    assert one.identity().fingerprint != Probes(FIXED, context()).identity().fingerprint
    assert (len(one.cells()), len(two.cells())) == (16, 4)


@pytest.mark.parametrize("c", [0, -1.0, float("inf"), float("nan"), "fold"])
def test_impossible_strength_is_refused(c):
    with pytest.raises(ValidationError, match="C"):
        ProbesSettings(C=c)
