"""CoCoOp of a whole study in the same steps on one GPU; without a study, steps a second of three ways to train it.

`python -m tests.benchmarks.gpu_cocoop DATASET --out CSV [--config TOML] [--set K=V ...]`: DATASET is the folder of a
data set whose embeddings and texts are committed. Every CoCoOp cell of the study is trained as
`pipeline run --stage baselines` trains it, on the same rows and in the same order, but all together. Nothing is
committed: the CSV has the lines of every cell's predictions.csv with its fraction, shots and seed. Without DATASET, 25
trainings on drawn vectors: one with torch's optimizer, one in captured steps, and all together in captured steps.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from manifests.layout import DatasetPaths
from manifests.types import Cell
from pipeline.cell_data import cell_data
from pipeline.config import RunConfig, load_config
from pipeline.workspace import Workspace
from stages.base import StageData
from stages.baselines.schedule import Fit, Steps
from stages.baselines.stage import Baselines
from stages.baselines.together import train_together
from stages.baselines.training import train_alone
from stages.models.clip import load_clip
from stages.predictions import ScoredRows, write_results
from stages.splits import check_fit_rows, test_indices, train_indices
from tests.prompt_fits import fit_of

METHOD: Final = "cocoop"
TRAININGS: Final = 25
WAYS: Final[dict[str, tuple[int, Callable[[list[Fit]], object]]]] = {
    "one after the other": (1, lambda fits: train_alone(fits[0])),
    "captured, one training": (1, train_together),
    f"captured, {TRAININGS} trainings": (TRAININGS, train_together),
}


def steps_per_second(device: str, n: int) -> dict[str, float]:
    """Images a second that the trainings of each way see together, n each; with what comes before the first step."""
    model = load_clip("lite0-minilm", device, "float32")
    found = {}
    for name, (trainings, train) in WAYS.items():
        fits = [fit_of(model, n, seed, Steps(2e-3, 1, 1)) for seed in range(trainings)]
        train(fits[:1] if device == "cpu" else fits)
        fits = [fit_of(model, n, seed, Steps(2e-3, 1, 1)) for seed in range(trainings)]
        began = time.perf_counter()
        train(fits)
        found[name] = trainings * n / (time.perf_counter() - began)
        print(f"{name:28} {found[name]:9.0f} images/s  {found[name] / trainings:7.0f} steps/s", flush=True)
    return found


def fitted(dataset: Path, config: RunConfig, device: str, out: Path) -> dict[str, Any]:
    """Train every CoCoOp cell of a study together; write a CSV, and return the accuracy of each cell."""
    workspace = Workspace(DatasetPaths(dataset), config)
    node = next(n for n in workspace.nodes.values() if n.stage == "baselines")
    stage = workspace.cell_stage(node)
    if not isinstance(stage, Baselines):
        raise TypeError(f"baselines: expected its own stage, got {type(stage).__name__}")
    cells = [cell for cell in stage.cells() if cell.method == METHOD]
    data = cell_data(workspace, node, cells[0], device)
    fits = [_fit(stage, cell, data) for cell in cells]
    print(f"{dataset.name}: {len(fits)} trainings, {max(len(f.labels) for f in fits)} images at most", flush=True)
    began = time.perf_counter()
    losses = train_together(fits)
    seconds = time.perf_counter() - began
    print(f"{dataset.name}: trained in {seconds:.1f} s", flush=True)
    accuracy = {}
    with tempfile.TemporaryDirectory() as folder, out.open("w", newline="", encoding="utf-8") as file:
        for number, (cell, fit, loss) in enumerate(zip(cells, fits, losses, strict=True)):
            accuracy[cell.unit] = _write(Path(folder), stage, (cell, fit, loss), data)
            _copy(Path(folder) / "predictions.csv", cell, csv.writer(file, lineterminator="\n"), first=number == 0)
            print(f"{cell.unit:16} loss {loss:.4f} accuracy {accuracy[cell.unit]:.4f}", flush=True)
    return {"seconds": seconds, "accuracy": accuracy}


def _fit(stage: Baselines, cell: Cell, data: StageData) -> Fit:
    subset = train_indices(data, cell)
    check_fit_rows(data, subset)
    return stage.prompt_fit(cell, data, subset)


def _write(out: Path, stage: Baselines, trained: tuple[Cell, Fit, float], data: StageData) -> float:
    """Write what the stage would write of a cell; returns its accuracy."""
    cell, fit, loss = trained
    test = test_indices(data)
    probabilities, choice = stage.prompt_outcome(fit, loss, data, test)
    rows = ScoredRows(data, test, stage.context.classes)
    return write_results(out, cell.method, rows, probabilities, len(fit.labels), choice)["accuracy"]


def _copy(predictions: Path, cell: Cell, writer: Any, *, first: bool) -> None:
    """Append the lines of a cell's predictions.csv, its name before each."""
    header, *lines = csv.reader(predictions.read_text("utf-8").splitlines())
    if first:
        writer.writerow(("fraction", "shots", "seed", *header))
    writer.writerows((cell.fraction, cell.shots, cell.seed, *line) for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each way, or cell; with --json the numbers as one JSON object in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, help="CSV of predictions")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=1000, help="of each drawn training (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    asked = parser.parse_args(arguments)
    if asked.dataset is not None and asked.out is None:
        parser.error("a study needs --out")
    if asked.device != "cpu" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        numbers: dict[str, Any] = {}
    elif asked.dataset is None:
        numbers = dict(steps_per_second(asked.device, asked.images))
    else:
        numbers = fitted(asked.dataset, load_config(asked.config, asked.set), asked.device, asked.out)
    if asked.json:
        print(json.dumps(numbers))


if __name__ == "__main__":
    main()
