"""The learning curve, and thumbnails as data URIs; matplotlib's object interface only, so no global state."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from stages.images import OVERLAY_COLOUR, letterbox, outline
from stages.report.tables import amount, amounts, by_kind

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), told apart by every common kind of colour vision."""
BRIGHT: Final = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7")
"""The same palette's colours that stand out on dark images."""
WITHOUT_MASK: Final = {"original": ("#000000", "s", "-"), "constant": ("#777777", "", ":")}
"""Colour, marker and line of the methods that see no mask."""
MARKERS: Final = {"medfocus": ("o", "-"), "masked": ("^", "--")}
"""Marker and line by method; the colour is the mask's."""
MOST_LINES: Final = 9
"""Methods in a figure."""
MORE_MARKERS: Final = ("o", "^", "D", "v", "P", "X", "<", ">")
"""Markers by method where there is one mask policy."""
THUMBNAIL_PX: Final = 224
QUALITY: Final = {"quality": 68, "method": 2}
"""Of thumbnails as WebP: half the bytes of a JPEG that looks alike."""


def learning_curve(summary: pd.DataFrame) -> Figure:
    """Accuracy against training data: a line for each method and mask, a band of one standard deviation over seeds.

    Shots, where there are some, in a panel of their own.

    Parameters
    ----------
    summary : DataFrame
        What `tables.summarise` returns.

    Returns
    -------
    Figure
        With an Agg canvas; no window, no pyplot.
    """
    summary = summary[summary["method"].isin(drawn(summary))]
    panels = by_kind(summary)
    figure = Figure(figsize=(3.4 + 4.6 * len(panels), 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, points in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        _draw_curves(axes, summary, points)
        share, _ = amount(points["training"].iloc[0])
        axes.set_xlabel(f"{'share of the training data' if share else 'training images a class'} (logarithmic)")
    figure.axes[0].set_ylabel("test accuracy in %: mean, band ± 1 sd over seeds")
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def drawn(summary: pd.DataFrame) -> list[str]:
    """Methods that the curve shows: at most `MOST_LINES`, the rest would hide each other."""
    methods = list(dict.fromkeys(summary["method"]))
    always = [m for m in ("medfocus", *WITHOUT_MASK) if m in methods]
    means = summary.groupby("method")["accuracy_mean"].mean()
    best = sorted(set(methods) - set(always), key=lambda m: (-means[m], m))[: MOST_LINES - len(always)]
    return [m for m in methods if m in {*always, *best}]


def _draw_curves(axes: Axes, summary: pd.DataFrame, points: pd.DataFrame) -> None:
    """One panel; styles are those of the whole summary, so that a method looks the same in every panel."""
    masks = [m for m in dict.fromkeys(summary["mask"]) if m]
    methods = [m for m in dict.fromkeys(summary["method"]) if m not in WITHOUT_MASK]
    for (mask, method), line_points in points.groupby(["mask", "method"], sort=False):
        colour, marker, line = _style(str(method), str(mask), masks, methods)
        mean, sd = (line_points[c] * 100 for c in ("accuracy_mean", "accuracy_sd"))
        x = line_points["training"].map(amount).str[1]
        name = f"{method}, mask {mask}" if mask else str(method)
        axes.plot(x, mean, color=colour, marker=marker or None, linestyle=line, label=name, linewidth=1.8)
        if len(x) > 1:
            axes.fill_between(x, mean - sd.fillna(0), mean + sd.fillna(0), color=colour, alpha=0.13, linewidth=0)
        else:
            axes.errorbar(x, mean, yerr=sd.fillna(0), color=colour, capsize=4)
    axes.set_xscale("log")
    axes.set_xticks([amount(text)[1] for text in amounts(points)], [t.removesuffix("-shot") for t in amounts(points)])
    axes.set_xticks([], minor=True)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as `png` (150 dots an inch) or `svg`, the same bytes for the same figure."""
    out = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "report"}):
        figure.savefig(out, format=kind, dpi=150, metadata=metadata)
    return out.getvalue()


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


def _style(method: str, mask: str, masks: list[str], methods: list[str]) -> tuple[str, str, Any]:
    if method in WITHOUT_MASK:
        return WITHOUT_MASK[method]
    marker, line = MARKERS.get(method, ("D", "-."))
    if len(masks) == 1:
        # One policy: colours tell methods apart instead.
        turn = methods.index(method)
        return COLOURS[turn % len(COLOURS)], MORE_MARKERS[turn % len(MORE_MARKERS)], line
    return COLOURS[masks.index(mask) % len(COLOURS)] if mask in masks else "#444444", marker, line
