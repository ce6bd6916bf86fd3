"""Figures of what a study's answers say: confusions, calibration, ROC curves, and controls.

Like the learning curve they are drawn by matplotlib's objects alone, on paper white, in colours that are told apart by
every common kind of colour vision and in grey; each comes with the numbers that it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend

from stages.report.diagnostics import confusion, control_rows, reliability, roc_curves
from stages.report.drawn_names import DrawnNames
from stages.report.line_styles import COLOURS
from stages.scores import CALIBRATION_BINS

DASHES: Final[tuple[Any, ...]] = ("-", "--", "-.", ":", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure, and what it shows."""

    name: str
    """Stem of its files."""
    title: str
    text: str
    """What to read from it, in a sentence or two."""
    figure: Figure
    numbers: pd.DataFrame


def confusion_plot(probabilities: pd.DataFrame, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Plot:
    """A matrix for each method: rows are true classes, in percent of the row, with the number of answers."""
    figure, axes = _panels(len(pairs), width=1.6 + 0.75 * len(classes), height=1.7 + 0.7 * len(classes))
    shown, found = DrawnNames.of(classes), []
    names = shown.names
    for panel, (mask, method) in zip(axes, pairs, strict=False):
        counts = confusion(_of(probabilities, mask, method), len(classes))
        totals = counts.sum(axis=1)
        shares = counts / np.maximum(totals[:, None], 1)
        panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), share in np.ndenumerate(shares):
            colour = "white" if share > 0.55 else "black"
            text = f"{100 * share:.0f} %\n{counts[row, column]}" if totals[row] else "–"
            panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
            found.append((mask, method, classes[row], classes[column], int(counts[row, column])))
        panel.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8, parse_math=False)
        panel.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
        panel.set_title(_title(mask, method), fontsize=9)
        panel.set_xlabel("predicted", fontsize=8)
    axes[0].set_ylabel("true class", fontsize=8)
    numbers = pd.DataFrame(found, columns=["mask", "method", "true", "predicted", "n"])
    text = "Each row is a true class and adds up to 100 %; below it the number of answers, pooled over seeds."
    if (numbers.groupby("true")["n"].sum() == 0).any():
        text += " A dash: the class has no test image."
    text += shown.key
    return Plot("confusion", "What is taken for what?", text, figure, numbers)


def reliability_plot(probabilities: pd.DataFrame, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Plot:
    """Accuracy against confidence of the predicted class; the size of a point is the share of answers."""
    figure, axes = _panels(len(pairs), width=2.9, height=3.1)
    frames = []
    for panel, (mask, method) in zip(axes, pairs, strict=False):
        bins = reliability(_of(probabilities, mask, method), classes)
        panel.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        panel.plot(bins["confidence"], bins["accuracy"], color=COLOURS[0], linewidth=1.4)
        panel.scatter(bins["confidence"], bins["accuracy"], s=12 + 300 * bins["n"] / bins["n"].sum(), color=COLOURS[0])
        panel.set_title(_title(mask, method), fontsize=9)
        panel.set_xlabel("confidence", fontsize=8)
        _unit_square(panel)
        frames.append(bins.assign(mask=mask, method=method))
    axes[0].set_ylabel("accuracy", fontsize=8)
    text = (
        "On the dotted line a probability can be taken at its word; below it the method is too sure of itself. "
        f"{CALIBRATION_BINS} bins of equal width, as for the calibration error in the table; here answers of all seeds "
        "are pooled, so the table's mean over seeds may differ a little."
    )
    return Plot("reliability", "Can its probabilities be believed?", text, figure, pd.concat(frames, ignore_index=True))


def roc_plot(probabilities: pd.DataFrame, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Plot:
    """One-vs-rest curve of every class, the mean over seeds."""
    figure, axes = _panels(len(pairs), width=2.9, height=3.4)
    shown, frames = DrawnNames.of(classes), []
    for panel, (mask, method) in zip(axes, pairs, strict=False):
        curves = roc_curves(_of(probabilities, mask, method), classes)
        panel.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        lines, named = [], []
        for index, curve in curves.groupby("class_index"):
            turn, area = int(str(index)), float(curve["auroc"].iloc[0])
            (line,) = panel.plot(curve["false_positive_rate"], curve["true_positive_rate"], linewidth=1.6)
            line.set_color(COLOURS[turn % len(COLOURS)])
            line.set_linestyle(DASHES[turn % len(DASHES)])
            lines.append(line)
            named.append(f"{shown.names[turn]}: {area:.3f}")
        panel.set_title(_title(mask, method), fontsize=9)
        panel.set_xlabel("false positive rate", fontsize=8)
        name_plainly(panel.legend(lines, named, fontsize=7, loc="lower right", frameon=False))
        _unit_square(panel)
        frames.append(curves.assign(mask=mask, method=method))
    axes[0].set_ylabel("true positive rate", fontsize=8)
    numbers = pd.concat(frames, ignore_index=True)
    numbers["class"] = numbers.pop("class_index").map(lambda index: classes[int(index)])
    text = "Each class against all others, the mean over seeds; in the legend the area under the curve."
    if without := [name for name in classes if name not in set(numbers["class"])]:
        text += f" No curve, for want of test images of the class or of others: {', '.join(without)}."
    text += shown.key
    return Plot("roc", "How well is each class told from the others?", text, figure, numbers)


def controls_plot(compared: pd.DataFrame) -> Plot | None:
    """Difference from the unmasked image of each masked view and of each control, with its interval."""
    rows = control_rows(compared)
    if rows.empty:
        return None
    amounts = list(dict.fromkeys(rows["training"]))
    names = list(dict.fromkeys(zip(rows["method"], rows["mask"], rows["control"], strict=True)))
    figure, axes = _panels(len(amounts), width=2.2, height=1.2 + 0.28 * len(names))
    reach = 105 * float(rows[["low", "high"]].abs().to_numpy().max()) or 1.0
    for panel, training in zip(axes, amounts, strict=True):
        panel.axvline(0, color="black", linewidth=1)
        for row in rows[rows["training"] == training].to_dict("records"):
            y = len(names) - 1 - names.index((row["method"], row["mask"], row["control"]))
            colour, marker = (COLOURS[1], "s") if row["control"] else (COLOURS[0], "o")
            low, high = 100 * row["low"], 100 * row["high"]
            panel.plot([low, high], [y, y], color=colour, linewidth=1.6)
            filled = colour if row["p_holm"] < 0.05 else "white"
            panel.plot(100 * row["difference"], y, marker, color=colour, markerfacecolor=filled, markersize=5.5)
        panel.set_yticks(range(len(names)), [])
        panel.set_ylim(-0.7, len(names) - 0.3)
        panel.set_xlim(-reach, reach)
        panel.tick_params(axis="x", labelsize=8)
        panel.set_title(training, fontsize=9)
        panel.grid(visible=True, axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    shown = [f"{method}, mask {mask}" for method, mask, _ in reversed(names)]
    axes[0].set_yticks(range(len(names)), shown, fontsize=8)
    figure.supxlabel("accuracy in percentage points above or below the unmasked image", fontsize=8)
    text = (
        "Round and blue: the image seen through the mask; square and red: controls, which see a wrong mask, or the "
        "outline alone. Masks help where blue lies right of zero and of the controls. Filled: Holm-corrected p < 0.05."
    )
    return Plot("controls", "Do the masks help?", text, figure, rows)


def _panels(n: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(width * n, 3.2), height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, n, squeeze=False, sharey=False)[0])


def name_plainly(legend: Legend) -> None:
    """Show names in a legend as they are: a dollar sign begins no formula."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def _of(probabilities: pd.DataFrame, mask: str, method: str) -> pd.DataFrame:
    return probabilities[(probabilities["mask"] == mask) & (probabilities["method"] == method)]


def _title(mask: str, method: str) -> str:
    return f"{method}\nmask {mask}" if mask else method


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
