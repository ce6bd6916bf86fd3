"""Stage one on a GPU: random weights, the engine against SAM2's own automatic mask generator in the same run.

`python -m tests.benchmarks.gpu_speed [--json] [--device cuda] [--models M ...] [--points N ...] [--images N]`. The
reference runs under autocast to bfloat16, as Meta's examples do, and takes one image at a time; the engine takes all
images together, in bfloat16, with the cells of its decoder made in a kernel (`fused`) and written out (`written`). The
chip's share is what the reference's arithmetic would take at the rate of a large bfloat16 product, over the seconds
taken. Not yet run on a GPU; on a CPU it only shows that it runs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from stages.images import Placement
from stages.models.training.samples import HELD_OUT_SEED
from stages.models.training.scenes import draw_scene
from stages.proposals.propose import Proposer
from stages.proposals.settings import ProposalsSettings
from tests.benchmarks.stage_one_speed import PASS_RATE, operations, products_per_second
from tests.reference import package_generator, package_masks, random_segmenter, scores_of_grid

MODELS: Final = ("sam2.1_hiera_tiny", "sam2.1_hiera_base_plus", "sam2.1_hiera_large")
SIDE: Final = 1024
GAIN: Final = 0.15
REPEATS: Final = 3


def canvases(n: int) -> list[NDArray[np.uint8]]:
    """Synthetic scenes, each on a square canvas."""
    found = []
    for number in range(n):
        image = draw_scene(HELD_OUT_SEED, number, SIDE).image
        canvas = np.zeros((SIDE, SIDE, 3), np.uint8)
        canvas[: image.shape[0], : image.shape[1]] = image
        found.append(canvas)
    return found


def least_seconds(work: Callable[[], Any], device: str) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def measure(name: str, per_side: int, images: list[NDArray[np.uint8]], device: str, rate: float) -> dict[str, Any]:
    """Compare the engine with the reference on one model and grid; print a line for each."""
    model = random_segmenter(name, GAIN, device, "bfloat16")
    scores = scores_of_grid(model, images[0], per_side)
    least = float(np.clip(np.quantile(scores, 1 - PASS_RATE), 0, 1))
    settings = ProposalsSettings(
        canvas_px=SIDE, points_per_side=per_side, min_predicted_iou=least, min_stability=0.3, nms_iou=1.0
    )
    generator = package_generator(model, settings)

    def reference(image: NDArray[np.uint8] = images[0]) -> None:
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
            package_masks(generator, image)

    def engine() -> None:
        list(Proposer(model, settings).propose(images, [Placement(0, 0, SIDE, SIDE)] * len(images)))

    limit = operations(reference) / rate
    runs: list[tuple[str, Callable[[], None], int]] = [("reference", reference, 1), ("written", engine, len(images))]
    if model._decoder.fused:
        runs.append(("fused", engine, len(images)))
    numbers: dict[str, Any] = {}
    for way, work, n in runs:
        model._decoder.fused = way == "fused"
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        each = least_seconds(work, device) / n
        peak = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else float("nan")
        print(f"{name} {per_side**2:5} points {way:10} {1 / each:8.2f} images/s, {limit / each:.0%}, {peak:.1f} GiB")
        numbers[f"{way}_images_per_second"], numbers[f"{way}_share"] = round(1 / each, 3), round(limit / each, 4)
    return numbers


def run(models: Iterable[str], grids: Iterable[int], n: int, device: str) -> dict[str, Any]:
    """Measure every model and grid."""
    rate = products_per_second(device=device, dtype=torch.bfloat16 if device != "cpu" else torch.float32)
    print(f"{device}: {rate / 1e12:.2f} TFLOP/s in products of matrices")
    images = canvases(n)
    return {f"{name}/{grid**2}": measure(name, grid, images, device, rate) for name in models for grid in grids}


def main() -> None:
    """Print a table; with --json the numbers as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--device", default="cuda", help="torch device (%(default)s)")
    parser.add_argument("--models", nargs="+", default=MODELS, help="names in the registry")
    parser.add_argument("--points", nargs="+", type=int, default=(16, 32), help="points along each side")
    parser.add_argument("--images", type=int, default=8, help="images that the engine takes together (%(default)s)")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        numbers: dict[str, Any] = {}
    else:
        numbers = run(options.models, options.points, options.images, options.device)
    if options.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
