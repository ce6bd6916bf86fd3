"""Training subsets, test rows and inner folds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import InventoryError, RefusedError, UnitError
from manifests.types import Cell, Split, Status
from stages import splits
from stages.base import StageData
from tests.unit.stages.small_study import CLASSES, image_row, image_rows, study_data


def ids(data: StageData, indices: splits.Indices) -> set[str]:
    return {data.rows[i].image_id for i in indices.tolist()}


def subset(data: StageData, fraction: float, seed: int, shots: int = 0) -> splits.Indices:
    return splits.train_indices(data, Cell("any", fraction, seed, shots))


@pytest.mark.parametrize("seed", range(5))
def test_smaller_fractions_lie_inside_larger_ones(seed):
    data = study_data(image_rows({"benign": (37, 3), "malignant": (11, 3)}))
    chosen = [ids(data, subset(data, f, seed)) for f in (0.05, 0.1, 0.2, 0.5, 1.0)]
    assert all(small <= large for small, large in pairwise(chosen))
    assert len(chosen[0]) < len(chosen[-1]) == 48


@pytest.mark.parametrize(("fraction", "share"), [(0.1, 3), (0.1 + 0.2, 9), (1 / 3, 10), (0.01, 1), (0.11, 4)])
def test_each_class_gives_its_share_rounded_up(fraction, share):
    data = study_data(image_rows({"benign": (30, 1), "malignant": (30, 1)}))
    chosen = subset(data, fraction, 0)
    assert Counter(data.rows[i].label for i in chosen) == {"benign": share, "malignant": share}


def test_other_seeds_choose_other_images():
    data = study_data(image_rows({"benign": (40, 0)}))
    assert ids(data, subset(data, 0.2, 0)) != ids(data, subset(data, 0.2, 1))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.05, 0.1, 0.3, 0.5, 1.0]), st.integers(0, 3))
def test_new_drop_never_pushes_out_chosen_images(first, second, fraction, seed):
    rows = image_rows({"benign": (first, 0), "malignant": (3, 0)})
    late = [image_row(1000 + i, "benign") for i in range(second)]
    before, after = study_data(rows), study_data(rows + late, ["first"] * len(rows) + ["second"] * second)
    old = ids(before, subset(before, fraction, seed))
    new = ids(after, subset(after, fraction, seed))
    assert old == new - {row.image_id for row in late}
    assert new != old


def test_later_images_follow_their_patient():
    rows = [image_row(i, "benign", group_id=f"patient-{i}") for i in range(10)]
    late = [image_row(100 + i, "benign", group_id=f"patient-{i}") for i in range(10)]
    data = study_data(rows + late, ["first"] * 10 + ["second"] * 10)
    chosen = subset(data, 0.3, 0)
    patients = Counter(data.rows[i].group_id for i in chosen)
    assert list(patients.values()) == [2, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_shots_are_so_many_images_a_class_nested_and_of_different_patients(seed):
    patients = {"benign": 12, "malignant": 5}
    rows = [
        image_row(1000 * number + i, label, group_id=f"{label}-{i % patients[label]}")
        for number, label in enumerate(patients)
        for i in range(30)
    ]
    data = study_data(rows)
    chosen = {k: subset(data, 0.0, seed, k) for k in (1, 2, 4, 8, 16)}
    assert all(ids(data, a) < ids(data, b) for a, b in pairwise(chosen.values()))
    for k, found in chosen.items():
        assert Counter(data.rows[i].label for i in found) == {"benign": k, "malignant": k}
        for label, most in patients.items():
            assert len({data.rows[i].group_id for i in found if data.rows[i].label == label}) == min(k, most)


def test_shots_of_a_class_with_too_few_images_are_all_of_them():
    data = study_data(image_rows({"benign": (20, 0), "malignant": (3, 0)}))
    assert Counter(data.rows[i].label for i in subset(data, 0.0, 0, 8)) == {"benign": 8, "malignant": 3}


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4, 8, 16]), st.integers(0, 3))
def test_new_drop_never_pushes_out_chosen_shots(first, second, shots, seed):
    rows = [image_row(i, "benign", group_id=f"patient-{i % 4}") for i in range(first)]
    late = [image_row(1000 + i, "benign", group_id=f"patient-{i % 6}") for i in range(second)]
    before, after = study_data(rows), study_data(rows + late, ["first"] * first + ["second"] * second)
    old, new = ids(before, subset(before, 0.0, seed, shots)), ids(after, subset(after, 0.0, seed, shots))
    assert old <= new
    assert len(new) == min(shots, first + second)


def test_patient_with_two_classes_is_drawn_in_each():
    rows = [image_row(i, label, group_id="one") for i, label in enumerate(CLASSES)]
    assert len(subset(study_data(rows), 0.05, 0)) == 3


def test_order_of_files_does_not_matter():
    rows = image_rows({"benign": (20, 2), "malignant": (9, 2)})
    data, turned = study_data(rows), study_data(rows[::-1])
    assert ids(data, subset(data, 0.3, 1)) == ids(turned, subset(turned, 0.3, 1))


def test_failed_image_leaves_without_a_successor():
    data = study_data(image_rows({"benign": (20, 0)}))
    chosen = subset(data, 0.2, 0)
    data.status[chosen[0]] = Status.FAILED
    np.testing.assert_array_equal(subset(data, 0.2, 0), chosen[1:])


def test_fallback_is_used_and_missing_label_is_not():
    data = study_data([image_row(0, "benign"), image_row(1, ""), image_row(2, "benign")])
    data.status[0], data.status[2] = Status.FALLBACK, Status.ABSENT
    assert splits.usable(data).tolist() == [True, False, False]


def test_nothing_but_train_rows_is_chosen():
    rows = [image_row(i, "benign", split) for i, split in enumerate(Split)]
    assert subset(study_data(rows), 1.0, 0).tolist() == [0]


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.01, float("nan")])
def test_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        subset(study_data(image_rows({"benign": (2, 1)})), fraction, 0)


def test_no_training_image_is_refused():
    with pytest.raises(UnitError, match="None of 2 images"):
        subset(study_data(image_rows({"benign": (0, 2)})), 1.0, 0)


def test_no_test_image_is_refused_with_a_way_out():
    with pytest.raises(RefusedError, match=r"2 train.*test folder"):
        splits.test_indices(study_data(image_rows({"benign": (2, 0)})))


def test_failed_test_image_is_not_scored():
    data = study_data(image_rows({"benign": (1, 3)}))
    data.status[2] = Status.FAILED
    assert splits.test_indices(data).tolist() == [1, 3]


def test_fit_on_a_test_row_is_refused():
    data = study_data(image_rows({"benign": (2, 1)}))
    splits.check_fit_rows(data, np.array([0, 1]))
    with pytest.raises(ValueError, match=data.rows[2].image_id):
        splits.check_fit_rows(data, np.array([0, 2]))


def test_validation_rows_are_fitted_only_where_allowed():
    data = study_data([image_row(0, "benign", Split.VAL)])
    splits.check_fit_rows(data, np.array([0]), allow_val=True)
    with pytest.raises(ValueError, match="got val"):
        splits.check_fit_rows(data, np.array([0]))


def test_fit_without_rows_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        splits.check_fit_rows(study_data([]), np.array([], dtype=np.int64))


def test_label_outside_the_classes_is_named():
    data = study_data(image_rows({"benign": (1, 0), "cyst": (1, 0)}))
    with pytest.raises(InventoryError, match="'cyst'"):
        splits.class_indices(data, np.array([0, 1]), CLASSES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4), st.integers(2, 6), st.integers(0, 3))
def test_folds_keep_groups_together_and_classes_complete(sizes, wanted, seed):
    labels = np.repeat(np.arange(len(sizes)), [2 * s for s in sizes])
    groups = [f"{label}-{i // 2}" for label, size in enumerate(sizes) for i in range(2 * size)]
    folds = splits.inner_folds(labels, groups, wanted, seed)
    assert folds is not None
    assert len(folds) == min(wanted, *sizes)
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(len(labels)))
    for fit, held in folds:
        assert set(labels[fit]) == set(labels)
        assert not {groups[i] for i in fit} & {groups[i] for i in held}


def test_folds_do_not_depend_on_the_order_of_rows():
    labels, groups = np.array([0] * 8 + [1] * 8), [f"g{i}" for i in range(16)]
    folds = splits.inner_folds(labels, groups, 4, 0)
    turned = splits.inner_folds(labels[::-1].copy(), groups[::-1], 4, 0)
    assert folds is not None
    assert turned is not None
    for (_, held), (_, other) in zip(folds, turned, strict=True):
        assert {groups[i] for i in held} == {groups[::-1][i] for i in other}


def test_class_with_one_group_cannot_be_folded():
    assert splits.inner_folds(np.array([0, 0, 1, 1]), ["a", "b", "c", "c"], 5, 0) is None


def test_class_whose_patients_count_for_another_cannot_be_folded():
    labels, groups = np.array([0, 0, 1, 0, 0, 1]), ["a", "a", "a", "b", "b", "b"]
    assert splits.inner_folds(labels, groups, 2, 0) is None


def test_same_order_as_the_documented_hash():
    import hashlib

    data = study_data([replace(image_row(i, "benign"), group_id=f"patient-{i}") for i in range(20)])
    order = sorted(range(20), key=lambda i: hashlib.sha256(f"7:patient-{i}".encode()).hexdigest())
    assert set(subset(data, 0.25, 7).tolist()) == set(order[:5])
