"""What changed between two made-up reports: known differences, other test images, the same again, hostile names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from manifests.errors import DamagedError, InventoryError, StoreError
from stages.report import change_page
from stages.report.change_page import Comparison, Side, render, twin, write_comparison
from stages.report.change_text import answer_of, cautions_of, change_table
from stages.report.changes import BEYOND, CHANGE_COLUMNS, WITHIN, Changes
from stages.report.kept import Kept

CLASSES = ("a", "b")
Right = Mapping[tuple[str, str, str], Sequence[Sequence[bool]]]
"""By mask, method and training, one list a seed of what was right."""
SCRIPT = "<script>alert(1)</script>"


def frame(
    right: Right,
    *,
    first: int = 0,
    classes: Sequence[str] = CLASSES,
    flagged: Sequence[int] = (),
    per_group: int = 1,
) -> pd.DataFrame:
    """Answers of consecutive test images from number `first` on; classes take turns, what is wrong names the next."""
    rows = [
        {
            "mask": mask,
            "method": method,
            "training": training,
            "seed": seed,
            "image": f"drop-001/{first + i}",
            "image_id": f"{first + i:016x}",
            "label": classes[(first + i) % len(classes)],
            "group": f"g{(first + i) // per_group}",
            "flagged": first + i in flagged,
            "correct": bool(value),
            "predicted": (first + i + (not value)) % len(classes),
        }
        for (mask, method, training), seeds in right.items()
        for seed, values in enumerate(seeds)
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def kept(right: Right, **changed: object) -> Kept:
    classes = changed.get("classes", CLASSES)
    return Kept.of(frame(right, **changed), classes)  # type: ignore[arg-type]


def one(values: Sequence[bool], method: str = "medfocus", training: str = "100 %") -> Right:
    return {("union", method, training): [values]}


def comparison(a: Kept, b: Kept, dataset: str = "set", **origins: list[str]) -> Comparison:
    sides = [Side(x, x.lower() * 12, "2026-01-01T00:00:00+00:00", f"pipeline report --dataset {dataset}") for x in "AB"]
    return Comparison(dataset, (sides[0], sides[1]), Changes.of(a, b), origins, (), {"withdrawals": []})


def test_kept_answers_read_back_exactly_and_are_the_same_bytes() -> None:
    answers = frame({("", "original", "5 %"): [[True, False, True], [False] * 3]}, flagged=[1])
    lacking = answers.drop(answers.index[4])
    data = Kept.of(lacking, CLASSES).to_bytes()
    found = Kept.from_bytes(data, "it")
    assert found.predicted.tolist() == [[0, 0, 0], [1, -1, 1]]
    assert [found.right(row).tolist() for row in found.predicted] == [[1, 0, 1], [0, -1, 0]]
    assert (found.classes, found.images["flagged"].tolist()) == (CLASSES, [False, True, False])
    assert found.images.loc[f"{1:016x}"].tolist() == [f"{1:016x}", "b", "g1", True]
    assert Kept.of(lacking.sample(frac=1, random_state=0).sort_values("seed"), CLASSES).to_bytes() == data
    assert found.to_bytes() == data


def test_answers_of_many_classes_take_a_letter_each() -> None:
    classes = [f"class {i}" for i in range(300)]
    whole = Kept.of(frame(one([True] * 300), classes=classes), classes)
    data = whole.to_bytes()
    (fit,) = json.loads(gzip.decompress(data))["fits"]
    assert (len(fit["answers"]), fit["answers"][:11]) == (300, "0123456789:")
    assert Kept.from_bytes(data, "it").predicted.tolist() == [list(range(300))]


def test_answers_that_know_right_from_wrong_alone_are_asked_for_anew() -> None:
    content = {"schema_version": 1, "classes": ["a"], "images": {}, "fits": [{"answers": "10-"}]}
    with pytest.raises(InventoryError, match=r"reports/0a/answers was made before .*make it again.*pipeline report"):
        Kept.from_bytes(gzip.compress(json.dumps(content).encode()), "reports/0a/answers")


@pytest.mark.parametrize("letter", ["2", "/", ",", " ", "\ud800"])
def test_letter_of_no_class_is_damage(letter: str) -> None:
    content = json.loads(gzip.decompress(kept(one([True, True])).to_bytes()))
    content["fits"][0]["answers"] = f"0{letter}"
    with pytest.raises(DamagedError, match="it is damaged"):
        Kept.from_bytes(gzip.compress(json.dumps(content).encode()), "it")


def test_copies_of_one_file_are_images_of_their_own_in_the_order_of_their_rows() -> None:
    answers = frame(one([True, False] + [True] * 9)).assign(image_id="0" * 16)
    found = Kept.of(answers.iloc[::-1], CLASSES)
    assert found.images.index[[0, 1, 10]].tolist() == ["0" * 16, f"{'0' * 16}#2", f"{'0' * 16}#11"]
    assert found.right(found.predicted[0])[:2].tolist() == [1, 0]


@pytest.mark.parametrize("data", [b"", b"no gzip", b"\x1f\x8b\x08"])
def test_damaged_answers_are_named(data: bytes) -> None:
    with pytest.raises(DamagedError, match="reports/0a/answers is damaged"):
        Kept.from_bytes(data, "reports/0a/answers")
    with pytest.raises(DamagedError, match="is damaged"):
        Kept.from_bytes(kept(one([True])).to_bytes()[:-9], "it")


def test_known_difference_with_its_exact_p_and_flips() -> None:
    before = [True] * 3 + [False] * 9 + [True] + [False] * 7
    now = [True] * 12 + [False] * 8
    changes = Changes.of(kept(one(before)), kept(one(now)))
    row = changes.table.iloc[0]
    assert list(changes.table) == list(CHANGE_COLUMNS)
    assert row["difference"] == pytest.approx((12 - 4) / 20)
    assert row["p"] == row["p_holm"] == pytest.approx(binomtest(1, 10).pvalue)
    assert (row["right_to_wrong"], row["wrong_to_right"], row["verdict"]) == (1, 9, BEYOND)
    assert (row["answers"], row["other_answers"], row["relabelled"]) == (20, 10, 0)
    assert (row["correct_a"], row["n_a"], row["correct_b"], row["n_b"], row["n_common"]) == (4, 20, 12, 20, 20)
    assert row["by_other_images"] == 0
    assert row["low"] < 0.4 < row["high"]
    flips = changes.flips
    assert flips is not None
    assert flips.right_to_wrong == (f"{12:016x}",)
    assert flips.wrong_to_right == tuple(f"{i:016x}" for i in (4, 6, 8, 10, 3, 5, 7, 9, 11))  # by class, then by id
    assert flips.by_class.to_numpy().tolist() == [["a", 10, 1, 4], ["b", 10, 0, 5]]


def test_whole_table_is_corrected_together() -> None:
    random = np.random.default_rng(0)
    base = (random.random(200) < 0.6).tolist()
    names = [("", f"m{i}", "100 %") for i in range(3)]
    now = [(np.array(base) ^ (random.random(200) < share)).tolist() for share in (0.02, 0.1, 0.2)]
    table = Changes.of(kept({n: [base] for n in names}), kept(dict(zip(names, [[x] for x in now], strict=True)))).table
    order = np.argsort(table["p"].to_numpy())
    expected = np.minimum(np.maximum.accumulate(table["p"].to_numpy()[order] * [3, 2, 1]), 1)
    np.testing.assert_allclose(table["p_holm"].to_numpy()[order], expected)


def test_same_report_is_not_beyond_chance_anywhere_and_says_that_no_answer_changed() -> None:
    same = kept({("union", "medfocus", t): [[True, False, True], [False, False, True]] for t in ("5 %", "100 %")})
    changes = Changes.of(same, same)
    assert (changes.table[["difference", "low", "high", "by_other_images"]] == 0).all(axis=None)
    assert (changes.table["p_holm"] == 1).all()
    assert set(changes.table["verdict"]) == {WITHIN}
    assert answer_of(changes, {}) == [
        "No answer changed: of 12 answers behind 2 accuracies, compared fit by fit and image by image on the test "
        "images of both, none names another class.",
        "Nothing that went in differs: neither images, settings, weights nor software.",
    ]
    assert cautions_of(changes, {}) == []


def assert_said(changes: Changes, others: str) -> None:
    """That answers changed, and which number did, and loudly where the inputs are the same."""
    told = " ".join(answer_of(changes, {}))
    assert "o answer changed" not in told
    assert f"fit by fit and image by image on the test images of both, {others} another class." in told
    assert "and yet answers do" in cautions_of(changes, {})[0]


def test_answers_that_two_seeds_exchange_are_other_answers() -> None:
    right, wrong = [True] * 40, [False] * 40
    before, now = ({("", "original", "5 %"): seeds} for seeds in ([right, wrong], [wrong, right]))
    changes = Changes.of(kept(before), kept(now))
    assert changes.table["difference"].tolist() == [0]
    assert changes.table["other_answers"].tolist() == [80]
    assert_said(changes, "80 name")


def test_answer_that_goes_from_one_wrong_class_to_another_is_another_answer() -> None:
    classes = ("a", "b", "c")
    before = frame(one([False] * 3), classes=classes)
    now = before.assign(predicted=[2, *before["predicted"][1:]])
    changes = Changes.of(Kept.of(before, classes), Kept.of(now, classes))
    assert changes.table[["right_to_wrong", "wrong_to_right", "other_answers"]].to_numpy().tolist() == [[0, 0, 1]]
    assert_said(changes, "1 names")
    assert "1 of 3 answers differ" in twin(comparison(Kept.of(before, classes), Kept.of(now, classes)))


def test_classes_are_compared_by_name_not_by_place() -> None:
    before = frame(one([True, False, True]))
    now = before.assign(predicted=1 - before["predicted"])
    same = Changes.of(Kept.of(before, CLASSES), Kept.of(now, CLASSES[::-1]))
    assert same.table[["difference", "other_answers"]].to_numpy().tolist() == [[0, 0]]
    renamed = Changes.of(Kept.of(before, CLASSES), Kept.of(before, ("z", "b")))
    assert renamed.table["other_answers"].tolist() == [3]


def test_same_answers_to_images_of_another_label_are_told_apart_from_no_change() -> None:
    before = frame(one([True, True, True]))
    now = before.assign(label=["b", *before["label"][1:]])
    told = answer_of(Changes.of(Kept.of(before, CLASSES), Kept.of(now, CLASSES)), {})
    assert told[0].startswith("None of 1 accuracy changed by more than chance explains")
    assert told[1].endswith("none names another class; 1 test image of both got another label.")


def test_other_answers_from_the_same_inputs_are_said_loudly() -> None:
    changes = Changes.of(kept(one([True, True])), kept(one([True, False])))
    (caution,) = cautions_of(changes, {})
    assert "Nothing that went in differs, and yet answers do" in caution
    assert cautions_of(changes, {"Settings": ["masks.policy: union -> none"]}) == []


def test_change_that_comes_from_other_test_images_alone_is_told_apart() -> None:
    before, now = kept(one([True] * 10)), kept(one([True] * 10 + [False] * 10))
    changes = Changes.of(before, now)
    row = changes.table.iloc[0]
    assert (row["accuracy_a"], row["accuracy_b"], row["n_common"], row["difference"]) == (1, 0.5, 10, 0)
    assert row["by_other_images"] == pytest.approx(-0.5)
    assert row["verdict"] == WITHIN
    assert (
        "of these -50.0 points, -50.0 come from other test images and 0.0 from other answers"
        in answer_of(changes, {})[1]
    )
    assert [entry.text for entry in change_table(changes).header][7:] == ["accuracy on both", "other images"]


def test_image_is_paired_by_its_id_though_its_row_is_another() -> None:
    moved = frame(one([True, False, True])).assign(image=["drop-009/2", "drop-009/1", "drop-009/0"])
    row = Changes.of(kept(one([True, False, True])), Kept.of(moved, CLASSES)).table.iloc[0]
    assert (row["n_common"], row["difference"], row["right_to_wrong"]) == (3, 0, 0)


def test_report_without_a_common_test_image_is_told_and_not_compared() -> None:
    changes = Changes.of(kept(one([True])), kept(one([True]), first=5))
    assert changes.table.empty
    assert changes.alone["where"].tolist() == ["in both, but no test image is in both"]
    assert answer_of(changes, {})[0] == "The two reports share no accuracy that could be compared."
    shown = comparison(kept(one([True])), kept(one([True]), first=5))
    assert "No method, mask and amount of training data is in both" in render(shown)


def test_fits_and_seeds_of_one_report_alone_are_listed_and_common_seeds_are_compared() -> None:
    before = {**one([True, True]), ("", "original", "100 %"): [[True, True]]}
    now = {("union", "medfocus", "100 %"): [[True, False], [False, False]], ("none", "masked", "5 %"): [[True, True]]}
    changes = Changes.of(kept(before), kept(now))
    assert changes.table[["seeds", "correct_b", "n_b"]].to_numpy().tolist() == [[1, 1, 2]]
    assert changes.alone.to_numpy().tolist() == [
        ["union", "medfocus", "100 %", "seed 1 in B alone"],
        ["none", "masked", "5 %", "B alone"],
        ["", "original", "100 %", "A alone"],
    ]


def test_interval_is_wider_where_images_belong_to_few_patients() -> None:
    now = np.repeat(np.random.default_rng(0).random(10) < 0.5, 20).tolist()
    alone, together = (
        Changes.of(kept(one([False] * 200), per_group=n), kept(one(now), per_group=n)).table.iloc[0] for n in (1, 20)
    )
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_flagged_test_images_are_left_out_in_a_sentence_of_its_own() -> None:
    before, now = [False] * 10 + [True] * 10, [True] * 20
    changes = Changes.of(kept(one(before)), kept(one(now), flagged=range(10)))
    assert changes.table.iloc[0]["difference"] == 0.5
    assert changes.unflagged.iloc[0]["difference"] == 0
    told = answer_of(changes, {})[2]
    assert told.startswith("Without test images that either report flags")
    assert "100.0 to 100.0 % on the 10 others" in told


def test_answer_names_how_many_changed_the_first_method_and_what_went_in() -> None:
    right = {("union", "medfocus", t): [[True] * 4 + [False] * 16] for t in ("5 %", "100 %")}
    better = {**right, ("union", "medfocus", "100 %"): [[True] * 16 + [False] * 4]}
    told = answer_of(Changes.of(kept(right), kept(better)), {"Images": ["drop-002 is new: 9 images"]})
    assert told[0].startswith(
        "1 of 2 accuracies changed by more than chance explains (up); medfocus (mask union) at 100 %: 20.0 to 80.0 % "
        "on the 20 test images of both (+60.0 points, 95 % interval +40.0 to +80.0, corrected p "
    )
    assert told[1].endswith("of both, 12 name another class.")
    assert told[2] == "What went in differs: drop-002 is new: 9 images."


def test_what_changed_by_more_than_chance_explains_comes_first_and_is_marked() -> None:
    right = {("", name, "100 %"): [[False] * 30] for name in ("medfocus", "original")}
    better = {**right, ("", "original", "100 %"): [[True] * 30]}
    table = change_table(Changes.of(kept(right), kept(better)))
    assert "| beyond chance<br>30 of 30 answers differ | **+100.0**<br>" in twin(comparison(kept(right), kept(better)))
    assert [(row[0].text, row[3].text, row[4].mark) for row in table.rows] == [
        ("original", BEYOND, "changed"),
        ("medfocus", WITHIN, ""),
    ]
    assert table.header[-1].text == "accuracy B"  # both have the same test images


def test_page_names_its_test_and_what_that_takes_as_given() -> None:
    shown = comparison(kept(one([True, False])), kept(one([True, True])))
    for text in (render(shown).replace("&#39;", "'"), twin(shown)):
        assert (
            "p of a sign-flip permutation test by patient (McNemar's exact test where each patient has one image and "
            "there is one seed), corrected by Holm's method for the whole table"
        ) in text
        assert text.count("take the fits as they are: other training subsets and initial weights would move") == 1
        assert "noise" not in text


def test_every_text_from_outside_is_escaped() -> None:
    right = {(SCRIPT, SCRIPT, "100 %"): [[True, False]]}
    changed = {(SCRIPT, SCRIPT, "100 %"): [[False, True]], ("", SCRIPT, "5 %"): [[True, True]]}
    classes = (SCRIPT, "b")
    shown = comparison(kept(right, classes=classes), kept(changed, classes=classes), SCRIPT, Settings=[SCRIPT])
    assert SCRIPT not in render(shown)
    assert SCRIPT not in twin(shown).replace("pipeline report", "")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: what changed" in render(shown)


def test_at_most_twenty_images_of_a_kind_are_named() -> None:
    html = render(comparison(kept(one([True] * 25)), kept(one([False] * 25))))
    assert html.count("<li>0000") == 20
    assert "Right, now wrong (25)" in html
    assert "and 5 more." in html


def test_older_page_keeps_its_own_provenance_where_writing_a_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = comparison(kept(one([True, False])), kept(one([True, True])))
    write_comparison(shown, tmp_path)
    newer = replace(shown, provenance={"withdrawals": ["w1"]})

    def full(_: object) -> str:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(change_page, "render", full)
    with pytest.raises(StoreError):
        write_comparison(newer, tmp_path)
    assert json.loads((tmp_path / "provenance.json").read_text()) == {"withdrawals": []}


def test_page_twin_and_table_are_files_and_the_same_bytes_again(tmp_path: Path) -> None:
    shown = comparison(kept(one([True, False])), kept(one([True, True])))
    page = write_comparison(shown, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in page.parent.iterdir()}
    assert set(before) == {"index.html", "compare.md", "compare.csv", "provenance.json"}
    write_comparison(comparison(kept(one([True, False])), kept(one([True, True]))), tmp_path / "out")
    assert {file.name: file.read_bytes() for file in page.parent.iterdir()} == before
    assert pd.read_csv(page.parent / "compare.csv")["difference"].tolist() == [0.5]
    assert (page.parent.stat().st_mode & 0o777) == 0o700
