"""Figures of a report: whose answers are looked at closely, and lines that can be told apart."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from stages.report.diagnostics import chosen
from stages.report.figures import figure_bytes, learning_curve, rows_of_methods
from stages.report.findings import Findings
from stages.report.tables import summarise
from tests.unit.stages.test_report import answers, data, fit, page, probabilities, study

POLICIES = ("union", "box", "top1")
MASKED = ("medfocus", "masked", "overlay", "crop", "blur", "roi", "ring", "medfocus-none", "roi+ring", "shape")
UNMASKED = ("original", "tip-adapter", "zero-shot", "constant")


def summary_of(masks: tuple[str, ...], methods: tuple[str, ...]) -> pd.DataFrame:
    """A study of these methods, under every policy where they see masks."""
    pairs = [(mask, m) for m in methods for mask in (("",) if m in UNMASKED else masks)]
    rows = [
        fit(mask, method, fraction, seed, min(20, 6 + (number * 5) % 11 + 2 * int(fraction) + seed))
        for number, (mask, method) in enumerate(pairs)
        for fraction in (0.1, 0.5, 1.0)
        for seed in (0, 1)
    ]
    return summarise(pd.DataFrame(rows))


def styles(figure: Figure) -> dict[str, set[tuple[object, ...]]]:
    """Every style of each line's name, over all panels."""
    found: dict[str, set[tuple[object, ...]]] = {}
    for line in itertools.chain.from_iterable(axes.get_lines() for axes in figure.axes):
        style = to_hex(line.get_color()), line.get_marker(), line.get_fillstyle(), line._unscaled_dash_pattern
        found.setdefault(str(line.get_label()), set()).add((*style[:3], str(style[3])))
    return found


def test_reference_is_looked_at_closely_beside_three_mask_policies() -> None:
    of_others = [fit(mask, "medfocus", 1.0, s, 15) for mask in ("box", "top1") for s in (0, 1, 2)]
    of_others += [fit("box", "masked", 1.0, s, 14) for s in (0, 1, 2)]
    scores = pd.concat([study(), pd.DataFrame(of_others)], ignore_index=True)
    found = chosen(probabilities(answers(scores)), summarise(scores))
    assert found == [("box", "medfocus"), ("top1", "medfocus"), ("union", "medfocus"), ("", "original")]


def test_constant_is_not_looked_at_closely_and_two_methods_are_enough() -> None:
    assert chosen(probabilities(answers(study())), summarise(study())) == [("union", "medfocus"), ("", "original")]


@pytest.mark.parametrize("masks", [("union",), POLICIES, tuple("abcdefgh")], ids=["one", "three", "eight"])
def test_every_method_and_mask_is_drawn_in_a_style_of_its_own(masks: tuple[str, ...]) -> None:
    summary = summary_of(masks, (*MASKED, *UNMASKED))
    found = styles(learning_curve(summary))
    assert len(found) == len(summary[["mask", "method"]].drop_duplicates())
    assert all(len(of_one) == 1 for of_one in found.values()), "the same in every panel"
    assert len(set().union(*found.values())) == len(found)
    shapes = {name: next(iter(style))[1::2] for name, style in found.items()}
    assert shapes[f"roi, mask {masks[0]}"] == shapes[f"roi, mask {masks[-1]}"] != shapes[f"ring, mask {masks[0]}"]


def test_many_methods_stand_in_rows_with_what_they_are_measured_by() -> None:
    summary = summary_of(("union",), (*MASKED, *UNMASKED))
    rows = rows_of_methods(summary)
    assert len(rows) == len(learning_curve(summary).axes) == 2
    assert all(len(row) <= 9 and {"original", "constant"} <= set(row) for row in rows)
    assert set().union(*rows) == {*MASKED, *UNMASKED}


def test_page_draws_all_methods_and_says_where_they_stand_in_rows() -> None:
    more = [fit("union", f"view-{n:02}", f, s, n) for n in range(12) for f in (0.1, 1.0) for s in (0, 1, 2)]
    html = page(scores=pd.concat([study(), pd.DataFrame(more)], ignore_index=True))
    assert "methods stand in several rows" in html
    assert "are not drawn" not in html
    assert "methods stand in several rows" not in page()


def test_line_that_one_panel_alone_has_is_in_the_legend() -> None:
    shots = study().query("method == 'original'").assign(method="coop", training="4-shot")
    figure = learning_curve(summarise(pd.concat([study(), shots], ignore_index=True)))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["constant", "coop", "medfocus, mask union", "original"]


@pytest.mark.parametrize("masks", [("union",), POLICIES], ids=["one", "three"])
def test_nothing_of_a_figure_is_cut_off(masks: tuple[str, ...]) -> None:
    scores = pd.concat([study(), *(pd.DataFrame([fit(m, "masked", 1.0, s, 14) for s in range(3)]) for m in masks)])
    scores = scores.reset_index(drop=True)
    kept: list[Figure] = []

    def save(figure: Figure) -> dict[str, bytes]:
        kept.append(figure)
        return figure_bytes(figure)

    Findings.of(data(scores=scores, answers=answers(scores), probabilities=probabilities(answers(scores))), save=save)
    assert len(kept) == 5
    for figure in kept:
        width, height = figure.get_size_inches()
        box = figure.get_tightbbox()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0
