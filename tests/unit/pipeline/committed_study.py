"""A study whose commits are made by hand, without any model: masks are real, features are zeros, scores are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from manifests.commits import publish_cell, publish_chunk
from manifests.fingerprint import digest_json
from manifests.ingest import IngestOptions, ingest
from manifests.layout import DatasetPaths
from manifests.types import Cell, ItemOutcome, Split, Status, UnitResult
from pipeline.config import load_config
from pipeline.graph import SCORED_STAGES, Node, select
from pipeline.plan import cell_inputs, input_digests
from pipeline.workspace import Workspace
from stages.base import empty_arrays, status_array
from stages.scores import wilson

SETTINGS = (
    "canvas_px=64",
    "masks.policy=supplied",
    'masks.compare=["none"]',
    "study.fractions=[0.5, 1.0]",
    "study.seeds=[0, 1]",
)
"""Two policies that need no proposals; `none` comes before `supplied` in the alphabet, not in the configuration."""


def ingested(root: Path, source: Path, *settings: str) -> Workspace:
    """A data set with one drop of chunks of four images."""
    paths = DatasetPaths(root / "phantoms")
    ingest(paths, source, IngestOptions(dataset="phantoms", labels=source / "labels.csv", chunk_items=4))
    return reopened(Workspace(paths, load_config(overrides=SETTINGS)), *settings)


def reopened(workspace: Workspace, *settings: str, source: Path | None = None) -> Workspace:
    """The same data set as another process sees it, under further settings."""
    return Workspace(workspace.paths, load_config(overrides=(*SETTINGS, *settings)), source)


def complete(workspace: Workspace, *keys: str, flagged: int = 0, correct: int = 3) -> Workspace:
    """Commit every unit of the nodes named; by default of what `run --stage all` completes."""
    wanted = keys or [node.key for node in select(tuple(workspace.nodes.values()), "all")]
    for node in workspace.nodes.values():
        if node.key not in wanted:
            continue
        if node.is_map:
            commit_chunks(workspace, node)
        else:
            for cell in workspace.cell_stage(node).cells():
                files = (
                    scored(workspace, cell, flagged, correct) if node.stage in SCORED_STAGES else {"made.json": "{}"}
                )
                commit_cell(workspace, node, cell, files)
    workspace.forget_plans()
    return workspace


def commit_chunks(workspace: Workspace, node: Node, only: Sequence[int] | None = None) -> None:
    """Commit chunks of a map node: masks as the stage makes them, all else as fill values."""
    for drop in workspace.drops:
        stage, store = workspace.map_stage(node), workspace.store(node, drop.drop_id)
        for chunk in drop.chunks():
            if only is not None and chunk.index not in only:
                continue
            rows = workspace.chunk_rows(chunk)
            if node.stage == "masks":
                result = stage.process(rows, workspace.image_source(drop.drop_id), {})
            else:
                items = tuple(ItemOutcome(row.row, row.image_id, Status.OK) for row in rows)
                arrays = {**empty_arrays(stage.outputs(), len(rows)), "status": status_array(items)}
                result = UnitResult(arrays, items)
            publish_chunk(store, chunk, result, {"inputs": input_digests(workspace, node, chunk)})


def commit_cell(workspace: Workspace, node: Node, cell: Cell, files: Mapping[str, str]) -> None:
    """Commit one cell that holds these files."""

    def fill(out: Path) -> Mapping[str, Any]:
        for name, text in files.items():
            (out / name).write_text(text, "utf-8")
        return {}

    publish_cell(workspace.root(node), cell.unit, fill, {"inputs": cell_inputs(workspace, node, cell)})


def scored(workspace: Workspace, cell: Cell, flagged: int, correct: int) -> dict[str, str]:
    """What a probe writes that gets `correct` of 6 test images right, a class of its own for each."""
    rows = [row for drop in workspace.drops for row in workspace.rows(drop.drop_id) if row.split == Split.TEST]
    test = sorted(rows, key=lambda row: row.path)
    low, high = wilson(correct, len(test))
    measures = dict.fromkeys(
        ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece", "brier"), correct / len(test)
    )
    scores = {
        **measures,
        "n_train": 12,
        "n_test": len(test),
        "correct": correct,
        "interval_low": low,
        "interval_high": high,
        "n_test_unflagged": len(test) - flagged,
        "correct_unflagged": max(0, correct - flagged),
        "method": cell.method,
    }
    other = dict(zip(workspace.classes, (*workspace.classes[1:], workspace.classes[0]), strict=True))
    lines = [
        f"{row.image_id},drop-001,{row.row},{row.label},{told},{int(i < flagged)},"
        + ",".join("0.8" if name == told else "0.1" for name in workspace.classes)
        for i, row in enumerate(test)
        for told in (row.label if i < correct else other[row.label],)
    ]
    header = ",".join(("image_id,drop,row,label,predicted,flagged", *(f"p_{name}" for name in workspace.classes)))
    predictions = "\n".join([header, *lines]) + "\n"
    return {"scores.json": json.dumps(scores), "predictions.csv": predictions}


def everything(workspace: Workspace) -> str:
    """Digest of the names of all files of a data set: looking must add none."""
    return digest_json(sorted(p.relative_to(workspace.paths.root).as_posix() for p in workspace.paths.root.rglob("*")))
