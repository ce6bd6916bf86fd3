"""Where images lie among each other: views projected to the plane, what lies far off, and labels to look at again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stages.features import unit_rows
from stages.report.drawn_names import DrawnNames
from stages.report.figures import data_uri
from stages.report.line_styles import COLOURS
from stages.report.plots import Plot, name_plainly

PERPLEXITY: Final = 30
STEPS: Final = 500
"""Of the projection: half as many as usual, in half the time; trustworthiness of 10 neighbours 0.934, not 0.937."""
COMPONENTS: Final = 50
"""Principal components that the projection starts from."""
NEIGHBOURS: Final = 10
"""Nearest images of other groups, at most, that are asked for an image's distance and label."""
DISSENT: Final = 0.9
"""Share of the neighbours with one other label from which on a label is doubted."""
LISTED: Final = 12
"""Images of a list at most."""
LEAST_SPREAD: Final = 1e-7
"""Range of some entry of the unit vectors below which a view's images do not differ."""
COLUMNS: Final = 40
"""Thumbnails in a row of the atlas."""
MARKERS: Final = {"train": "o", "val": "^", "test": "s", "none": "x"}


@dataclass(frozen=True, slots=True)
class MapPoints:
    """Images of the map, n in all."""

    images: Sequence[str]
    """image_id of each."""
    labels: Sequence[str]
    splits: Sequence[str]
    groups: Sequence[str]
    vectors: Mapping[str, NDArray[np.float32]]
    """(n, D) of each view that is shown, by its name."""
    thumbnails: NDArray[np.uint8]
    """(n, T, T), grey."""
    n_all: int
    """Images that could be shown; more than n where some were left out."""

    def __len__(self) -> int:
        return len(self.images)


def differs(vectors: NDArray[np.float32]) -> bool:
    """Whether the directions of vectors, (n, D), differ, so that they have places on a map."""
    return bool(np.ptp(unit_rows(vectors), axis=0).max() >= LEAST_SPREAD)


def project(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of unit vectors, (n, D) -> (n, 2); the same for equal vectors.

    The distance between far groups, and the size of a group, mean nothing in it; which images are neighbours does.

    Raises
    ------
    ValueError
        If the vectors do not differ: the projection divides by their spread, and its compiled part dies of the result.
    """
    if not differs(vectors):
        raise ValueError(f"vectors: expected directions that differ by {LEAST_SPREAD} or more in some entry, got equal")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    scaled = unit_rows(vectors)
    n, width = scaled.shape
    reduced = PCA(min(COMPONENTS, n, width), random_state=0).fit_transform(scaled)
    if reduced.shape[1] == 1:
        reduced = np.pad(reduced, ((0, 0), (0, 1)))  # the projection starts from two
    perplexity = min(PERPLEXITY, max(1.0, (n - 1) / 3))
    projection = TSNE(perplexity=perplexity, init="pca", max_iter=STEPS, random_state=0)
    # Threads that meet after each of its short steps are slower than one wherever cores are shared.
    with threadpool_limits(1):
        placed: NDArray[np.float64] = projection.fit_transform(reduced)
    return placed


def neighbourhood(points: MapPoints, view: str) -> pd.DataFrame:
    """Distance and labels of the nearest images of other groups, for every image.

    Returns
    -------
    DataFrame
        `image`, `split`, `label`; `distance`, one minus the cosine to the tenth nearest image of another group, to the
        farthest where there are fewer, infinite where there is none; and of the ten nearest of them that have a label,
        or as many as there are: `counted`, how many they are, `neighbours`, their most frequent label, empty where none
        is counted, and `share`, how frequent it is.
    """
    scaled = unit_rows(points.vectors[view])
    distances = 1 - scaled @ scaled.T
    groups = np.array(points.groups)
    distances[groups[:, None] == groups[None, :]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")
    labels = np.array(points.labels, dtype=object)
    rows = []
    for index, ranked in enumerate(order):
        others = ranked[np.isfinite(distances[index, ranked])]
        far = float(distances[index, others[:NEIGHBOURS][-1]]) if len(others) else np.inf
        told = points.images[index], points.splits[index], points.labels[index]
        rows.append((*told, far, *_most_frequent(labels[others[labels[others] != ""][:NEIGHBOURS]])))
    return pd.DataFrame(rows, columns=["image", "split", "label", "distance", "counted", "neighbours", "share"])


def _most_frequent(labels: NDArray[np.object_]) -> tuple[int, str, float]:
    """How many labels there are, the most frequent one, and its share."""
    if not len(labels):
        return 0, "", 0.0
    names, counts = np.unique(labels.astype(str), return_counts=True)
    top = int(counts.argmax())
    return len(labels), str(names[top]), float(counts[top]) / len(labels)


def outliers(found: pd.DataFrame) -> pd.DataFrame:
    """The images farthest from all others, farthest first."""
    reachable: pd.DataFrame = found[np.isfinite(found["distance"])]
    return reachable.sort_values(["distance", "image"], ascending=[False, True]).head(LISTED).reset_index(drop=True)


def doubted(found: pd.DataFrame) -> pd.DataFrame:
    """Images nine in ten of whose neighbours carry one other label: mistakes, or cases that look like that class."""
    contradicted = (found["counted"] > 0) & (found["neighbours"] != found["label"]) & (found["share"] >= DISSENT)
    other: pd.DataFrame = found[(found["label"] != "") & contradicted]
    return other.sort_values(["share", "image"], ascending=[False, True]).head(LISTED).reset_index(drop=True)


def map_plot(points: MapPoints, places: Mapping[str, NDArray[np.float64]], classes: Sequence[str]) -> Plot:
    """The map for print: a panel a view, colours by class, markers by split."""
    figure = Figure(figsize=(5.2 * len(places), 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    labels, splits = np.array(points.labels, dtype=object), np.array(points.splits, dtype=object)
    shown = [name for name in (*classes, "") if (labels == name).any()]
    frames = []
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    for axes, (view, place) in zip(panels, places.items(), strict=True):
        for turn, name in enumerate(shown):
            for split, marker in MARKERS.items():
                inside = (labels == name) & (splits == split)
                filled = COLOURS[turn % len(COLOURS)] if split == "test" or marker == "x" else "none"
                style: dict[str, Any] = {"edgecolors": COLOURS[turn % len(COLOURS)]} if marker != "x" else {}
                axes.scatter(*place[inside].T, s=14, marker=marker, c=filled, linewidths=0.8, **style)
        axes.set_title(view, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
        numbers = {"view": view, "image": points.images, "split": splits, "label": labels}
        frames.append(pd.DataFrame({**numbers, "x": place[:, 0], "y": place[:, 1]}))
    drawn = DrawnNames.of(classes)
    names = {**dict(zip(classes, drawn.names, strict=True)), "": "(no label)"}
    handles = [panels[0].scatter([], [], c=COLOURS[turn % len(COLOURS)]) for turn in range(len(shown))]
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": 4, "frameon": False, "fontsize": 8}
    name_plainly(figure.legend(handles, [names[name] for name in shown], **where))
    text = (
        "Each point is an image, neighbours look alike to the encoder (t-SNE). Filled squares: test; hollow circles: "
        "training. "
        "Classes that lie apart are easy to tell; distances between groups mean nothing."
    )
    text += drawn.key
    for view in (view for view in points.vectors if view not in places):
        text += f" The view {view} is not on the map: its vectors of all images are equal."
    return Plot("embedding_map", "How the encoder sees the images", text, figure, pd.concat(frames, ignore_index=True))


def atlas(points: MapPoints) -> tuple[str, int]:
    """All thumbnails as one JPEG in a data URI, forty in a row, and their side in pixels."""
    side = points.thumbnails.shape[1]
    rows = -(-len(points) // COLUMNS)
    sheet = np.zeros((rows * side, COLUMNS * side), dtype=np.uint8)
    for index, thumbnail in enumerate(points.thumbnails):
        y, x = divmod(index, COLUMNS)
        sheet[y * side : (y + 1) * side, x * side : (x + 1) * side] = thumbnail
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, format="JPEG", quality=82)
    return data_uri(out.getvalue(), "image/jpeg"), side
