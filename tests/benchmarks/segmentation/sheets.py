"""Contact sheets: what the model makes of images, for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.images import composite, outline
from stages.masks.policies import ImageProposals, finish, union
from stages.masks.settings import MasksSettings
from stages.models.sam2 import Segmenter
from stages.proposals.settings import ProposalsSettings
from tests.benchmarks.segmentation.cases import Case
from tests.benchmarks.segmentation.masks import prompted, proposals_of

IMAGES: Final = 24
"""On one sheet."""
COLUMNS: Final = 4
PANEL_PX: Final = 224
"""Side of one picture; each image has two."""
LINE: Final = 1 / 128
"""Width of an outline, as a share of the canvas: thin lines vanish when the sheet is made small."""
WHITE: Final = (255, 255, 255)
PROMPT_COLOURS: Final = {"click": (0, 200, 255), "box": (255, 80, 220)}
PROPOSAL_COLOURS: Final = (
    (0, 200, 255),
    (255, 80, 220),
    (120, 230, 80),
    (255, 90, 60),
    (120, 130, 255),
    (255, 240, 90),
)


def draw_sheet(model: Segmenter, settings: ProposalsSettings, cases: Sequence[Case]) -> Image.Image:
    """Draw two pictures of every image, side by side.

    Left the first object in white, the click and its mask in cyan, the box and its mask in pink; right the outlines of
    all proposals over the mask of policy `union` in amber.

    Parameters
    ----------
    model : Segmenter
        Makes the masks.
    settings : ProposalsSettings
        Of the pipeline.
    cases : Sequence[Case]
        At least one; where nothing is outlined the left picture is the image alone.

    Returns
    -------
    PIL.Image.Image
        RGB, `COLUMNS` images wide.
    """
    rows = -(-len(cases) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * 2 * PANEL_PX, rows * PANEL_PX))
    for index, case in enumerate(cases):
        y, x = divmod(index, COLUMNS)
        pictures = _prompts(model, settings, case), _proposals(case, proposals_of(model, settings, case))
        for side, picture in enumerate(pictures):
            small = Image.fromarray(picture).resize((PANEL_PX, PANEL_PX), Image.Resampling.LANCZOS)
            sheet.paste(small, ((2 * x + side) * PANEL_PX, y * PANEL_PX))
    return sheet


def write_sheet(path: Path, model: Segmenter, settings: ProposalsSettings, cases: Sequence[Case]) -> None:
    """Write a contact sheet as PNG; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_sheet(model, settings, cases).save(path)


def _prompts(model: Segmenter, settings: ProposalsSettings, case: Case) -> NDArray[np.uint8]:
    picture, line = case.canvas.copy(), _line_px(case)
    if not len(case.truths):
        return picture
    _trace(picture, case.truths[0], WHITE, line)
    for answer in prompted(model, case, settings):
        mask = np.unpackbits(answer.taken[0], axis=-1).astype(bool)
        _trace(picture, mask, PROMPT_COLOURS[answer.prompt], line)
    (x0, y0), (x1, y1) = case.boxes()[0].astype(int)
    box = np.zeros(case.truths[0].shape, dtype=bool)
    box[y0:y1, x0:x1] = True
    _trace(picture, box, PROMPT_COLOURS["box"], line // 2)
    x, y = case.clicks()[0, 0].astype(int)
    picture[max(0, y - 2 * line) : y + 2 * line, max(0, x - 2 * line) : x + 2 * line] = PROMPT_COLOURS["click"]
    return picture


def _proposals(case: Case, proposals: ImageProposals) -> NDArray[np.uint8]:
    limits = MasksSettings(canvas_px=len(case.canvas))
    final = finish(union(proposals, limits).mask, case.placement, limits)
    picture = composite(case.canvas, final.mask, "overlay", case.placement)
    # The best proposal comes first and is drawn last, on top.
    for index in reversed(range(len(proposals.candidates))):
        mask = np.unpackbits(proposals.candidates[index], axis=-1).astype(bool)
        _trace(picture, mask, PROPOSAL_COLOURS[index % len(PROPOSAL_COLOURS)], _line_px(case))
    return picture


def _line_px(case: Case) -> int:
    return max(2, round(LINE * len(case.canvas)))


def _trace(picture: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int], line_px: int) -> None:
    picture[outline(mask, line_px)] = colour
