from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from manifests.audit import check
from manifests.confounds import Confound
from manifests.errors import StoreError
from stages.report.answer import answer_of
from stages.report.comparison import compare, near_best
from stages.report.data import ATTENTION_COLUMNS, FAILURE_COLUMNS, MASK_COLUMNS, GalleryItem, Heat, ReportData
from stages.report.diagnostics import confusion, reliability, roc_curves
from stages.report.figures import THUMBNAIL_PX, figure_bytes, heated, learning_curve, outlined, proposed
from stages.report.findings import Findings
from stages.report.notes import warnings_of
from stages.report.page import render, twin, write_report
from stages.report.tables import Entry, by_kind, each_seed, headline, n_flagged, summarise, summary_table
from stages.scores import wilson


def fit(mask: str, method: str, fraction: float, seed: int, correct: int, **changed: Any) -> dict[str, Any]:
    low, high = wilson(correct, 20)
    share = correct / 20
    row = {
        "mask": mask,
        "method": method,
        "training": f"{fraction * 100:g} %",
        "seed": seed,
        "n_train": int(40 * fraction),
        "n_test": 20,
        "correct": correct,
        "accuracy": share,
        "balanced_accuracy": share,
        "macro_f1": share,
        "auroc": None if method == "constant" else share,
        "ece": 0.1,
        "brier": 0.3,
        "interval_low": low,
        "interval_high": high,
        "n_test_unflagged": 20,
        "correct_unflagged": correct,
    }
    return row | changed


def study() -> pd.DataFrame:
    rows = [fit("union", "medfocus", f, s, k + s) for f, k in ((0.1, 10), (1.0, 15)) for s in (0, 1, 2)]
    rows += [fit("", "original", f, s, k) for f, k in ((0.1, 8), (1.0, 12)) for s in (0, 1, 2)]
    rows += [fit("", "constant", f, s, 10) for f in (0.1, 1.0) for s in (0, 1, 2)]
    return pd.DataFrame(rows)


def answers(scores: pd.DataFrame) -> pd.DataFrame:
    """Twenty test images a fit, the first of which are right."""
    cells = scores.loc[scores.index.repeat(20)].reset_index(drop=True)
    number = cells.groupby(["mask", "method", "training", "seed"]).cumcount()
    return cells[["mask", "method", "training", "seed"]].assign(
        image=number.astype(str),
        image_id=number.map("{:016x}".format),
        label=(number // 10).map({0: "a", 1: "b"}),
        group=number.astype(str),
        flagged=False,
        correct=number < cells["correct"],
        predicted=(number // 10).where(number < cells["correct"], 1 - number // 10),
    )


def probabilities(told: pd.DataFrame) -> pd.DataFrame:
    """Of the answers on all training images: ten images a class, and each answer is 80 % sure."""
    rows = told[told["training"] == "100 %"].reset_index(drop=True)
    truth = rows["image"].astype(int) // 10
    predicted = truth.where(rows["correct"], 1 - truth)
    sure = {"p_0": 0.8 - 0.6 * predicted, "p_1": 0.2 + 0.6 * predicted}
    return rows[["mask", "method", "training", "seed", "image"]].assign(truth=truth, predicted=predicted, **sure)


def ledger(fallback: tuple[int, int] = (0, 0), failed: int = 0, classes: tuple[str, str] = ("a", "b")) -> pd.DataFrame:
    rows = [
        {"mask": "union", "split": "test", "class": c, "n": 10, "ok": 10 - f - failed, "fallback": f, "failed": failed}
        for c, f in zip(classes, fallback, strict=True)
    ]
    return pd.DataFrame(rows).assign(mean_area=0.25)


def item(label: str = "a", **changed: Any) -> GalleryItem:
    image = np.full((64, 64, 3), 90, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    masked = image * mask[..., None]
    return replace(GalleryItem(image, mask, masked, label, "b", "fallback", "0a1b", "union"), **changed)


def data(**changed: Any) -> ReportData:
    whole = ReportData(
        dataset="set",
        drops=[{"id": "first", "n_items": 60, "created": "2026-01-01T00:00:00+00:00"}],
        classes=("a", "b"),
        command="pipeline report",
        fingerprint="0123456789abcdef" * 4,
        created="2026-01-02T00:00:00+00:00",
        scores=study(),
        answers=answers(study()),
        probabilities=probabilities(answers(study())),
        cards=[{"name": "lite0-minilm", "dtype": "float32", "image_px": 224}],
        ledger=ledger(),
        failures=pd.DataFrame(columns=FAILURE_COLUMNS),
        gallery=[item()],
    )
    return replace(whole, **changed)


def page(**changed: Any) -> str:
    if "scores" in changed and "answers" not in changed:
        changed["answers"] = answers(changed["scores"])
    shown = data(**changed)
    return render(shown, findings_of(shown))


def findings_of(shown: ReportData) -> Findings:
    """With figures that are not drawn, which takes a second."""
    return Findings.of(shown, save=lambda _: {"svg": b"<svg/>"})


def test_page_says_what_the_audit_found_beside_leaks() -> None:
    clean = check([])
    found = clean.model_copy(
        update={
            "confounds": (
                Confound(probed="margins", balanced_accuracy=0.83, chance=1 / 3, n_images=300),
                Confound(probed="grey levels", balanced_accuracy=0.4, chance=1 / 3, n_images=300),
            ),
            "twins_across_labels": ("0a", "0b"),
            "masks_as_images": ("0c",),
        }
    )
    html = page(audits=[("drop-001", clean), ("drop-002", found)])
    assert "drop-002: margins alone tell the classes with a balanced accuracy of 83% (chance 33%)" in html
    assert "drop-002: 2 images show pictures that carry two labels" in html
    assert "drop-002: 1 images look like masks" in html
    assert "drop-001:" not in html
    assert "grey levels alone" not in html


def test_summary_is_mean_and_sample_deviation_over_seeds_and_pools_counts() -> None:
    rows = summarise(study()).set_index(["method", "training"])
    medfocus = rows.loc[("medfocus", "100 %")]
    assert medfocus["accuracy_mean"] == pytest.approx(16 / 20)
    assert medfocus["accuracy_sd"] == pytest.approx(0.05)
    assert (medfocus["correct"], medfocus["n_test"], medfocus["seeds"]) == (48, 60, 3)


def test_constant_baseline_stands_last_and_has_no_auroc() -> None:
    summary = summarise(study())
    assert list(dict.fromkeys(summary["method"])) == ["medfocus", "original", "constant"]
    assert summary.loc[summary["method"] == "constant", "auroc_mean"].isna().all()


def test_terminal_table_shows_percent_spread_and_counts() -> None:
    table = summary_table(study())
    assert table.columns[:2].tolist() == ["method", "mask"]
    assert table.columns[2:].str.startswith(("10 %", "100 %")).all()
    assert table.iloc[0].tolist() == ["medfocus", "union", "55.0 ± 5.0 (33/60)", "80.0 ± 5.0 (48/60)"]


def test_shots_and_shares_are_tables_and_panels_of_their_own() -> None:
    shots = study().assign(training=lambda f: f["training"].map({"10 %": "2-shot", "100 %": "16-shot"}))
    scores = pd.concat([study(), shots], ignore_index=True)
    headers = [[entry.text for entry in headline(part).header] for part in by_kind(summarise(scores))]
    assert headers == [["method", "mask", "2-shot", "16-shot"], ["method", "mask", "10 %", "100 %"]]
    figure = learning_curve(summarise(scores))
    ticks = [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
    assert ticks == [["2", "16"], ["10 %", "100 %"]]
    assert [len(axes.lines) for axes in figure.axes] == [3, 3]
    for axes in figure.axes:
        assert axes.get_ylim()[0] < 40 < 80 < axes.get_ylim()[1]
    html = page(scores=scores)
    assert html.count(">2-shot<") > 0
    assert html.index(">16-shot<") < html.index(">10 %<")


def test_paper_stands_beside_and_its_impossible_value_is_marked() -> None:
    assert "What the paper's authors give" not in page()
    html = page(published="covid")
    assert "no count out\nof 66 gives it" in html


def test_differences_from_the_reference_are_shown_with_their_p_values() -> None:
    html = page()
    assert "Against original" in html
    assert html.count("Without the flagged") == html.count("without the flagged") == 0
    marked = answers(study()).assign(flagged=lambda f: f["image"] == "19")
    assert "The same without the flagged test images" in page(answers=marked)


def test_one_seed_has_no_spread_and_missing_seeds_are_named() -> None:
    scores = study()
    scores = scores[(scores["method"] != "original") | (scores["seed"] == 0)]
    entry = headline(summarise(scores)).rows[1][2]
    assert (entry.text, entry.note) == ("40.0", "(8/20, 1 of 3 seeds)\n21.9 to 61.3")
    assert any("2 of 6 table cells lack seeds" in w for w in warnings_of(data(scores=scores)))


def test_cell_that_was_not_fitted_is_a_dash() -> None:
    scores = study()
    scores = scores[(scores["method"] != "original") | (scores["training"] == "100 %")]
    assert headline(summarise(scores)).rows[1][2].text == "–"


def test_flagged_test_images_give_a_second_table_without_them() -> None:
    scores = pd.DataFrame([fit("", "original", 1.0, s, 12, n_test_unflagged=15, correct_unflagged=6) for s in (0, 1)])
    html = page(scores=scores)
    section = html[html.index('id="unflagged"') :]
    assert "5 of 20 test images also occur in training" in html
    assert "40.0 ± 0.0<small>(12/30)\n19.8 to 64.3</small>" in section
    assert "60.0 ± 0.0<small>(24/40)\n38.7 to 78.1</small>" in html[: html.index('id="unflagged"')]


def test_clean_test_set_has_one_headline_table() -> None:
    assert 'id="unflagged"' not in page()


def test_all_test_images_flagged_is_undefined_not_zero() -> None:
    scores = pd.DataFrame([fit("", "original", 1.0, 0, 12, n_test_unflagged=0, correct_unflagged=0)])
    assert headline(summarise(scores), unflagged=True).rows[0][2] == Entry("–", "no test image")


def test_every_fit_shows_its_wilson_interval() -> None:
    html = page(scores=pd.DataFrame([fit("", "original", 1.0, 0, 12)]))
    low, high = wilson(12, 20)
    assert f"{low * 100:.1f} to {high * 100:.1f} %" in html


def test_class_dependent_fallback_is_warned_of_with_counts() -> None:
    (warning,) = warnings_of(data(ledger=ledger((1, 9))))
    assert "(a 1/10, b 9/10; up to 80 points apart, p = 0.0011)" in warning


def fallbacks(*counts: tuple[int, int]) -> pd.DataFrame:
    """A ledger of so many fallbacks of so many images in each class."""
    rows = [
        {"mask": "union", "split": "test", "class": f"c{k}", "n": n, "ok": n - f, "fallback": f, "failed": 0}
        for k, (f, n) in enumerate(counts)
    ]
    return pd.DataFrame(rows).assign(mean_area=0.25)


@pytest.mark.parametrize(
    ("counts", "warned"),
    [
        ([(0, 3), (1, 4)], False),
        ([(0, 1000), (190, 1000)], True),
        ([(0, 10_000), (50, 10_000)], False),
        ([(0, 1000), (10, 1000)], True),
        ([(0, 50), (1, 50), (12, 50)], True),
        ([(20, 30), (13, 30)], True),
        ([(9, 19), (6, 25)], False),
        ([(0, 1000), (0, 10)], False),
        ([(30, 30), (30, 30), (40, 40)], False),
        ([(5, 30)], False),
    ],
)
def test_fallback_is_warned_of_where_it_surely_depends_on_the_class(
    counts: list[tuple[int, int]], *, warned: bool
) -> None:
    found = warnings_of(data(ledger=fallbacks(*counts)))
    assert len(found) == warned
    assert all("points apart, p = " in warning for warning in found)


@pytest.mark.parametrize(
    "table",
    [ledger((4, 6)), ledger((0, 9), classes=("a", "")), ledger((9, 9))],
    ids=["small gap", "unlabelled", "even"],
)
def test_even_fallback_is_no_reason_to_warn(table: pd.DataFrame) -> None:
    assert warnings_of(data(ledger=table)) == ()


def test_failed_images_are_warned_of() -> None:
    (warning,) = warnings_of(data(ledger=ledger(failed=2)))
    assert "4 of 20 images failed" in warning


def test_untrained_model_is_warned_of_first_and_marked() -> None:
    cards = [{"name": "sam2-tiny-untrained"}]
    assert "sam2-tiny-untrained is untrained" in warnings_of(data(cards=cards, ledger=ledger((1, 9))))[0]
    assert '<span class="badge">untrained</span>' in page(cards=cards)


def test_every_text_from_outside_is_escaped() -> None:
    evil = "<script>alert('x')</script>"
    html = page(
        dataset=evil,
        classes=(evil, "b"),
        command=evil,
        drops=[{"id": evil, "n_items": 1, "created": evil}],
        cards=[{"name": evil, evil: evil}],
        ledger=ledger((1, 9), classes=(evil, "b")),
        failures=pd.DataFrame([[evil, "failed", evil, 1]], columns=FAILURE_COLUMNS),
        gallery=[item(evil, predicted=evil, caption=evil, policy=evil, status=evil)],
        scores=study().assign(mask=evil),
    )
    assert html.count("<script") == html.count("<script>\n") + html.count('<script>"use strict"') == 1
    assert html.count("&lt;script&gt;") > 15


def test_page_needs_neither_network_nor_other_files() -> None:
    html = page()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    pictures = [address for address in addresses if address.startswith("data:image/")]
    assert len(pictures) == 1 + 4 + 3, "curve, four more figures, three panels"
    assert all(f'id="{address[1:]}"' in html for address in addresses if address not in pictures)
    without_namespace = html.replace('const SVG = "http://www.w3.org/2000/svg";', "")
    assert not re.search(r"https?://|url\(|@import|<link|<script ", without_namespace)
    assert "default-src 'none'" in html


def test_pictures_stand_under_their_outcome_by_class_with_status_and_both_answers() -> None:
    gallery = [
        item("b", predicted="b", without="a", status="ok", outcome="gained", kind="IoU", quality=0.456),
        item("a", outcome="lost", predicted="b", without="a"),
        item("b", outcome="lost", predicted="a", without="b"),
    ]
    html = page(gallery=list(reversed(gallery)))
    places = [
        html.index(text) for text in ("Right with the mask, wrong without<", "Wrong with the mask, right without<")
    ]
    figures = [
        html.index(f'<figure class="picture" data-label="{label}">', places[k]) for k, label in ((1, "a"), (1, "b"))
    ]
    assert places[0] < html.index("IoU 0.46") < places[1] < figures[0] < figures[1]
    assert "Without a usable mask<" not in html
    gained = html[places[0] : places[1]]
    assert "✓ with mask: <bdi>b</bdi>" in gained
    assert "✗ without mask: <bdi>a</bdi>" in gained
    assert html.count('<span class="badge">fallback</span>') == 2


def test_panels_are_image_proposals_mask_what_was_seen_and_where_each_classifier_looked() -> None:
    heats = tuple(Heat(m, np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.float32)) for m in ("medfocus", "original"))
    proposals = np.zeros((2, THUMBNAIL_PX, THUMBNAIL_PX), bool)
    html = page(gallery=[item(proposals=proposals, heats=heats)])
    panels = re.findall(r'src="data:image/webp[^"]*" alt="([^"]*)"', html)
    drawn = ["image", "2 proposals", "outline of the mask", "masked image"]
    assert panels == [*drawn, "where medfocus looked", "where original looked"]
    assert re.findall(r'<span class="name">([^<]*)</span>', html) == panels


def test_panel_of_the_masks_stage_is_named_after_what_it_shows() -> None:
    html = page(gallery=[item(shown="overlay")])
    assert 'alt="overlay"' in html
    assert "what the masks stage makes of both (overlay;" in html
    assert "masked image" not in html[html.index('id="gallery"') :]


def test_worst_mask_states_by_what_it_was_found() -> None:
    gallery = [item(outcome="worst", kind="score", quality=0.31), item(outcome="worst")]
    html = page(gallery=gallery)
    assert "Worst masks not shown above<" in html
    assert html.count("score 0.31") == 1
    assert "score None" not in html


def test_edges_of_proposals_are_drawn_the_surest_on_top() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    candidates = np.zeros((2, THUMBNAIL_PX, THUMBNAIL_PX), bool)
    candidates[0, 50:100, 50:100] = True
    candidates[1, 50:200, 50:200] = True
    drawn = proposed(image, candidates)
    assert drawn[50, 60].tolist() == [0xE6, 0x9F, 0x00] != drawn[50, 150].tolist()
    assert not drawn[70, 70].any()


def test_heat_is_light_where_it_is_high() -> None:
    values = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.float32)
    values[: THUMBNAIL_PX // 2] = np.linspace(0, 1, THUMBNAIL_PX)
    drawn = heated(np.full((64, 64, 3), 60, np.uint8), values).astype(int).sum(axis=2)
    assert (np.diff(drawn[0]) >= -1).all()
    assert drawn[0, -1] > 3 * drawn[0, 0]
    assert (drawn[THUMBNAIL_PX // 2 :] == drawn[0, 0]).all()


def test_pointing_stands_beside_chance_and_what_has_no_map_is_said() -> None:
    assert "Where the classifiers looked" not in page()
    looked = [
        ("union", "medfocus", "Grad-CAM", 40, 0.6, 0.456, 0.1234, 2),
        ("", "original", "Grad-CAM", 40, 0.5, np.nan, 0.1, 0),
    ]
    shown = {"attention": pd.DataFrame(looked, columns=list(ATTENTION_COLUMNS)), "unseen": ["3 images without a map."]}
    html = page(**shown)
    for text in (">60.0 %<", ">45.6 %<", ">12.3 %<", ">–<", "3 images without a map."):
        assert text in html
    whole = data(**shown)
    assert "| 60.0 % | 45.6 % | 12.3 % | 2 |" in twin(whole, findings_of(whole))


def test_top_says_what_was_tested_and_on_what() -> None:
    html = page()
    top = html[html.index('class="card facts"') : html.index("<nav")]
    for text in (
        "first (60 images, 2026-01-01",
        "20 images, none flagged",
        "up to 40 images, seeds 0, 1, 2",
        "lite0-minilm",
    ):
        assert text in top
    assert "pipeline report" in top
    assert "0123456789abcdef" * 4 in top
    flagged = page(scores=study().assign(n_test_unflagged=17))
    assert "20 images, 3 of them flagged" in flagged


def test_one_image_stands_side_by_side_under_all_policies() -> None:
    html = page(gallery=[item(caption=c, policy=p) for p in ("union", "none") for c in ("01", "02")])
    order = re.findall(r"; mask (union|none).*?<br>(\d\d)", html, re.DOTALL)
    assert order == [("union", "01"), ("none", "01"), ("union", "02"), ("none", "02")]


def test_picture_without_its_original_shows_what_the_encoder_saw() -> None:
    html = page(gallery=[item(), item(image=None)], unreadable={"changed": 1})
    assert html.count('src="data:image/webp') == 3 + 1
    assert html.count("source file not readable") == 1
    assert "1 of 2 pictures are shown without the original image" in html
    assert "changed 1" in html


def test_unfinished_policy_is_warned_of_with_what_it_lacks() -> None:
    assert 'id="unreadable"' not in page()
    (warning,) = warnings_of(data(incomplete={"box": "3 of 5 chunks of masks"}))
    assert "Mask policy box is not complete; 3 of 5 chunks of masks are not committed" in warning


def test_masks_keep_the_order_in_which_they_come() -> None:
    scores = pd.concat([study(), study().query("mask != ''").assign(mask="box")])
    assert summary_table(scores)["mask"].tolist() == ["union", "box", "–", "–"]
    text = [row[1].text for row in each_seed(scores).rows if row[0].text == "medfocus"]
    assert list(dict.fromkeys(text)) == ["union", "box"]


def test_terminal_table_without_flagged_images_counts_the_others() -> None:
    scores = pd.DataFrame([fit("", "original", 1.0, s, 12, n_test_unflagged=15, correct_unflagged=6) for s in (0, 1)])
    assert summary_table(scores, unflagged=True).iloc[0].tolist() == ["original", "–", "40.0 ± 0.0 (12/30)"]
    assert n_flagged(scores) == 5


def test_mask_is_outlined_and_its_inside_stays_visible() -> None:
    drawn = outlined(item().image, item().mask)
    assert drawn.shape == (THUMBNAIL_PX, THUMBNAIL_PX, 3)
    amber = (drawn == (255, 176, 0)).all(axis=-1)
    assert 0.01 < amber.mean() < 0.05
    assert (drawn[~amber] == 90).all()


def test_tables_and_figures_are_files_beside_the_page(tmp_path: Path) -> None:
    shown = data(incomplete={"box": "3 of 5 chunks of masks"})
    out = write_report(shown, tmp_path / "report").parent
    assert json.loads((out / "provenance.json").read_text())["cautions"] == list(warnings_of(shown)) != []
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    drawn = ("learning_curve", "controls", "confusion", "reliability", "roc")
    figures = {f"figures/{name}.{kind}" for name in drawn for kind in ("csv", "png", "svg")}
    tables = {
        "answers.json.gz",
        "attention.csv",
        "baselines.csv",
        "comparison.csv",
        "provenance.json",
        "scores.csv",
        "summary.csv",
    }
    assert names == {*tables, *figures, "index.html", "report.md"}
    back = pd.read_csv(out / "scores.csv", keep_default_na=False)
    assert back["correct"].tolist() == study()["correct"].tolist()
    assert pd.read_csv(out / "figures/learning_curve.csv")["accuracy_mean"].iloc[1] == pytest.approx(0.8)
    with Image.open(out / "figures/learning_curve.png") as image:
        assert image.width > 800


def test_class_that_looks_like_a_formula_is_escaped_in_every_table_and_numbers_are_not(tmp_path: Path) -> None:
    evil = "=1+1"
    masks = [("union", "test", evil, "ok", 0.25, 0.9, 0.8)]
    told = [("-union", evil, "@kind", 1, 0.5, 0.5, 0.1, 0)]
    out = write_report(
        data(
            classes=(evil, "b"),
            scores=study().assign(training_note="+note", change=-0.5),
            masks=pd.DataFrame(masks, columns=list(MASK_COLUMNS)),
            attention=pd.DataFrame(told, columns=list(ATTENTION_COLUMNS)),
        ),
        tmp_path,
    ).parent
    tables = {path.name: path.read_text("utf-8") for path in out.rglob("*.csv")}
    assert {"attention.csv", "comparison.csv", "confusion.csv", "masks.csv", "roc.csv", "scores.csv"} <= set(tables)
    for text in tables.values():
        assert not re.search(r"(?:^|,)\"?[=+@\t]", text, re.MULTILINE)
    assert "'=1+1" in tables["confusion.csv"]
    assert tables["attention.csv"].splitlines()[1].startswith("'-union,'=1+1,'@kind,1,0.5")
    assert ",'+note,-0.5" in tables["scores.csv"]


def test_second_report_replaces_the_first_and_is_the_same(tmp_path: Path) -> None:
    write_report(data(), tmp_path)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    write_report(data(), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_curve_has_a_line_for_each_method() -> None:
    figure = learning_curve(summarise(study()))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["medfocus, mask union", "original", "constant"]
    line = figure.axes[0].get_lines()[0]
    assert line.get_ydata() == pytest.approx([55, 80])
    assert figure_bytes(figure)["svg"].startswith(b"<?xml")


def test_figures_need_no_global_plotting_state() -> None:
    code = "import sys, stages.report.page; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_single_fraction_is_drawn_too() -> None:
    scores = study()
    assert figure_bytes(learning_curve(summarise(scores[scores["training"] == "100 %"])))["png"].startswith(b"\x89PNG")


def test_missing_column_and_missing_scores_are_named() -> None:
    with pytest.raises(ValueError, match="missing: ece"):
        data(scores=study().drop(columns="ece"))
    with pytest.raises(ValueError, match="at least one row"):
        data(scores=study().iloc[:0])


def test_full_disk_is_a_store_error_and_leaves_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("stages.report.page.write_synced", full)
    with pytest.raises(StoreError):
        write_report(data(), tmp_path / "report")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def answer(scores: pd.DataFrame, **changed: Any) -> list[str]:
    return findings_of(data(scores=scores, answers=answers(scores).assign(**changed))).answer


def test_answer_names_both_accuracies_and_whether_it_is_chance() -> None:
    told = answer(study())
    assert told[0].startswith(
        "With all training images medfocus (mask union), which also fuses class texts, answers 80.0 %"
    )
    assert "of 20 test images right, a probe on the unmasked image 60.0 %: 20.0 points more (95 % interval" in told[0]
    assert told[-2].startswith("At none of 2 amounts of training data is the difference significant")
    assert told[-1].startswith("Against 2 baselines at 2 amounts of training data, medfocus (mask union) is ahead in ")
    sure = answer_of(compare(answers(study())).assign(p=0.0001), compare(answers(study()).iloc[:0]), ("union",))
    assert sure[-1] == "Corrected for 2 amounts of training data, it is significantly better at 10 %, 100 %."


def test_other_forms_of_the_own_method_are_measured_beside_it(tmp_path: Path) -> None:
    form = pd.DataFrame([fit("union", "medfocus@original+roi", f, s, 17) for f in (0.1, 1.0) for s in (0, 1, 2)])
    scores = pd.concat([study(), form], ignore_index=True)
    findings = findings_of(data(scores=scores, answers=answers(scores)))
    own, other = findings.distances
    assert own in findings.answer
    assert other not in findings.answer
    assert "medfocus@original+roi (mask union) is ahead in 4 of 4 comparisons" in other
    assert f"<li>{other}</li>" in page(scores=scores, answers=answers(scores))
    assert other in twin(data(scores=scores, answers=answers(scores)), findings)


def test_question_is_asked_of_the_same_features_under_the_mask_first() -> None:
    masked = pd.DataFrame([fit("union", "masked", f, s, 14) for f in (0.1, 1.0) for s in (0, 1, 2)])
    told = answer(pd.concat([study(), masked], ignore_index=True))
    assert "masked (mask union) answers 70.0 % of 20 test images right, the same probe on the unmasked" in told[0]
    assert told[-2].startswith("With all training images medfocus (mask union), which also fuses class texts, ")
    assert told[-1].startswith("Against 3 baselines")


def test_answer_without_flagged_images_stands_beside() -> None:
    assert not [sentence for sentence in answer(study()) if "flagged" in sentence]
    flagged = answers(study())["image"].astype(int) >= 12  # what medfocus gained at 100 %
    told = [sentence for sentence in answer(study(), flagged=flagged) if sentence.startswith("Without flagged")]
    assert len(told) == 1
    assert "of 12 test images right, a probe on the unmasked image 100.0 %: no difference" in told[0]


def test_study_without_masks_says_that_it_cannot_answer() -> None:
    (told,) = answer(study().query("method != 'medfocus'"))
    assert told.startswith("This study cannot say")
    assert answer(study().query("method != 'original'"))[:-1] == [told]


def test_each_accuracy_has_its_interval_on_the_images_of_one_seed() -> None:
    table = headline(summarise(study()))
    low, high = wilson(16, 20)
    assert table.rows[0][3].note == f"(48/60)\n{100 * low:.1f} to {100 * high:.1f}"


def test_best_is_marked_and_what_is_not_surely_worse() -> None:
    weak = [fit("", "constant", 1.0, s, 0) for s in (0, 1, 2)]
    scores = pd.concat([study().query("training == '100 %' and method != 'constant'"), pd.DataFrame(weak)])
    marks = near_best(answers(scores), summarise(scores))
    assert marks == {("union", "medfocus", "100 %"): "best", ("", "original", "100 %"): "near"}
    html = page(scores=scores, answers=answers(scores))
    assert html.count('class="number best"') == html.count('class="number near"') == 1


def test_confusions_count_all_seeds() -> None:
    rows = probabilities(answers(study())).query("method == 'medfocus'")
    assert confusion(rows, 2).tolist() == [[30, 0], [12, 18]]


def test_reliability_has_confidence_and_accuracy_of_each_bin() -> None:
    (one,) = reliability(probabilities(answers(study())).query("method == 'medfocus'"), ("a", "b")).to_dict("records")
    assert (one["low"], one["high"], one["n"]) == (pytest.approx(11 / 15), pytest.approx(12 / 15), 60)
    assert (one["confidence"], one["accuracy"]) == (pytest.approx(0.8), pytest.approx(0.8))


def test_roc_of_a_perfect_and_of_a_blind_method() -> None:
    rows = probabilities(answers(study())).query("method == 'medfocus'")
    perfect = rows.assign(p_0=1.0 - rows["truth"], p_1=rows["truth"])
    assert roc_curves(perfect, ("a", "b"))["auroc"].unique().tolist() == [1.0]
    blind = roc_curves(rows.assign(p_0=0.5, p_1=0.5), ("a", "b"))
    assert blind["auroc"].unique().tolist() == [0.5]
    assert blind["true_positive_rate"].to_numpy() == pytest.approx(blind["false_positive_rate"].to_numpy())


def test_class_that_the_test_set_lacks_has_no_curve() -> None:
    rows = probabilities(answers(study())).query("truth == 0").assign(p_2=0.0)
    assert roc_curves(rows, ("a", "b", "c")).empty


def test_twin_holds_the_answer_and_tables_and_escapes_markup() -> None:
    shown = data(dataset="<b>|x|", classes=("a|b", "c"))
    text = twin(shown, findings_of(shown))
    assert text.startswith("# \\<b\\>\\|x\\|\n")
    assert "With all training images medfocus" in text
    assert "| medfocus | union | **55.0 ± 5.0**<br>(33/60) 34.2 to 74.2 |" in text
    assert "<b>" not in text
