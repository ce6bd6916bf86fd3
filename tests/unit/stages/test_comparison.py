"""Paired comparison of methods on the same test images."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from stages.baselines.settings import Baseline
from stages.report import comparison
from stages.report.comparison import compare, comparison_table
from stages.report.goal import against_baselines, distance, forms, is_baseline


def answers(
    right: Mapping[str, Sequence[Sequence[bool]]], groups: Sequence[str] = (), training: str = "100 %"
) -> pd.DataFrame:
    """By method, one list a seed of what was right."""
    rows = [
        {
            "mask": "" if method == "original" else "union",
            "method": method,
            "training": training,
            "seed": seed,
            "image": f"drop-001/{i}",
            "group": groups[i] if groups else f"g{i}",
            "flagged": False,
            "correct": bool(value),
        }
        for method, seeds in right.items()
        for seed, values in enumerate(seeds)
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_difference_and_exact_p_of_known_answers() -> None:
    ours = [True] * 12 + [False] * 8
    theirs = [True] * 3 + [False] * 9 + [True] + [False] * 7
    found = compare(answers({"original": [theirs], "roi": [ours]})).iloc[0]
    assert found["difference"] == pytest.approx((12 - 4) / 20)
    assert found["p"] == pytest.approx(binomtest(1, 10).pvalue)
    assert found["p_holm"] == found["p"]
    assert found["low"] < 0.4 < found["high"]
    assert (found["n"], found["seeds"]) == (20, 1)


def test_difference_and_p_speak_of_the_same_mean_over_seeds() -> None:
    # By the majority of seeds ours is ahead on 6 images and behind on none, by the mean it is far behind.
    ours = [[True] * 6 + [False] * 30, [True] * 6 + [False] * 30, [False] * 36]
    theirs = [[False] * 6 + [True] * 30, [False] * 36, [False] * 6 + [False] * 30]
    right = {"original": [theirs[0], theirs[0], theirs[2]], "roi": ours}
    found = compare(answers(right)).iloc[0]
    assert found["difference"] == pytest.approx((12 - 60) / 108)
    assert found["p"] < 0.001
    assert found["high"] < 0
    assert found["accuracy"] - found["reference"] == pytest.approx(found["difference"])


def test_p_of_several_seeds_is_that_of_every_assignment_of_signs() -> None:
    random = np.random.default_rng(3)
    ours, theirs = random.random((2, 3, 10)) < 0.5
    found = compare(answers({"original": theirs.tolist(), "roi": ours.tolist()})).iloc[0]
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    signs = np.array(list(itertools.product((-1, 1), repeat=10)))
    exact = (np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean()
    assert found["p"] == pytest.approx(exact, abs=1e-12)


def test_what_is_certain_stays_significant_in_a_study_of_many_entries() -> None:
    ours, theirs = np.full((2, 5, 120), fill_value=False)
    ours[:, :80], ours[:2, 80:100] = True, True
    found = compare(answers({"original": theirs.tolist(), **{f"m{i}": ours.tolist() for i in range(4)}}))
    assert (found["p"] * 10_000 < 1e-9).all()
    # Eighty images five seeds ahead and twenty two ahead: the least p that these signs can have.
    np.testing.assert_allclose(found["p"], 2 * 0.5**100, rtol=1e-9)


def test_patients_with_many_images_do_not_make_chance_significant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 500)
    random = np.random.default_rng(2)
    groups = [f"p{i // 20}" for i in range(300)]
    rejected = 0
    for _ in range(60):
        ours, theirs = np.repeat(random.random((2, 15)) < 0.6, 20, axis=1)  # a patient's images are all alike
        rejected += compare(answers({"original": [theirs], "roi": [ours]}, groups)).iloc[0]["p"] < 0.05
    assert rejected <= 7


def test_methods_are_compared_on_the_images_of_both() -> None:
    frame = answers({"original": [[True, False] * 10] * 2, "roi": [[True] * 20] * 2})
    lacking = frame[~((frame["method"] == "roi") & (frame["image"] == "drop-001/1"))]
    found = compare(lacking).iloc[0]
    assert (found["n"], found["seeds"]) == (19, 2)
    assert found["difference"] == pytest.approx(9 / 19)
    assert compare(frame[(frame["method"] != "roi") | (frame["image"] == "nowhere")]).empty


def test_all_p_values_are_corrected_together() -> None:
    random = np.random.default_rng(0)
    base = random.random(200) < 0.6
    methods = {f"m{i}": [base ^ (random.random(200) < share)] for i, share in enumerate((0.02, 0.1, 0.2))}
    found = compare(answers({"original": [base], **methods}))
    order = np.argsort(found["p"].to_numpy())
    expected = np.minimum(np.maximum.accumulate(found["p"].to_numpy()[order] * [3, 2, 1]), 1)
    np.testing.assert_allclose(found["p_holm"].to_numpy()[order], expected)


def test_interval_is_wider_where_images_belong_to_few_groups() -> None:
    random = np.random.default_rng(0)
    patient = np.repeat(np.arange(10), 20)
    ours = (random.random(10) < 0.5)[patient]
    right = {"original": [np.zeros(200, dtype=bool)], "roi": [ours]}
    alone, together = (compare(answers(right, groups)).iloc[0] for groups in ([], [str(p) for p in patient]))
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_interval_covers_the_difference_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "RESAMPLES", 1000)
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        ours, theirs = random.random((2, 150)) < [[0.8], [0.7]]
        found = compare(answers({"original": [theirs], "roi": [ours]})).iloc[0]
        covered += found["low"] <= 0.1 <= found["high"]
    assert 52 <= covered <= 60


def test_same_answers_are_no_difference_and_give_the_same_numbers_again() -> None:
    right = {"original": [[True, False, True]], "roi": [[True, False, True]]}
    found = compare(answers(right))
    assert found.loc[0, ["difference", "low", "high", "p"]].tolist() == [0.0, 0.0, 0.0, 1.0]
    pd.testing.assert_frame_equal(found, compare(answers(right)))


def test_without_the_reference_nothing_is_compared() -> None:
    assert compare(answers({"roi": [[True, False]]})).empty


def test_seed_with_other_test_images_is_left_out() -> None:
    frame = answers({"original": [[True, False], [True, True]], "roi": [[True, True], [True, True]]})
    lacking = frame.drop(frame.index[(frame["method"] == "roi") & (frame["seed"] == 1)][:1])
    assert compare(lacking).iloc[0]["seeds"] == 1


def test_table_shows_points_interval_and_p() -> None:
    right = {"original": [[False] * 40], "roi": [[True] * 40], "medfocus": [[False] * 40]}
    table = comparison_table(compare(answers(right)))
    assert [row[0].text for row in table.rows] == ["medfocus", "roi"]
    assert [(cell.text, cell.note) for row in table.rows for cell in row[2:]] == [
        ("+0.0", "+0.0 to +0.0\np 1.000"),
        ("+100.0 *", "+100.0 to +100.0\np < 0.001"),
    ]


def test_own_method_is_measured_against_every_baseline_under_its_own_mask() -> None:
    right = {
        "original": [[True] * 60 + [False] * 60],
        "medfocus": [[True] * 90 + [False] * 30],
        "masked": [[False] * 5 + [True] * 85 + [False] * 30],
        "lite0 finetune@masked": [[True] * 120],
        "tip-adapter-f": [[True] * 90 + [False] * 30],
        "medfocus-none": [[True] * 120],
        "original+roi": [[True] * 120],
        "shuffled": [[False] * 120],
    }
    frame = answers(right)
    frame["mask"] = frame["mask"].where(frame["method"] != "tip-adapter-f", "")
    elsewhere = frame[frame["method"] == "masked"].assign(mask="supplied")
    found = against_baselines(pd.concat([frame, elsewhere]), "union").set_index("method")
    assert list(found.index) == ["original", "tip-adapter-f", "lite0 finetune@masked", "masked"]
    assert (found["mask"] == ["", "", "union", "union"]).all()
    np.testing.assert_allclose(found["difference"], [30 / 120, 0, -30 / 120, 5 / 120])
    np.testing.assert_allclose(found["difference"], found["accuracy"] - found["reference"])
    assert (found["accuracy"] == 90 / 120).all()
    assert ((found["low"] <= found["difference"]) & (found["difference"] <= found["high"])).all()
    assert found.loc["original", "p_holm"] == pytest.approx(4 * 2 * 0.5**30)
    told = distance(found.reset_index(), "union")
    assert told == (
        "Against 4 baselines at 1 amount of training data, medfocus (mask union) is ahead in 2 of 4 comparisons, "
        "significantly in 1, and significantly behind in 1."
    )
    assert distance(against_baselines(frame[frame["method"] == "original"], "union"), "union") == ""
    other = against_baselines(frame, "union", form="medfocus-none")
    assert set(other["method"]) == {"original", "tip-adapter-f", "lite0 finetune@masked", "masked"}
    assert (other["accuracy"] == 1).all()
    assert distance(other, "union", "medfocus-none").startswith(
        "Against 4 baselines at 1 amount of training data, medfocus-none (mask union) is ahead in 3 of 4"
    )


def test_forms_of_the_own_method_are_those_on_the_study_s_model_the_plain_one_first() -> None:
    methods = ["original", "medfocus-none", "lite0 medfocus", "medfocus@original+roi", "medfocus", "original+roi"]
    assert forms(methods) == ["medfocus", "medfocus-none", "medfocus@original+roi"]


def test_everything_that_the_baselines_stage_runs_is_a_baseline() -> None:
    known = get_args(Baseline)
    assert {"zero-shot", "coop"} <= set(known)
    assert all(is_baseline(method) for method in known)
    assert not any(is_baseline(method) for method in ("medfocus", "resnet50 medfocus", "original+roi", "shuffled"))
