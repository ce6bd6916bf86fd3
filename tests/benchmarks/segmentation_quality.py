"""Quality of the embedded SAM2 on images that no training saw, beside floors that need no training at all.

`python -m tests.benchmarks.segmentation_quality [--json] [--model NAME] [--full] [--sheets FOLDER]`. Means of IoU on
the full canvas. `click` (in the middle of an object) takes the one of three masks with the highest predicted IoU,
`oracle` the best of them; `box` has a single mask. Of the point grid: the best proposal, and each policy's mask, where
`fallback` is the share of whole images. The sets are BUSI's test part (in MEDFOCUS_DATA, or in shared/data beside the
checkout) and synthetic scenes of a seed of their own. A box prompt that does not beat the ellipse in its box has
learned nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from manifests.errors import PipelineError
from stages.images import content
from stages.masks.policies import FROM_PROPOSALS, ImageProposals, finish
from stages.masks.ranking import Ranker
from stages.masks.settings import MasksSettings
from stages.models.sam2 import load_segmenter
from stages.proposals.settings import ProposalsSettings
from tests.benchmarks.segmentation.cases import SETS, Case, held_out_rows, real_case, set_folder, synthetic_cases
from tests.benchmarks.segmentation.floors import ellipse_in_box, otsu_at_click, otsu_in_box, untrained_segmenter
from tests.benchmarks.segmentation.masks import prompted, proposals_of
from tests.benchmarks.segmentation.scores import Measurements, iou, print_table, summary
from tests.benchmarks.segmentation.sheets import IMAGES, write_sheet

SCENES: Final = 48
GRID_EVERY: Final = 3
"""Real images for one whose grid is measured, unless --full."""


class Bench:
    """A model, its untrained counterpart, and the settings that both are measured with.

    Parameters
    ----------
    settings : ProposalsSettings
        Of the pipeline, with the model's name.
    """

    def __init__(self, settings: ProposalsSettings) -> None:
        self.settings = settings
        self.model = load_segmenter(settings.model, "cpu", settings.precision)
        self._untrained = untrained_segmenter(settings.model)
        self._ranker = Ranker(MasksSettings(canvas_px=settings.canvas_px), "cpu")
        # Thresholds suit scores that were trained: without them the floor keeps all that may be right by chance.
        self._unfiltered = settings.model_copy(update={"min_predicted_iou": 0.0, "min_stability": 0.0})

    def measure(self, cases: Iterable[Case], grid_every: int) -> Measurements:
        """Prompt every image, and every `grid_every`-th with the grid as well."""
        kept = Measurements()
        for index, case in enumerate(cases):
            self._add_prompted(case, kept)
            add_floors(case, kept)
            if index % grid_every == 0:
                proposals = proposals_of(self.model, self.settings, case)
                add_best(case, proposals, kept, "")
                add_policies(case, self._ranked(case, proposals), kept)
                add_best(case, proposals_of(self._untrained, self._unfiltered, case), kept, "untrained_")
        return kept

    def _ranked(self, case: Case, proposals: ImageProposals) -> ImageProposals:
        return replace(proposals, similarity=self._ranker.similarity(case.canvas, proposals, case.placement))

    def _add_prompted(self, case: Case, kept: Measurements) -> None:
        truths = packed(case.truths)
        for prefix, model in (("", self.model), ("untrained_", self._untrained)):
            for answer in prompted(model, case, self.settings):
                quality = np.stack([iou(three, truth) for three, truth in zip(answer.packed, truths, strict=True)])
                rows, best = np.arange(len(quality)), answer.predicted.argmax(axis=1)
                kept.add(prefix + answer.prompt, case.group, quality[rows, best])
                if not prefix:
                    kept.add(f"predicted_{answer.prompt}", case.group, answer.predicted[rows, best])
                    kept.add(f"oracle_{answer.prompt}", case.group, quality.max(axis=1))


def add_best(case: Case, proposals: ImageProposals, kept: Measurements, prefix: str) -> None:
    """Measure the best proposal of every object, 0 where there is no proposal, and count proposals."""
    best = [iou(proposals.candidates, truth).max(initial=0) for truth in packed(case.truths)]
    kept.add(f"{prefix}best_proposal", case.group, best)
    kept.add(f"{prefix}proposals", case.group, [len(proposals.candidates)])


def add_policies(case: Case, proposals: ImageProposals, kept: Measurements) -> None:
    """Measure each policy's mask, as the masks stage would store it."""
    limits = MasksSettings(canvas_px=len(case.canvas))
    for policy, choose in FROM_PROPOSALS.items():
        final = finish(choose(proposals, limits).mask, case.placement, limits)
        kept.add(f"policy_{policy}", case.group, iou(packed(final.mask)[None], packed(case.target)))
        kept.add(f"fallback_{policy}", case.group, [final.reason != ""])


def add_floors(case: Case, kept: Measurements) -> None:
    """Measure what needs no model; the whole image is the floor of the policies."""
    side = len(case.canvas)
    grey, whole = case.canvas.mean(axis=2).astype(np.uint8), content(case.placement, side)
    kept.add("whole_image", case.group, iou(packed(whole)[None], packed(case.target)))
    for truth, click, box in zip(case.truths, case.clicks()[:, 0], case.boxes(), strict=True):
        masks = {f"otsu_{name}_click": mask for name, mask in otsu_at_click(grey, whole, click).items()}
        masks |= {f"otsu_{name}_box": mask for name, mask in otsu_in_box(grey, box).items()}
        masks["ellipse_box"] = ellipse_in_box(box, side)
        for name, mask in masks.items():
            kept.add(name, case.group, iou(packed(mask)[None], packed(truth)))


def packed(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Masks as bits along x, as `iou` takes them."""
    return np.packbits(mask, axis=-1)


def run(bench: Bench, *, full: bool) -> dict[str, Any]:
    """Measure both sets and print a table of each.

    Parameters
    ----------
    bench : Bench
        The models.
    full : bool
        Grids of all real images.

    Returns
    -------
    dict[str, Any]
        The numbers that later checks rely on, None without the real set; then those of both sets.
    """
    began, side = time.perf_counter(), bench.settings.canvas_px
    busi = None
    if (set_folder("busi") / "index.csv").is_file():
        cases = (real_case("busi", row, side) for row in held_out_rows("busi"))
        busi = summary(bench.measure(cases, 1 if full else GRID_EVERY))
        print_table("BUSI, test part", busi)
    else:
        print(f"{SETS['busi']} is not here; MEDFOCUS_DATA names the folder of the image sets. Synthetic scenes alone:")
    synthetic = summary(bench.measure(synthetic_cases(SCENES, side), 1))
    print_table("Synthetic scenes", synthetic)
    real = busi or {}
    return {
        "model": bench.settings.model,
        "box_miou": real.get("box"),
        "click_miou": real.get("click"),
        "best_proposal_miou": real.get("best_proposal"),
        "spearman": real.get("spearman"),
        "auroc": real.get("auroc"),
        "seconds": round(time.perf_counter() - began, 1),
        "busi": busi,
        "synthetic": synthetic,
    }


def write_sheets(bench: Bench, folder: Path) -> None:
    """Write a contact sheet of the scenes, and of every real set that is here: they show its images."""
    side = bench.settings.canvas_px
    write_sheet(folder / "synthetic.png", bench.model, bench.settings, list(synthetic_cases(IMAGES, side)))
    for name in SETS:
        if (set_folder(name) / "index.csv").is_file():
            rows = held_out_rows(name)
            spread = [rows[i] for i in np.linspace(0, len(rows) - 1, IMAGES).round().astype(int)]
            cases = [real_case(name, row, side) for row in spread]
            write_sheet(folder / f"{name}.png", bench.model, bench.settings, cases)


def main() -> None:
    """Print tables; with --json all numbers as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--model", default=ProposalsSettings().model, help="name of a SAM2 model (%(default)s)")
    parser.add_argument("--full", action="store_true", help=f"grids of all real images, not of one in {GRID_EVERY}")
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="also write contact sheets as PNG")
    options = parser.parse_args()
    try:
        bench = Bench(ProposalsSettings(model=options.model))
    except PipelineError as error:
        parser.error(str(error))
    if options.sheets:
        write_sheets(bench, options.sheets)
    numbers = run(bench, full=options.full)
    if options.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
