"""Names of classes in figures and in the Markdown twin, whatever characters they have."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stages.report.data import MASK_COLUMNS
from stages.report.embedding_map import MapPoints, map_plot
from stages.report.figures import figure_bytes
from stages.report.markdown import plain
from stages.report.mask_figures import mask_plot
from stages.report.plots import confusion_plot, reliability_plot, roc_plot
from tests.unit.stages.test_report import answers, probabilities, study

PAIRS = [("union", "medfocus"), ("", "original")]
ODD = ("_hidden", "$x$ 肺炎")
KEY = " The figure's font lacks characters of some names: class 2 is $x$ 肺炎."


def told() -> pd.DataFrame:
    return probabilities(answers(study()))


def map_of(labels: list[str], classes: tuple[str, ...]) -> tuple[str, Figure]:
    n = len(labels)
    points = MapPoints(labels, labels, ["test"] * n, labels, {"original": np.eye(n)}, np.zeros((n, 8, 8), np.uint8), n)
    plot = map_plot(points, {"original": np.eye(n, 2)}, classes)
    return plot.text, plot.figure


def test_class_whose_name_begins_with_an_underscore_is_in_the_legends() -> None:
    classes = ("_hidden", "$b$")
    legend = roc_plot(told(), PAIRS, classes).figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().split(":")[0] for text in legend.get_texts()] == list(classes)
    _, figure = map_of(["_hidden", "$b$", ""], classes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["_hidden", "$b$", "(no label)"]
    assert not any(text.get_parse_math() for text in figure.legends[0].get_texts())


def test_name_that_the_font_cannot_draw_is_numbered_and_told() -> None:
    masks = pd.DataFrame([("union", "test", name, "ok", 0.2, 0.9, 0.8) for name in ODD], columns=list(MASK_COLUMNS))
    of_masks = mask_plot(masks, ODD)
    assert of_masks is not None
    plots = [confusion_plot(told(), PAIRS, ODD), roc_plot(told(), PAIRS, ODD), of_masks]
    shown = [(plot.text, plot.figure) for plot in plots] + [map_of([*ODD, ""], ODD)]
    for text, figure in shown:
        assert text.endswith(KEY)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert figure_bytes(figure)
    ticks = [label.get_text() for label in plots[0].figure.axes[0].get_yticklabels()]
    assert ticks == ["_hidden", "class 2"]
    assert set(plots[0].numbers["true"]) == set(ODD), "files have the names themselves"


def test_class_without_test_images_is_a_dash_and_has_no_curve() -> None:
    rows, classes = told().assign(p_2=0.0), ("a", "b", "c")
    plot = confusion_plot(rows, PAIRS, classes)
    entries = [text.get_text() for text in plot.figure.axes[0].texts]
    assert entries[-3:] == ["–"] * 3
    assert "–" not in entries[:-3]
    assert "A dash: the class has no test image." in plot.text
    assert roc_plot(rows, PAIRS, classes).text.endswith("for want of test images of the class or of others: c.")
    assert "dash" not in confusion_plot(told(), PAIRS, ("a", "b")).text
    assert "No curve" not in roc_plot(told(), PAIRS, ("a", "b")).text


def test_reliability_has_the_bins_of_the_calibration_error_and_says_what_it_pools() -> None:
    rows = told().assign(p_0=np.linspace(0.5, 1.0, len(told()))).assign(p_1=lambda frame: 1 - frame["p_0"])
    plot = reliability_plot(rows, PAIRS, ("a", "b"))
    assert np.allclose(plot.numbers["high"] - plot.numbers["low"], 1 / 15)
    assert "answers of all seeds are pooled, so the table's mean over seeds may differ a little" in plot.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@radiology $x$", "@&#8203;radiology <span>$</span>x<span>$</span>"),
        ("(@org/team) é@you", "(@&#8203;org/team) é@&#8203;you"),
        ("medfocus@roi+ring", "medfocus@roi+ring"),
        ("&#64;you", "\\&\\#64;you"),
    ],
)
def test_text_pings_nobody_and_sets_no_formula(text: str, shown: str) -> None:
    assert plain(text) == shown
