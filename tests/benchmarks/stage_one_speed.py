"""Stage one against SAM2's own automatic mask generator: same images, weights, grid and thresholds, in one run.

`python -m tests.benchmarks.stage_one_speed [--json] [--full]`. Reference and engine take turns on every image, so
that a noisy machine is noisy for both; ratios are of summed seconds, the
range is over images. `sam2-lite0` runs as it ships; `sam2.1_hiera_t` has random weights, and a threshold that 30 % of
its masks pass. Recall is the share of BUSI's test lesions with a proposal of IoU 0.5 or more; synthetic scenes take
their place where BUSI is not (see `segmentation_quality`).
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.images import Placement
from stages.models.sam2 import Segmenter, load_segmenter
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings
from tests.benchmarks.segmentation.cases import Case, held_out_rows, real_case, set_folder, synthetic_cases
from tests.benchmarks.segmentation.scores import iou
from tests.reference import package_generator, package_masks, pairs, random_segmenter, scores_of_grid

SIDE: Final = 512
GRID: Final = 16
LITE0_IMAGES: Final = 8
HIERA_IMAGES: Final = 1
PASS_RATE: Final = 0.3
SAME: Final = 0.999
FOUND: Final = 0.5
RECALL_EVERY: Final = 4
"""Lesions for one whose recall is measured, unless --full."""


@dataclass
class Comparison:
    """Seconds by image and engine, and how far the sets of masks agree."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    same: int = 0
    either: int = 0

    def timed(self, name: str, work: Callable[[], NDArray[np.bool_]]) -> NDArray[np.bool_]:
        """Run one engine on one image and keep its time."""
        began = time.perf_counter()
        masks = work()
        self.seconds[name].append(time.perf_counter() - began)
        return masks

    def ratio(self, name: str) -> tuple[float, float, float]:
        """How many times faster than the reference: over all images, the least, the most."""
        reference, ours = (np.array(self.seconds[n]) for n in ("reference", name))
        each = reference / ours
        return float(reference.sum() / ours.sum()), float(each.min()), float(each.max())


def compare(model: Segmenter, settings: ProposalsSettings, images: Iterable[NDArray[np.uint8]]) -> Comparison:
    """Run both on every image; the first image is run once before, untimed."""
    found = Comparison()
    generator, dense = package_generator(model, settings), Proposer(model, settings)
    for number, image in enumerate(images):
        if number == 0:
            proposed(dense, image)
        theirs = found.timed("reference", lambda: package_masks(generator, image))  # noqa: B023
        ours = found.timed("dense", lambda: proposed(dense, image))  # noqa: B023
        both, _ = pairs(ours, theirs, SAME)
        found.same += len(both)
        found.either += len(ours) + len(theirs) - len(both)
    return found


def proposed(proposer: Proposer, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Masks of one canvas without padding, (n, S, S)."""
    candidates, _ = next(proposer.propose([image], [Placement(0, 0, *image.shape[:2])]))
    return np.unpackbits(candidates.packed.numpy(), axis=-1).astype(bool)


def recall(model: Segmenter, settings: ProposalsSettings, cases: Sequence[Case]) -> float:
    """Share of objects, in percent, of which some proposal has an IoU of `FOUND` or more."""
    proposer, hits, objects = Proposer(model, settings), 0, 0
    for case in cases:
        candidates, _ = next(proposer.propose([case.canvas], [case.placement]))
        for truth in case.truths[case.salient]:
            hits += iou(candidates.packed.numpy(), np.packbits(truth, axis=-1)).max(initial=0) >= FOUND
            objects += 1
    return 100 * hits / objects


def lesions(*, full: bool) -> list[Case]:
    """Images with a lesion that no training saw."""
    if not (set_folder("busi") / "index.csv").is_file():
        print("BUSI is not here, MEDFOCUS_DATA names the folder of the image sets. Synthetic scenes take its place.")
        return list(synthetic_cases(48, SIDE))
    rows = held_out_rows("busi")[:: 1 if full else RECALL_EVERY]
    return [real_case("busi", row, SIDE) for row in rows]


def squares(cases: Sequence[Case], n: int) -> list[NDArray[np.uint8]]:
    """Canvases spread over the cases, without padding: the reference knows none."""
    chosen = [cases[i] for i in np.linspace(0, len(cases) - 1, n).round().astype(int)]
    return [np.array(stretched(case)) for case in chosen]


def stretched(case: Case) -> Any:
    """Bring the image of a canvas to all of the canvas."""
    from PIL import Image

    return Image.fromarray(case.canvas[case.placement.slices]).resize((SIDE, SIDE))


def run(*, full: bool) -> dict[str, Any]:
    """Measure everything and print a table; the numbers by their names in the JSON."""
    cases = lesions(full=full)
    settings = ProposalsSettings(canvas_px=SIDE, points_per_side=GRID, max_candidates=256)
    lite0 = load_segmenter(settings.model, "cpu")
    of_lite0 = compare(lite0, settings, squares(cases, LITE0_IMAGES))
    recalled = recall(lite0, settings, cases)
    hiera = random_segmenter("sam2.1_hiera_tiny", 0.15)
    images = squares(cases, 3 if full else HIERA_IMAGES)
    least = float(np.quantile(scores_of_grid(hiera, images[0], GRID), 1 - PASS_RATE))
    loose = settings.model_copy(update={"min_predicted_iou": min(1.0, least), "min_stability": 0.3})
    of_hiera = compare(hiera, loose, images)
    numbers: dict[str, Any] = {}
    print(f"\n{GRID} x {GRID} points, {SIDE} px; times the reference's speed (range over images)")
    for model, found in (("lite0", of_lite0), ("hiera_t", of_hiera)):
        seconds = ", ".join(f"{name} {np.mean(values):.2f} s" for name, values in found.seconds.items())
        print(f"{model:8} {seconds} an image; sets agree on {found.same} of {found.either} masks")
        ratio, least_ratio, most = found.ratio("dense")
        print(f"{'':8} ratio {ratio:6.2f} ({least_ratio:.2f} .. {most:.2f})")
        numbers[f"dense_ratio_{model}"] = round(ratio, 3)
    print(f"recall of {len(cases)} images' lesions: {recalled:.1f} %")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process, reference included: {peak:.2f} GiB")
    same, either = of_lite0.same + of_hiera.same, of_lite0.either + of_hiera.either
    return numbers | {"recall_dense": round(recalled, 2), "set_jaccard": round(same / max(either, 1), 4)}


def main() -> None:
    """Print a table; with --json the numbers as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--full", action="store_true", help="all lesions, and more images of the large model")
    options = parser.parse_args()
    numbers = run(full=options.full)
    if options.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
