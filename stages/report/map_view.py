"""The map as the page shows it: points that a pointer or the keyboard can visit, each with its thumbnail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stages.report import tables
from stages.report.embedding_map import MapPoints, atlas, differs, doubted, map_plot, neighbourhood, outliers, project
from stages.report.line_styles import COLOURS
from stages.report.plots import Plot
from stages.report.tables import Table

COLUMNS = ("image", "split", "label", "distance")
DOUBTED = ("image", "split", "label", "neighbours", "share", "counted")


Places = Mapping[str, NDArray[np.float64]]
"""(n, 2) of each view on the map."""


def places_of(points: MapPoints) -> Places:
    """Project every view whose vectors differ."""
    return {view: project(vectors) for view, vectors in points.vectors.items() if differs(vectors)}


@dataclass(frozen=True, slots=True)
class Map:
    """What the page needs."""

    plot: Plot
    """The same for print."""
    content: Markup
    """JSON: views with places in [0, 1], images, labels, splits, colours, and where thumbnails lie in the atlas."""
    atlas: str
    """Data URI of all thumbnails."""
    view: str
    """The first view on it, by which outliers and doubted labels are found."""
    left_out: int
    """Images that are not on the map."""
    outliers: Table
    doubted: Table | None
    """None where no label is doubted."""

    @classmethod
    def of(cls, points: MapPoints, places: Places, classes: Sequence[str]) -> Map | None:
        """Draw the places, and look at each image's neighbours in the first view.

        Returns
        -------
        Map or None
            None if the vectors differ in no view.
        """
        if not places:
            return None
        first = next(iter(places))
        found = neighbourhood(points, first)
        far = outliers(found).assign(distance=lambda rows: rows["distance"].map("{:.3f}".format))
        doubts = doubted(found).assign(share=lambda rows: rows["share"].map("{:.2f}".format))
        sheet, side = atlas(points)
        return cls(
            plot=map_plot(points, places, classes),
            content=_content(points, places, classes, side),
            atlas=sheet,
            view=first,
            left_out=points.n_all - len(points),
            outliers=tables.plain(far, COLUMNS, names=3),
            doubted=tables.plain(doubts, DOUBTED, names=4) if len(doubts) else None,
        )


def _content(points: MapPoints, places: Places, classes: Sequence[str], side: int) -> Markup:
    names = [*classes, *sorted(set(points.labels) - set(classes))]
    content: dict[str, Any] = {
        "views": {view: _unit(place).round(4).tolist() for view, place in places.items()},
        "images": list(points.images),
        "labels": [names.index(label) for label in points.labels],
        "names": [name or "(no label)" for name in names],
        "splits": list(points.splits),
        "colours": [COLOURS[index % len(COLOURS)] for index in range(len(names))],
        "side": side,
    }
    # Inside a script element only "<" could end it.
    return Markup(json.dumps(content).replace("<", "\\u003c"))  # noqa: S704


def _unit(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places scaled into the unit square."""
    low, high = place.min(axis=0), place.max(axis=0)
    scaled: NDArray[np.float64] = (place - low) / np.maximum(high - low, 1e-12)
    return scaled
