"""What is computed of a report's data, once for its page, its twin and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from stages.methods import FOCUS
from stages.report import figures, plots, tables
from stages.report.answer import answer_of
from stages.report.comparison import Draws, compare, near_best
from stages.report.data import ReportData
from stages.report.diagnostics import chosen
from stages.report.goal import against_baselines, distance, forms
from stages.report.map_view import Map, places_of
from stages.report.mask_figures import mask_plot
from stages.report.plots import Plot


@dataclass(frozen=True, slots=True)
class Findings:
    """What is computed of a report's data, once for the page, its twin and the files."""

    summary: pd.DataFrame
    """What `tables.summarise` makes of the scores."""
    compared: pd.DataFrame
    """What `comparison.compare` makes of the answers."""
    unflagged: pd.DataFrame
    """The same without flagged test images; empty where none is flagged, or none is left."""
    baselines: Mapping[str, pd.DataFrame]
    """What `goal.against_baselines` makes of the answers for each form of MedFocusCLIP under its first mask."""
    marks: Mapping[tuple[str, str, str], str]
    """What `comparison.near_best` makes of both."""
    plots: Sequence[Plot]
    """The learning curve first, the map last where there is one."""
    drawn: Mapping[str, Mapping[str, bytes]]
    """Each plot as `png` and `svg` by its name."""
    map: Map | None
    """What the page needs of the map beside its figure."""

    @classmethod
    def of(cls, data: ReportData, save: Callable[[Figure], Mapping[str, bytes]] = figures.figure_bytes) -> Findings:
        """Summarise, compare, draw and `save` what is drawn; the map is projected meanwhile, on a core of its own."""
        with ThreadPoolExecutor(1, "map") as pool:
            placed = pool.submit(places_of, data.points) if data.points else None
            draws, summary = Draws(), tables.summarise(data.scores)
            compared, marks = compare(data.answers, draws=draws), near_best(data.answers, summary, draws)
            unflagged = _without_flagged(data.answers)
            own = {form: _own_mask(summary, form) for form in forms(summary["method"]) or [FOCUS]}
            baselines = {form: against_baselines(data.answers, mask, draws, form) for form, mask in own.items()}
            found = _plots(data, summary, compared)
            drawn = {plot.name: save(plot.figure) for plot in found}
            mapped = Map.of(data.points, placed.result(), data.classes) if data.points and placed else None
        if mapped:
            found.append(mapped.plot)
            drawn[mapped.plot.name] = save(mapped.plot.figure)
        return cls(summary, compared, unflagged, baselines, marks, found, drawn, mapped)

    @property
    def answer(self) -> list[str]:
        """Sentences for the top."""
        told = answer_of(self.compared, self.unflagged, list(dict.fromkeys(self.summary["mask"])))
        return [*told, *self.distances[:1]]

    @property
    def distances(self) -> list[str]:
        """How far each form of MedFocusCLIP is from the goal, the plain one first."""
        told = [distance(found, _own_mask(self.summary, form), form) for form, found in self.baselines.items()]
        return [sentence for sentence in told if sentence]

    @property
    def own(self) -> tuple[str, pd.DataFrame]:
        """The first form of MedFocusCLIP with its mask, and how it compares."""
        form, found = next(iter(self.baselines.items()))
        return f"{form} (mask {_own_mask(self.summary, form)})", found


def _own_mask(summary: pd.DataFrame, form: str) -> str:
    """The first mask policy of a form of MedFocusCLIP; empty where it was not asked."""
    return next(iter(summary[summary["method"] == form]["mask"]), "")


def _plots(data: ReportData, summary: pd.DataFrame, compared: pd.DataFrame) -> list[Plot]:
    text = "Mean over seeds, band of one standard deviation."
    if len(figures.rows_of_methods(summary)) > 1:
        text += " So that lines do not hide each other, methods stand in several rows, with the reference and the "
        text += "constant class in each."
    points = ["mask", "method", "training", "seeds", "accuracy_mean", "accuracy_sd"]
    found = [Plot("learning_curve", "Learning curve", text, figures.learning_curve(summary), summary[points])]
    controls = plots.controls_plot(compared)
    found += [controls] if controls else []
    spread = mask_plot(data.masks, data.classes)
    found += [spread] if spread else []
    if pairs := chosen(data.probabilities, summary):
        drawing = (plots.confusion_plot, plots.reliability_plot, plots.roc_plot)
        found += [draw(data.probabilities, pairs, data.classes) for draw in drawing]
    return found


def _without_flagged(answers: pd.DataFrame) -> pd.DataFrame:
    """The comparison on unflagged test images alone; empty where none is flagged or none is left."""
    clean = answers[~answers["flagged"].astype(bool)]
    return compare(clean if len(clean) < len(answers) else clean.iloc[:0])
