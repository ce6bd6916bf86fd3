"""Every record that touched one image, one chunk or one cell, from the source file to the score."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from manifests.audit import flagged
from manifests.commits import Commit, read_commit
from manifests.drops import load_drops, load_rows
from manifests.errors import InventoryError, UnitError
from manifests.layout import UnitPaths
from manifests.naming import find_image
from manifests.types import Cell, Chunk, ImageRow, Split, Status
from manifests.units import listing
from pipeline.committed import Committed, look_up, read_artifact
from pipeline.graph import Node
from pipeline.plan import incomplete_inputs, plan_cells, plan_map
from pipeline.workspace import Workspace
from stages.base import StageData
from stages.splits import train_indices

Record = dict[str, Any]


def explain(workspace: Workspace, what: str) -> Record:
    """Find what an id names, and tell everything that is recorded of it.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    what : str
        An image: its id, a unique beginning of that, or its path in the source, as it was or is after a rename. A
        chunk: `DROP/NUMBER`, such as `drop-001/000003`. A cell: `METHOD-TRAINING-SEED`, such as `medfocus-5-0`.

    Returns
    -------
    dict[str, Any]
        JSON values; `kind` is `image`, `chunk` or `cell`.

    Raises
    ------
    InventoryError
        If it names nothing, or several images.
    """
    drop_id, _, number = what.partition("/")
    if number and drop_id in {drop.drop_id for drop in workspace.drops}:
        for chunk in workspace.drop(drop_id).chunks():
            if chunk.unit == number.zfill(6):
                return _chunk(workspace, chunk)
    if cells := _cells_named(workspace, what):
        return {"kind": "cell", "unit": what, "results": cells}
    rows = [row for drop in load_drops(workspace.paths) for row in load_rows(workspace.paths, drop)]
    try:
        return _image(workspace, find_image(rows, workspace.locations, what))
    except InventoryError as error:
        raise InventoryError(
            f"{what!r} names no image, chunk or cell here. {error.what}",
            "Image: id, path or path#frame. Chunk: drop-001/000003. Cell: medfocus-5-0, with the --config of its run.",
        ) from error


def _image(workspace: Workspace, image_id: str) -> Record:
    places: list[Record] = []
    steps: list[Record] = []
    standing = {drop.drop_id for drop in workspace.drops}
    for drop in load_drops(workspace.paths):
        for row in load_rows(workspace.paths, drop):
            if row.image_id == image_id:
                chunk = drop.chunks()[row.row // drop.chunk_items]
                places.append(_place(drop.drop_id, chunk, row))
                if drop.drop_id in standing:
                    steps += _steps(workspace, chunk, row)
    withdrawn = [w.withdrawal_id for w in workspace.withdrawals if image_id in w.image_ids]
    return {
        "kind": "image",
        "image": image_id,
        "rows": places,
        "withdrawn": withdrawn,
        "audit": _audit(workspace, image_id),
        "stages": steps,
        "cells": [] if withdrawn else _roles(workspace, look_up(workspace), image_id),
    }


def _place(drop_id: str, chunk: Chunk, row: ImageRow) -> Record:
    return {
        "drop": drop_id,
        "row": row.row,
        "chunk": f"{drop_id}/{chunk.unit}",
        "file": row.path,
        "frame": row.frame if row.is_frame else None,
        "sha256": row.sha256,
        "width": row.width,
        "height": row.height,
        "mode": row.mode,
        "transforms": row.transforms,
        "label": row.label,
        "split": row.split.value,
        "group": row.group_id,
        "duplicate_of": row.duplicate_of,
        "mask_file": row.mask_path,
    }


def _audit(workspace: Workspace, image_id: str) -> Record:
    rows = [row for drop in workspace.drops for row in workspace.rows(drop.drop_id)]
    known = {row.image_id: row for row in rows}
    pairs = [(t, t.other_id if t.image_id == image_id else t.image_id) for t in workspace.twins]
    twins = [
        {
            "image": other,
            "how": twin.how,
            "correlation": twin.correlation,
            "split": known[other].split.value if other in known else "",
            "label": known[other].label if other in known else "",
        }
        for twin, other in pairs
        if image_id in (twin.image_id, twin.other_id)
    ]
    return {"flagged": image_id in flagged(rows, workspace.twins), "twins": twins}


def _steps(workspace: Workspace, chunk: Chunk, row: ImageRow) -> Iterator[Record]:
    """What became of one row in every map node."""
    for node in workspace.nodes.values():
        if not node.is_map:
            continue
        record = _unit(workspace, node, chunk.unit, chunk.drop)
        outcome = next((o for o in record.pop("outcomes", ()) if o.row == row.row), None)
        status = Status(outcome.status).name.lower() if outcome else "absent"
        told = {
            "status": status,
            "reason": outcome.reason if outcome else "",
            "detail": outcome.detail if outcome else "",
        }
        yield {"stage": node.key, "chunk": f"{chunk.drop}/{chunk.unit}", **told, **record}


def _unit(workspace: Workspace, node: Node, unit: str, drop_id: str = "") -> Record:
    """The commit of a unit, how often it was retired, and why it would run."""
    root = workspace.root(node, drop_id)
    commit = read_commit(root, unit)
    retired = sum(name.rpartition("-")[0] == unit for name in listing(UnitPaths(root).retired))
    planned = plan_map(workspace, node, drop_id) if node.is_map else plan_cells(workspace, node)
    record: Record = {
        "fingerprint": workspace.fingerprint(node)[:12],
        "committed": commit.created if commit else None,
        "run": commit.record.get("run") if commit else None,
        "attempt": commit.attempt if commit else None,
        "retired": retired,
        "pending": next((p.reason for p in planned if p.unit == unit), None),
    }
    return {**record, "outcomes": commit.outcomes()} if commit else record


def _roles(workspace: Workspace, committed: Committed, image_id: str) -> list[Record]:
    """What part an image took in every committed cell: trained on, or tested and how it came out."""
    rows = tuple(row for drop in workspace.drops for row in workspace.rows(drop.drop_id))
    drops = tuple(drop.drop_id for drop in workspace.drops for _ in range(drop.n_items))
    data = StageData(rows, drops, np.full(len(rows), Status.OK, np.uint8), {}, {}, {})
    here = {i for i, row in enumerate(rows) if row.image_id == image_id}
    splits = {rows[i].split for i in here}
    if not splits & {Split.TRAIN, Split.TEST}:
        return []
    trained: dict[tuple[float, int, int], bool] = {}
    found = []
    for key, cells in committed.cells.items():
        node = workspace.nodes[key]
        for cell, commit in sorted(cells.items()):
            subset = (cell.fraction, cell.shots, cell.seed)
            if subset not in trained:
                trained[subset] = bool(here & _members(data, cell))
            roles = ["train"] if trained[subset] else []
            answer = _answer(workspace, node, commit, image_id) if Split.TEST in splits else None
            roles += ["test"] if answer else []
            if roles:
                told = {"stage": key, "method": cell.method, "training": cell.training, "seed": cell.seed}
                found.append({**told, "unit": cell.unit, "role": " and ".join(roles), **(answer or {})})
    return found


def _members(data: StageData, cell: Cell) -> set[int]:
    try:
        return set(train_indices(data, cell).tolist())
    except UnitError:
        return set()


def _answer(workspace: Workspace, node: Node, commit: Commit, image_id: str) -> Record | None:
    if "predictions.csv" not in commit.digests:
        return None
    text = read_artifact(workspace, node, commit, "predictions.csv").decode("utf-8")
    for line in csv.DictReader(io.StringIO(text, newline="")):
        if line["image_id"] == image_id:
            return {"predicted": line["predicted"], "correct": line["predicted"] == line["label"]}
    return None


def _chunk(workspace: Workspace, chunk: Chunk) -> Record:
    stages = []
    for node in workspace.nodes.values():
        if node.is_map:
            record = _unit(workspace, node, chunk.unit, chunk.drop)
            outcomes = record.pop("outcomes", ())
            images = Counter(Status(outcome.status).name.lower() for outcome in outcomes)
            reasons = {o.image_id: o.reason for o in outcomes if o.reason}
            stages.append({"stage": node.key, "images": dict(images), "reasons": reasons, **record})
    rows = workspace.chunk_rows(chunk)
    return {
        "kind": "chunk",
        "chunk": f"{chunk.drop}/{chunk.unit}",
        "rows": [chunk.start, chunk.stop],
        "images": [row.image_id for row in rows],
        "stages": stages,
    }


def _cells_named(workspace: Workspace, unit: str) -> list[Record]:
    """The cell of this name in every cell node whose inputs are complete."""
    found = []
    for node in workspace.nodes.values():
        if node.is_map or incomplete_inputs(workspace, node):
            continue
        for cell in workspace.cell_stage(node).cells():
            if cell.unit == unit:
                record = _unit(workspace, node, unit)
                record.pop("outcomes", None)
                found.append({"stage": node.key, **record, **_result(workspace, node, workspace.commit(node, unit))})
    return found


def _result(workspace: Workspace, node: Node, commit: Commit | None) -> Record:
    """Identity of a cell's stage, its artifacts, its scores."""
    identity = workspace.identity(node)
    record: Record = {
        "settings": dict(identity.settings),
        "weights": dict(identity.weights),
        "upstream": {name: digest[:12] for name, digest in identity.upstream.items()},
    }
    if commit is None:
        return record
    record |= {"drops": commit.record.get("drops"), "artifacts": commit.digests}
    if "scores.json" in commit.digests:
        record["scores"] = json.loads(read_artifact(workspace, node, commit, "scores.json"))
    return record
