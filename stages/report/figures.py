"""The learning curve, and thumbnails as data URIs; matplotlib's object interface only, so no global state."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stages.images import OVERLAY_COLOUR, letterbox, outline
from stages.report.line_styles import WITHOUT_MASK, LineStyle, line_styles
from stages.report.tables import amount, amounts, by_kind

BRIGHT: Final = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
"""The same palette's colours that stand out on dark images."""
MOST_METHODS: Final = 9
"""Methods of a row of panels, those that stand in every row included; more would hide each other."""
MOST_LINES: Final = 14
"""Lines of a row, about: a method under all its masks stays together."""
THUMBNAIL_PX: Final = 224
QUALITY: Final = {"quality": 68, "method": 2}
"""Of thumbnails as WebP: half the bytes of a JPEG that looks alike."""


def learning_curve(summary: pd.DataFrame) -> Figure:
    """Accuracy against training data: a line for each method and mask, a band of one standard deviation over seeds.

    Shots, where there are some, in a panel of their own; many methods in several rows of panels, see `rows_of_methods`.

    Parameters
    ----------
    summary : DataFrame
        What `tables.summarise` returns.

    Returns
    -------
    Figure
        With an Agg canvas; no window, no pyplot.
    """
    kinds, rows = by_kind(summary), rows_of_methods(summary)
    styles = line_styles(list(dict.fromkeys(zip(summary["mask"], summary["method"], strict=True))))
    figure = Figure(figsize=(3.4 + 4.6 * len(kinds), 4.8 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0] if len(rows) > 1 else [figure]
    for part, methods in zip(parts, rows, strict=True):
        shown: dict[str, Artist] = {}
        for axes, points in zip(part.subplots(1, len(kinds), squeeze=False, sharey=True)[0], kinds, strict=True):
            shown |= _draw_curves(axes, points, methods, styles)
        part.axes[0].set_ylabel("test accuracy in %: mean, band ± 1 sd over seeds")
        part.legend(shown.values(), shown.keys(), loc="outside right center", frameon=False, handlelength=3)
    lows, highs = zip(*(axes.get_ylim() for axes in figure.axes), strict=True)
    for axes in figure.axes:
        axes.set_ylim(min(lows), max(highs))
    return figure


def rows_of_methods(summary: pd.DataFrame) -> list[list[str]]:
    """Methods of each row of panels: all are drawn, and `original` and `constant` stand in every row."""
    pairs = summary[["mask", "method"]].drop_duplicates()
    methods = list(dict.fromkeys(pairs["method"]))
    always = [method for method in methods if method in WITHOUT_MASK]
    others = [method for method in methods if method not in WITHOUT_MASK]
    by_methods = math.ceil(len(others) / (MOST_METHODS - len(WITHOUT_MASK)))
    by_lines = math.ceil((len(pairs) - len(always)) / (MOST_LINES - len(WITHOUT_MASK)))
    rows = max(1, by_methods, min(by_lines, len(others)))
    parts = [others[len(others) * k // rows : len(others) * (k + 1) // rows] for k in range(rows)]
    return [[method for method in methods if method in {*part, *always}] for part in parts]


def _draw_curves(
    axes: Axes, points: pd.DataFrame, methods: Sequence[str], styles: Mapping[tuple[str, str], LineStyle]
) -> dict[str, Artist]:
    """One panel: its lines by their names; styles are those of the whole summary, the same in every panel."""
    lines: dict[str, Artist] = {}
    chosen = points[points["method"].isin(methods)]
    for (mask, method), line_points in chosen.groupby(["mask", "method"], sort=False):
        style = styles[str(mask), str(method)]
        mean, sd = (line_points[c] * 100 for c in ("accuracy_mean", "accuracy_sd"))
        x = line_points["training"].map(amount).str[1]
        name = f"{method}, mask {mask}" if mask else str(method)
        (line,) = axes.plot(x, mean, color=style.colour, marker=style.marker or None, linestyle=style.dashes)
        line.set(label=name, linewidth=1.8, fillstyle=style.fill)
        lines[name] = line
        if len(x) > 1:
            axes.fill_between(x, mean - sd.fillna(0), mean + sd.fillna(0), color=style.colour, alpha=0.1, linewidth=0)
        else:
            axes.errorbar(x, mean, yerr=sd.fillna(0), color=style.colour, capsize=4)
    _scale(axes, points)
    return lines


def _scale(axes: Axes, points: pd.DataFrame) -> None:
    """The logarithmic axis of the amounts of training data."""
    share, _ = amount(points["training"].iloc[0])
    axes.set_xlabel(f"{'share of the training data' if share else 'training images a class'} (logarithmic)")
    axes.set_xscale("log")
    axes.set_xticks([amount(text)[1] for text in amounts(points)], [t.removesuffix("-shot") for t in amounts(points)])
    axes.set_xticks([], minor=True)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def figure_bytes(figure: Figure) -> dict[str, bytes]:
    """A figure as `png` (150 dots an inch) and `svg`, the same bytes for the same figure, with the same layout."""
    for _ in range(2):  # square panels find their places the second time
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    found = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        out = io.BytesIO()
        with rc_context({"svg.hashsalt": "report"}):
            figure.savefig(out, format=kind, dpi=150, metadata=metadata)
        found[kind] = out.getvalue()
    return found


def outlined(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An image with the mask's edge drawn on it, at the thumbnail's size.

    Parameters
    ----------
    image : ndarray of uint8, (S, S, 3)
        RGB canvas.
    mask : ndarray of bool, (S, S)
        Mask on the same canvas.

    Returns
    -------
    ndarray of uint8, (THUMBNAIL_PX, THUMBNAIL_PX, 3)
    """
    small, _ = letterbox(image, THUMBNAIL_PX)
    edge = outline(letterbox(mask, THUMBNAIL_PX)[0])
    out: NDArray[np.uint8] = small.copy()
    out[edge] = OVERLAY_COLOUR
    return out


def proposed(image: NDArray[np.uint8], candidates: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An image with the edges of all candidates drawn on it, the surest on top, at the thumbnail's size.

    Parameters
    ----------
    image : ndarray of uint8, (S, S, 3)
        RGB canvas.
    candidates : ndarray of bool, (k, THUMBNAIL_PX, THUMBNAIL_PX)
        The surest first.

    Returns
    -------
    ndarray of uint8, (THUMBNAIL_PX, THUMBNAIL_PX, 3)
    """
    small, _ = letterbox(image, THUMBNAIL_PX)
    out: NDArray[np.uint8] = small.copy()
    for turn in reversed(range(len(candidates))):
        out[outline(candidates[turn], 1)] = _rgb(BRIGHT[turn % len(BRIGHT)])
    return out


def heated(image: NDArray[np.uint8], values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image in grey under a map of where a classifier looked, at the thumbnail's size.

    The colours (`inferno`) grow lighter with the value, so that they are read in grey and by every colour vision.

    Parameters
    ----------
    image : ndarray of uint8, (S, S, 3)
        RGB canvas.
    values : ndarray of float32, (THUMBNAIL_PX, THUMBNAIL_PX)
        In [0, 1].

    Returns
    -------
    ndarray of uint8, (THUMBNAIL_PX, THUMBNAIL_PX, 3)
    """
    grey = letterbox(image, THUMBNAIL_PX)[0].mean(axis=2, keepdims=True)
    share = 0.25 + 0.5 * values[..., None]
    mixed = (1 - share) * grey + share * 255 * colormaps["inferno"](values)[..., :3]
    out: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return out


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))


def thumbnail_uri(image: NDArray[np.uint8]) -> str:
    """An RGB canvas, (S, S, 3) uint8, as a small WebP inside a data URI; pixels alone, no metadata."""
    small, _ = letterbox(image, THUMBNAIL_PX)
    out = io.BytesIO()
    Image.fromarray(small).save(out, format="WEBP", **QUALITY)
    return data_uri(out.getvalue(), "image/webp")


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
