"""How large masks are, how sure the segmenter was of them, and how well they agree with supplied ones, by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from stages.report.drawn_names import DrawnNames
from stages.report.line_styles import COLOURS
from stages.report.plots import Plot

MEASURES: Final = {
    "area": "share of the image's area in %",
    "score": "predicted IoU times stability",
    "iou": "IoU with the supplied mask",
}
QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
COLUMNS: Final = ("mask", "class", "measure", "n", *(f"p{100 * q:.0f}" for q in QUANTILES))


def spread(masks: pd.DataFrame) -> pd.DataFrame:
    """Quantiles of each measure of usable masks by policy and class, with `COLUMNS`; area in percent.

    Parameters
    ----------
    masks : DataFrame
        With `stages.report.data.MASK_COLUMNS`.
    """
    usable = masks[masks["status"] == "ok"].assign(area=lambda frame: 100 * frame["area"])
    rows = []
    for (mask, label), found in usable.groupby(["mask", "class"], sort=False):
        for measure in MEASURES:
            values = found[measure].dropna()
            if len(values):
                rows.append((mask, label, measure, len(values), *values.quantile(list(QUANTILES))))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def mask_plot(masks: pd.DataFrame, classes: Sequence[str]) -> Plot | None:
    """A row for each policy, a column for each measure, a box for each class; None where no mask is usable."""
    found = spread(masks)
    if found.empty:
        return None
    policies, measures = list(dict.fromkeys(found["mask"])), [m for m in MEASURES if (found["measure"] == m).any()]
    shown = DrawnNames.of(classes)
    names = {**dict(zip(classes, shown.names, strict=True)), "": "(no label)"}
    labels = [label for label in (*classes, "") if (found["class"] == label).any()]
    size = 1.6 + 3.2 * len(measures), 0.5 + len(policies) * (0.75 + 0.3 * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(policies), len(measures), squeeze=False, sharey=True, sharex="col")
    for policy, line in zip(policies, panels, strict=True):
        for measure, axes in zip(measures, line, strict=True):
            _boxes(axes, found[(found["mask"] == policy) & (found["measure"] == measure)], labels)
            _name_rows(axes, [names[label] for label in labels])
        line[0].set_ylabel(f"mask {policy}", fontsize=8)
    for measure, axes in zip(measures, panels[-1], strict=True):
        axes.set_xlabel(MEASURES[measure], fontsize=8)
        axes.set_xlim(0, 100 if measure == "area" else 1)
    text = (
        "Usable masks of all splits by class: median, middle half, and 5 to 95 %. Where classes differ much, a "
        "classifier can read them off the mask alone; compare the control shape."
    )
    text += shown.key
    return Plot("masks", "How large are the masks, and how sure?", text, figure, found)


def _boxes(axes: Axes, found: pd.DataFrame, labels: Sequence[str]) -> None:
    for row in found.to_dict("records"):
        y = len(labels) - 1 - labels.index(row["class"])
        axes.plot([row["p5"], row["p95"]], [y, y], color=COLOURS[0], linewidth=1.2)
        axes.plot([row["p25"], row["p75"]], [y, y], color=COLOURS[0], linewidth=7, solid_capstyle="butt", alpha=0.55)
        axes.plot([row["p50"]], [y], "|", color="black", markersize=11, markeredgewidth=2)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names[::-1], fontsize=8, parse_math=False)
