"""Masks without a prompt on BUSI's test part: the embedded SAM2, and SAM-Adapter and SAMed trained on it.

`python -m tests.benchmarks.adapter_quality [--json] [--every N]`. Mean IoU of the mask that the masks stage would
store, on the full canvas, of the images with a lesion. An image without a usable mask counts as the whole image, as in
the pipeline, and in `fallback`.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

import numpy as np

from stages.masks.policies import FROM_PROPOSALS, finish
from stages.masks.settings import MasksSettings
from stages.models.sam2 import load_segmenter
from stages.proposals.settings import ProposalsSettings
from tests.benchmarks.segmentation.cases import held_out_rows, real_case
from tests.benchmarks.segmentation.masks import proposals_of
from tests.benchmarks.segmentation.scores import iou

WAYS: Final = (
    ("sam2-lite0", "dense", "union"),
    ("sam2-lite0", "dense", "top1"),
    ("sam2-lite0", "unprompted", "top1"),
    ("sam-adapter:sam2-lite0", "unprompted", "top1"),
    ("samed:sam2-lite0", "unprompted", "top1"),
)
"""Model, prompting and policy; of one candidate every policy makes the same mask."""


def measure(model: str, prompting: Any, policy: str, every: int) -> dict[str, float]:
    """Mean IoU of one way on every `every`-th image, in all and by class, and the share of fallbacks."""
    settings = ProposalsSettings(model=model, prompting=prompting)
    segmenter, limits = load_segmenter(model, "cpu"), MasksSettings()
    found: dict[str, list[float]] = {"all": [], "fallback": []}
    for row in held_out_rows("busi")[::every]:
        case = real_case("busi", row, settings.canvas_px)
        chosen = FROM_PROPOSALS[policy](proposals_of(segmenter, settings, case), limits)
        final = finish(chosen.mask, case.placement, limits)
        mask, truth = (np.packbits(m, axis=-1) for m in (final.mask, case.target))
        quality = float(iou(mask[None], truth)[0])
        found["all"].append(quality)
        found.setdefault(case.group, []).append(quality)
        found["fallback"].append(float(final.reason != ""))
    return {name: float(np.mean(values)) for name, values in found.items()}


def main() -> None:
    """Measure all ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--every", type=int, default=1, help="take every N-th image")
    options = parser.parse_args()
    results = {}
    for model, prompting, policy in WAYS:
        results[f"{model} {prompting} {policy}"] = found = measure(model, prompting, policy, options.every)
        if not options.json:
            print(f"{model:24} {prompting:11} {policy:6}", *(f"{name} {value:.3f}" for name, value in found.items()))
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
