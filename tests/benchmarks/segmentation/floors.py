"""What a trained segmenter has to beat: an untrained one, Otsu's threshold, and the ellipse in the box."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label
from torch import nn

from stages.models.sam2 import Segmenter, assemble
from stages.models.sam2_card import sam2_entry, segmenter_card
from stages.models.sam2_lite0 import trained_parts
from stages.models.weights import WeightsFolder

SIDES: Final = ("dark", "bright")
"""Below Otsu's threshold, and above."""


def untrained_segmenter(name: str) -> Segmenter:
    """Load a model, and put neck, prompt encoder and mask decoder back to a seeded random start; the trunk stays.

    Parameters
    ----------
    name : str
        Name in the registry.

    Returns
    -------
    Segmenter
        On the CPU, in float32.

    Raises
    ------
    WeightsError
        If the model is unknown or no SAM2, or its weights are missing, altered or of another architecture.
    """
    known = sam2_entry(name)
    path = None if known.source == "random" else WeightsFolder().verified_path(name)
    network = assemble(known, path)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for module in trained_parts(network).modules():
            _restart(module)
    return Segmenter(known, network, segmenter_card(name, "float32"), "cpu")


def _restart(module: nn.Module) -> None:
    """Draw a layer's own weights anew, as its constructor does."""
    own = dict(module.named_parameters(recurse=False))
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
    elif own.keys() == {"weight", "bias"}:  # the package's own LayerNorm2d
        own["weight"].fill_(1)
        own["bias"].zero_()
    elif own:
        raise TypeError(f"{type(module).__name__}: its start is not known, so that an untrained model cannot be made")


def otsu_threshold(values: NDArray[np.uint8]) -> int:
    """Grey value that parts dark from bright with the greatest variance between both (Otsu 1979, equation 18).

    Parameters
    ----------
    values : ndarray of uint8, any shape
        At least one pixel.

    Returns
    -------
    int
        The last dark value.
    """
    share = np.bincount(values.ravel(), minlength=256) / values.size
    dark, moment = np.cumsum(share), np.cumsum(share * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (moment[-1] * dark - moment) ** 2 / (dark * (1 - dark))
    return int(np.nan_to_num(between, posinf=0).argmax())


def otsu_at_click(
    grey: NDArray[np.uint8], content: NDArray[np.bool_], click: NDArray[np.float32]
) -> dict[str, NDArray]:
    """Connected piece at the click, of the dark and of the bright part of the image.

    Parameters
    ----------
    grey : ndarray of uint8, (S, S)
        Canvas.
    content : ndarray of bool, (S, S)
        Where the image lies in it; the padding does not move the threshold.
    click : ndarray of float32, (2,)
        x, y.

    Returns
    -------
    dict[str, ndarray of bool, (S, S)]
        By side; empty where the click lies on the other side.
    """
    x, y = (int(v) for v in click)
    masks = {}
    for side, part in _parted(grey, otsu_threshold(grey[content])).items():
        pieces, _ = label(part & content)
        masks[side] = (pieces == pieces[y, x]) & (pieces > 0)
    return masks


def otsu_in_box(grey: NDArray[np.uint8], box: NDArray[np.float32]) -> dict[str, NDArray]:
    """Largest connected piece in the box, of its dark and of its bright part.

    Parameters
    ----------
    grey : ndarray of uint8, (S, S)
        Canvas.
    box : ndarray of float32, (2, 2)
        Upper left and lower right corner, x, y, the latter exclusive.

    Returns
    -------
    dict[str, ndarray of bool, (S, S)]
        By side; empty where the box has one grey value.
    """
    (x0, y0), (x1, y1) = box.astype(int)
    inside = grey[y0:y1, x0:x1]
    masks = {}
    for side, part in _parted(inside, otsu_threshold(inside)).items():
        pieces, n = label(part)
        masks[side] = np.zeros(grey.shape, dtype=bool)
        if n:
            masks[side][y0:y1, x0:x1] = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return masks


def ellipse_in_box(box: NDArray[np.float32], canvas_px: int) -> NDArray[np.bool_]:
    """Ellipse that touches all four sides of a box, (canvas_px, canvas_px) bool.

    Parameters
    ----------
    box : ndarray of float32, (2, 2)
        Upper left and lower right corner, x, y, the latter exclusive.
    canvas_px : int
        S, side of the canvas, in pixels.

    Returns
    -------
    ndarray of bool, (S, S)
        Pixels whose middle lies in the ellipse.
    """
    middles = np.arange(canvas_px) + 0.5
    x, y = ((middles - box[:, axis].mean()) / np.ptp(box[:, axis]) * 2 for axis in (0, 1))
    ellipse: NDArray[np.bool_] = x[None] ** 2 + y[:, None] ** 2 <= 1
    return ellipse


def _parted(grey: NDArray[np.uint8], threshold: int) -> dict[str, NDArray[np.bool_]]:
    return dict(zip(SIDES, (grey <= threshold, grey > threshold), strict=True))
