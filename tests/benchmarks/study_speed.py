"""Time of MedFocusCLIP's row of a study from cached embeddings: fusion and probe of every fraction and seed.

`python -m tests.benchmarks.study_speed [--json]`. 504 training and 216 test images of three classes, as in BUSI, with
vectors of 1,280 entries; five fractions and five seeds, one process a core, as the pipeline runs them; starting the
processes counts, reading the store does not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from manifests.types import Cell, Split
from stages.base import StageContext, StageData, StudySettings
from stages.fusion.settings import FusionSettings
from stages.fusion.stage import Fusion
from stages.probes.settings import ProbesSettings
from stages.probes.stage import Probes
from tests.benchmarks.probe_speed import FEATURES, vectors
from tests.unit.stages.small_study import CLASSES, image_rows, study_data, write_bank

CORES: Final = len(os.sched_getaffinity(0))
TRAIN, TEST = 504, 216
STUDY: Final = StudySettings()


@cache
def data_in(folder: Path) -> StageData:
    """A study of the size of BUSI, with a bank of class texts in the folder."""
    counts = dict.fromkeys(CLASSES, (TRAIN // len(CLASSES), TEST // len(CLASSES)))
    data = study_data(image_rows(counts))
    random = np.random.default_rng(0)
    image = np.zeros((len(data.rows), 2, FEATURES), np.float32)
    for split, n, seed in ((Split.TRAIN, TRAIN, 1), (Split.TEST, TEST, 2)):
        drawn, labels = vectors(n, seed)
        for number, name in enumerate(CLASSES):
            at = [i for i, row in enumerate(data.rows) if row.split == split and row.label == name]
            image[at] = drawn[labels == number][:, None].astype(np.float32)
    texts = folder / "texts"
    if not texts.exists():
        write_bank(texts, random.normal(size=(len(CLASSES), FEATURES)))
    return replace(data, arrays={**data.arrays, "image": image}, artifacts={"texts": texts})


def fit_cell(folder: Path, cell: Cell) -> float:
    """Fusion, then the probe on its M; the accuracy."""
    import torch

    torch.set_num_threads(1)
    context = StageContext(dict.fromkeys(("embeddings", "texts", "fusion"), "0" * 64), CLASSES, STUDY)
    data, fused, probed = data_in(folder), folder / f"fusion-{cell.unit}", folder / f"probe-{cell.unit}"
    for out in (fused, probed):
        out.mkdir()
    Fusion(FusionSettings(), context).fit(cell, data, fused)
    data = replace(data, artifacts={**data.artifacts, "fusion": fused})
    return float(Probes(ProbesSettings(), context).fit(cell, data, probed)["accuracy"])


def row(folder: Path, cells: Iterable[Cell]) -> list[float]:
    """All cells, one process a core with one thread each."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(CORES, context) as pool:
        return [f.result() for f in [pool.submit(fit_cell, folder, cell) for cell in cells]]


def main() -> None:
    """Print the seconds; with --json one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    # The largest subsets first, so that no process waits for the last of them.
    cells = [Cell("medfocus", f, s) for f in sorted(STUDY.fractions, reverse=True) for s in STUDY.seeds]
    with tempfile.TemporaryDirectory() as folder:
        data_in(Path(folder))
        began = time.perf_counter()
        accuracies = row(Path(folder), cells)
        seconds = time.perf_counter() - began
    print(f"{len(cells)} cells, fusion and probe, {CORES} processes: {seconds:.1f} s (goal 60 s)")
    print(f"accuracy {np.mean(accuracies[:5]):.3f} on all training images, {np.mean(accuracies[-5:]):.3f} on 5 %")
    if options.json:
        print(json.dumps({"seconds": round(seconds, 2), "cells": len(cells)}))


if __name__ == "__main__":
    main()
