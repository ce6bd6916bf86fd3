"""What every committed fit answered and scored, as tables with a row a fit or a test image."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from manifests.errors import InventoryError
from manifests.types import Cell
from pipeline.committed import Committed, plain_name, read_artifact
from pipeline.graph import Node
from pipeline.workspace import Workspace
from stages.methods import sees_masks
from stages.models.registry import UNTRAINED
from stages.report.data import ANSWER_COLUMNS, PROBABILITY_COLUMNS
from stages.report.tables import place


def score_table(workspace: Workspace, committed: Committed) -> pd.DataFrame:
    """One row a committed probe cell: mask, method, training data, seed and every score.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    committed : Committed
        What `look_up` found.

    Returns
    -------
    DataFrame
        The main policy first, then the others as configured; methods in the order of `METHODS`.

    Raises
    ------
    InventoryError
        If no cell is committed yet.
    DamagedError
        If scores are missing or not what was committed.
    """
    rows: list[dict[str, Any]] = []
    for key, cells in committed.cells.items():
        node = workspace.nodes[key]
        for cell in sorted(cells, key=lambda c: (place(c.method), c.shots, c.fraction, c.seed)):
            scores = json.loads(read_artifact(workspace, node, cells[cell], "scores.json"))
            rows.append({**scores, **_fit(workspace, node, cell)})
    if not rows:
        raise InventoryError(
            f"The data set {workspace.paths.name!r} has no scores under this configuration.",
            "Run first: pipeline run --stage all",
        )
    return pd.DataFrame(rows)


def answer_table(workspace: Workspace, committed: Committed) -> pd.DataFrame:
    """One row a test image and scored cell, with `ANSWER_COLUMNS`.

    Raises
    ------
    DamagedError
        If predictions are missing or not what was committed.
    """
    columns, frames = ["image_id", "drop", "row", "label", "predicted", "flagged"], []
    for key, cells in committed.cells.items():
        node = workspace.nodes[key]
        for cell, commit in cells.items():
            file = io.BytesIO(read_artifact(workspace, node, commit, "predictions.csv"))
            told = pd.read_csv(file, usecols=columns, dtype=str, na_filter=False)
            frames.append(told.assign(**_fit(workspace, node, cell)))
    if not frames:
        return pd.DataFrame(columns=list(ANSWER_COLUMNS))
    told = pd.concat(frames, ignore_index=True)
    groups = {row.image_id: row.group_id for drop in workspace.drops for row in workspace.rows(drop.drop_id)}
    places = {name: index for index, name in enumerate(workspace.classes)}
    names = {text: plain_name(text) for text in {*told["label"].unique(), *told["predicted"].unique()}}
    fields = {
        "mask": told["mask"],
        "method": told["method"],
        "training": told["training"],
        "seed": told["seed"],
        "image": told["drop"] + "/" + told["row"],
        "image_id": told["image_id"],
        "label": told["label"].map(names),
        "group": told["image_id"].map(groups),
        "flagged": told["flagged"] == "1",
        "correct": told["predicted"] == told["label"],
        "predicted": told["predicted"].map(names).map(places),
    }
    return pd.DataFrame(fields)


def probability_table(workspace: Workspace, committed: Committed) -> pd.DataFrame:
    """One row a test image and cell of a method's largest training subset, with `PROBABILITY_COLUMNS` and more.

    Raises
    ------
    DamagedError
        If predictions are missing or not what was committed.
    """
    frames = []
    for key, cells in committed.cells.items():
        node = workspace.nodes[key]
        largest: dict[str, tuple[float, int]] = {}
        for cell in cells:
            largest[cell.method] = max(largest.get(cell.method, (0.0, 0)), (cell.fraction, cell.shots))
        for cell, commit in cells.items():
            if (cell.fraction, cell.shots) == largest[cell.method]:
                told = _told(read_artifact(workspace, node, commit, "predictions.csv"), workspace.classes)
                frames.append(told.assign(**_fit(workspace, node, cell)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(PROBABILITY_COLUMNS))


def _told(data: bytes, classes: Sequence[str]) -> pd.DataFrame:
    """A cell's predictions.csv with class indices in place of names."""
    texts = dict.fromkeys(("image_id", "drop", "row", "label", "predicted"), str)
    told = pd.read_csv(io.BytesIO(data), dtype=texts, na_filter=False)
    shares = told[[f"p_{name}" for name in classes]].to_numpy("float64")
    fields = {
        "image": told["drop"] + "/" + told["row"],
        "truth": told["label"].map(plain_name).map({name: index for index, name in enumerate(classes)}),
        "predicted": shares.argmax(axis=1),
    }
    return pd.DataFrame({**fields, **{f"p_{index}": shares[:, index] for index in range(len(classes))}})


def _fit(workspace: Workspace, node: Node, cell: Cell) -> dict[str, Any]:
    """What names a fit in every table."""
    seen = workspace.config.baselines.view if node.stage == "baselines" else cell.method
    mask = node.policy if sees_masks(seen) else ""
    return {"mask": mask, "method": _shown(node, cell.method), "training": cell.training, "seed": cell.seed}


def _shown(node: Node, method: str) -> str:
    """Name of a method in tables: one on another backbone is named after that, too."""
    if not node.backbone:
        return method
    name = node.backbone.removesuffix(UNTRAINED)
    return f"{name} {method}" if name == node.backbone else f"{name} (untrained) {method}"
