"""Which test images a gallery shows, who was right, and how masks spread by class."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.report.mask_figures import mask_plot, spread
from stages.report.outcomes import MOST, OUTCOMES, counts, groups, pick, within


def examined() -> pd.DataFrame:
    """Two classes in turn; every fourth image is gained, every fourth lost, one in ten has no usable mask."""
    n = 40
    number = np.arange(n)
    status = np.where(number % 10 == 9, "fallback", "ok")
    return pd.DataFrame(
        {
            "image": [f"{i:04}" for i in number],
            "label": np.where(number % 2 == 0, "a", "b"),
            "status": status,
            "with_mask": pd.array(number % 4 < 2, dtype="boolean"),
            "without": pd.array(number % 4 % 3 == 0, dtype="boolean"),
            "kind": "score",
            "quality": np.where(status == "ok", 1 - number / n, np.nan),
        }
    )


def test_each_image_is_shown_once_in_the_first_group_that_it_belongs_to() -> None:
    test = examined()
    chosen = pick(test, 2)
    assert not chosen["image"].duplicated().any()
    assert list(dict.fromkeys(chosen["outcome"])) == list(OUTCOMES)
    assert chosen.groupby(["outcome", "label"]).size().max() == 2
    of = groups(test)
    for outcome, rows in chosen.groupby("outcome"):
        assert set(rows["image"]) <= set(of[str(outcome)]["image"])


def test_gained_and_lost_are_what_the_two_answers_say() -> None:
    of = groups(examined())
    assert (of["gained"]["with_mask"] & ~of["gained"]["without"]).all()
    assert (~of["lost"]["with_mask"] & of["lost"]["without"]).all()
    assert of["gained"].index.tolist() == [i for i in range(40) if i % 4 == 1]
    assert of["lost"].index.tolist() == [i for i in range(40) if i % 4 == 3]


def test_worst_masks_are_those_of_least_quality_and_fallbacks_have_none() -> None:
    test = examined()
    worst = groups(test)["worst"]
    assert worst["image"].tolist() == [f"{i:04}" for i in reversed(range(20, 40)) if i % 10 != 9]
    nothing = pick(test.assign(quality=np.nan), 2)
    assert "worst" not in set(nothing["outcome"])


def test_mask_that_overlaps_well_is_never_among_the_worst() -> None:
    good = examined().assign(kind="IoU", quality=lambda test: 0.6 + test["quality"] / 10)
    assert groups(good)["worst"].empty
    mixed = good.assign(quality=np.where(good.index == 5, 0.5, np.where(good.index == 7, 0.1, good["quality"])))
    assert groups(mixed)["worst"].index.tolist() == [7, 5]


def test_scores_from_the_median_on_are_not_among_the_worst() -> None:
    high = examined().assign(quality=lambda test: 0.9 + test["quality"] / 100)
    assert groups(high)["worst"].index.tolist() == [i for i in reversed(range(20, 40)) if i % 10 != 9]
    assert groups(high.assign(quality=0.9))["worst"].empty


def test_page_of_many_policies_and_classes_keeps_its_bound_and_shows_the_first_policy_whole() -> None:
    labels = [f"class-{i}" for i in range(7)]
    tests = {f"policy-{p}": pd.concat([examined().assign(label=label) for label in labels]) for p in range(8)}
    picked = {policy: pick(test.reset_index(drop=True), 1) for policy, test in tests.items()}
    assert sum(map(len, picked.values())) == 8 * 7 * len(OUTCOMES)
    shown = within(picked, MOST)
    assert list(shown) == list(picked)
    assert sum(map(len, shown.values())) == MOST
    assert set(shown["policy-0"].groupby("outcome").size()) == {7}
    for policy in list(picked)[1:]:
        assert shown[policy].groupby("outcome").size()["gained"] == 7


def test_page_with_room_for_all_loses_none() -> None:
    picked = {"union": pick(examined(), 3), "box": pick(examined(), 3)}
    assert all(within(picked, MOST)[policy].equals(rows) for policy, rows in picked.items())


def test_unknown_answers_are_neither_gained_nor_lost_nor_counted() -> None:
    test = examined()
    test.loc[:, "without"] = pd.array([None] * len(test), dtype="boolean")
    assert groups(test)["gained"].empty
    assert groups(test)["lost"].empty
    assert counts("union", test).empty
    assert set(pick(test, 2)["outcome"]) == {"fallback", "worst", "first"}


def test_counts_of_a_class_add_up() -> None:
    found = counts("union", examined())
    assert found[["mask", "class", "n"]].to_numpy().tolist() == [["union", "a", 20], ["union", "b", 20]]
    assert (found[["both", "gained", "lost", "neither"]].sum(axis=1) == found["n"]).all()
    assert found[["both", "gained", "lost", "neither"]].to_numpy().tolist() == [[10, 0, 0, 10], [0, 10, 10, 0]]


def masks(iou: float = np.nan) -> pd.DataFrame:
    """A hundred masks of each class under one policy; those of b are larger; one has fallen back."""
    share = np.tile(np.arange(1, 101) / 200, 2)
    label = np.repeat(["a", "b"], 100)
    area = np.where(label == "b", share + 0.4, share)
    frame = pd.DataFrame({"mask": "union", "split": "train", "class": label, "status": "ok", "area": area})
    frame = frame.assign(score=0.5, iou=iou)
    return pd.concat([frame, frame.head(1).assign(status="fallback", area=np.nan, score=np.nan)], ignore_index=True)


def test_spread_is_the_quantiles_of_usable_masks_in_percent() -> None:
    found = spread(masks()).set_index(["class", "measure"])
    assert found.loc[("a", "area"), "n"] == 100
    assert found.loc[("a", "area"), "p50"] == 25.25
    np.testing.assert_allclose(found.loc[("b", "area"), "p50"], 65.25)
    assert ("a", "iou") not in found.index


def test_plot_has_a_row_a_policy_and_a_column_a_known_measure() -> None:
    two = pd.concat([masks(0.7), masks(0.7).assign(mask="box")], ignore_index=True)
    plot = mask_plot(two, ("b", "a"))
    assert plot is not None
    assert len(plot.figure.axes) == 2 * 3
    assert [label.get_text() for label in plot.figure.axes[0].get_yticklabels()] == ["a", "b"]
    assert set(plot.numbers["mask"]) == {"union", "box"}
    assert mask_plot(masks().assign(status="failed"), ("a",)) is None
