"""Stage one against SAM2's own automatic mask generator: same images, weights, grid and thresholds, in one run.

`python -m tests.benchmarks.stage_one_speed [--json] [--full]`. Reference, dense engine and engine coarse to fine take
turns on every image, so that a noisy machine is noisy for all; ratios are of summed seconds, the range is over images.
`sam2-lite0` runs as it ships; `sam2.1_hiera_t` has random weights, and a threshold that 30 % of its masks pass. Recall
is the share of BUSI's test lesions with a proposal of IoU 0.5 or more; synthetic scenes take their place where BUSI is
not (see `segmentation_quality`). The chip's share is what the reference's arithmetic would take at the rate of a large
product of matrices, measured in the same run, over the seconds that were taken: the work that was saved counts as done.
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
import torch
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
KEPT: Final = 0.7
"""IoU from which on a mask of the dense grid was found coarse to fine."""
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
    """Run all three on every image; the first image is run once before, untimed."""
    found = Comparison()
    generator, dense = package_generator(model, settings), Proposer(model, settings)
    coarse = Proposer(model, settings.model_copy(update={"prompting": "coarse-to-fine"}))
    for number, image in enumerate(images):
        if number == 0:
            proposed(coarse, image)
        theirs = found.timed("reference", lambda: package_masks(generator, image))  # noqa: B023
        ours = found.timed("dense", lambda: proposed(dense, image))  # noqa: B023
        found.timed("coarse", lambda: proposed(coarse, image))  # noqa: B023
        both, _ = pairs(ours, theirs, SAME)
        found.same += len(both)
        found.either += len(ours) + len(theirs) - len(both)
    return found


def proposed(proposer: Proposer, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Masks of one canvas without padding, (n, S, S)."""
    candidates, _ = next(proposer.propose([image], [Placement(0, 0, *image.shape[:2])]))
    return np.unpackbits(candidates.packed.numpy(), axis=-1).astype(bool)


@dataclass(frozen=True, slots=True)
class Recalls:
    """In percent."""

    dense: float
    """Objects of which the dense grid has a proposal with an IoU of `FOUND` or more."""
    coarse: float
    """The same, coarse to fine."""
    kept: float
    """Masks of the dense grid of which coarse to fine has one with an IoU of `KEPT` or more."""


def recall(model: Segmenter, settings: ProposalsSettings, cases: Sequence[Case]) -> Recalls:
    """Measure how much coarse to fine loses."""
    ways = [Proposer(model, settings.model_copy(update={"prompting": p})) for p in ("dense", "coarse-to-fine")]
    hits, kept = np.zeros((2, 0), dtype=bool), []
    for case in cases:
        found = [next(w.propose([case.canvas], [case.placement]))[0].packed.numpy() for w in ways]
        truths = [np.packbits(truth, axis=-1) for truth in case.truths[case.salient]]
        hits = np.hstack((hits, [[iou(masks, t).max(initial=0) >= FOUND for t in truths] for masks in found]))
        kept += [iou(found[1], mask).max(initial=0) >= KEPT for mask in found[0]]
    return Recalls(*(100 * hits.mean(axis=1)), 100 * float(np.mean(kept)))


def products_per_second(repeats: int = 8, device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Floating point operations a second of a large product of matrices."""
    n, best = 2048 if device == "cpu" else 8192, float("inf")
    a, b = torch.rand((2, n, n), device=device, dtype=dtype)
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best


def operations(work: Callable[[], Any]) -> int:
    """Floating point operations of matrix products and convolutions, 2 for a multiplication with its addition."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know the fused attention of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


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
    # Boxes of random masks are alike: with the usual suppression one mask would be left to compare.
    loose = settings.model_copy(update={"min_predicted_iou": min(1.0, least), "min_stability": 0.3, "nms_iou": 1.0})
    of_hiera = compare(hiera, loose, images)
    rate = products_per_second()
    numbers: dict[str, Any] = {"matrix_gflops": round(rate / 1e9, 1)}
    print(f"\n{GRID} x {GRID} points, {SIDE} px; times the reference's speed (range over images)")
    for name, model, found, used in (("lite0", lite0, of_lite0, settings), ("hiera_t", hiera, of_hiera, loose)):
        seconds = ", ".join(f"{way} {np.mean(values):.2f} s" for way, values in found.seconds.items())
        print(f"{name:8} {seconds} an image; sets agree on {found.same} of {found.either} masks")
        generator = package_generator(model, used)
        limit = operations(lambda: package_masks(generator, images[0])) / rate  # noqa: B023
        for way in ("dense", "coarse"):
            ratio, least_ratio, most = found.ratio(way)
            share = limit / float(np.mean(found.seconds[way]))
            print(f"{'':8} {way:6} ratio {ratio:6.2f} ({least_ratio:.2f} .. {most:.2f}), {share:.0%} of the chip")
            numbers |= {f"{way}_ratio_{name}": round(ratio, 3), f"{way}_share_{name}": round(share, 3)}
        numbers[f"reference_share_{name}"] = round(limit / float(np.mean(found.seconds["reference"])), 3)
    print(
        f"recall of {len(cases)} images' lesions: dense {recalled.dense:.1f} %, coarse to fine {recalled.coarse:.1f} %"
    )
    print(f"coarse to fine finds {recalled.kept:.1f} % of the dense grid's masks (IoU {KEPT} or more)")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process, reference included: {peak:.2f} GiB; {rate / 1e9:.0f} GFLOP/s in products")
    same, either = of_lite0.same + of_hiera.same, of_lite0.either + of_hiera.either
    return numbers | {
        "coarse_ratio": numbers["coarse_ratio_lite0"],
        "recall_dense": round(recalled.dense, 2),
        "recall_drop_points": round(recalled.dense - recalled.coarse, 2),
        "dense_masks_kept": round(recalled.kept, 2),
        "set_jaccard": round(same / max(either, 1), 4),
    }


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
