"""Committed cells and chunks, gathered into what the report and the terminal show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from manifests.commits import read_rows
from manifests.errors import InventoryError
from manifests.fingerprint import digest_json
from manifests.types import ImageRow, Status
from pipeline.graph import Node
from pipeline.plan import commits_of, incomplete_inputs, plan_cells
from pipeline.workspace import Workspace
from stages.report.data import GalleryItem, ReportData
from stages.report.page import write_report

WITHOUT_MASK = ("original", "constant")
GALLERY_PER_CLASS = 4


def probe_nodes(workspace: Workspace) -> list[Node]:
    """Probe nodes whose inputs are complete."""
    nodes = [n for n in workspace.nodes.values() if n.stage == "probes"]
    return [n for n in nodes if not incomplete_inputs(workspace, n)]


def score_table(workspace: Workspace) -> pd.DataFrame:
    """One row a committed probe cell: mask, method, fraction, seed and every score.

    Raises
    ------
    InventoryError
        If no cell is committed yet.
    """
    rows: list[dict[str, Any]] = []
    for node in probe_nodes(workspace):
        stage = workspace.cell_stage(node)
        cells = {cell.unit: cell for cell in stage.cells()}
        for _, unit in commits_of(workspace, node):
            cell = cells[unit]
            scores = json.loads((workspace.root(node) / "commits" / unit / "scores.json").read_text("utf-8"))
            mask = "" if cell.method in WITHOUT_MASK else node.policy
            rows.append({**scores, "mask": mask, "method": cell.method, "fraction": cell.fraction, "seed": cell.seed})
    if not rows:
        raise InventoryError(
            f"The data set {workspace.paths.name!r} has no scores under this configuration.",
            "Run first: pipeline run --stage all",
        )
    return pd.DataFrame(rows).sort_values(["mask", "method", "fraction", "seed"], ignore_index=True)


def mask_ledger(workspace: Workspace) -> pd.DataFrame:
    """Images by mask policy, split and class: how many have a mask, fell back or failed, and the mean mask area."""
    rows: list[dict[str, Any]] = []
    for node in (n for n in workspace.nodes.values() if n.stage == "masks"):
        for image, arrays, position in _mask_rows(workspace, node):
            status = Status(int(arrays["status"][position])).name.lower()
            area = float(arrays["area_fraction"][position])
            rows.append(
                {"mask": node.policy, "split": image.split, "class": image.label, "status": status, "area": area}
            )
    frame = pd.DataFrame(rows, columns=["mask", "split", "class", "status", "area"])
    keys = ["mask", "split", "class"]
    ledger = frame.groupby(keys, as_index=False).agg(n=("status", "size"))
    for status in ("ok", "fallback", "failed"):
        counts = frame[frame.status == status].groupby(keys).size().rename(status)
        ledger = ledger.merge(counts, how="left", left_on=keys, right_index=True).fillna({status: 0})
        ledger[status] = ledger[status].astype(int)
    areas = frame[frame.status == "ok"].groupby(keys)["area"].mean().rename("mean_area")
    return ledger.merge(areas, how="left", left_on=keys, right_index=True)


def _mask_rows(workspace: Workspace, node: Node) -> Iterator[tuple[ImageRow, dict[str, Any], int]]:
    for drop in workspace.drops:
        store = workspace.store(node, drop.drop_id)
        for chunk in drop.chunks():
            arrays = read_rows(store, chunk, ("status", "area_fraction"))
            for position, image in enumerate(workspace.chunk_rows(chunk)):
                yield image, arrays, position


def failure_table(workspace: Workspace) -> pd.DataFrame:
    """Failed and fallback images by stage, status and reason."""
    rows = [
        {"stage": node.key, "status": Status(item.status).name.lower(), "reason": item.reason}
        for node in workspace.nodes.values()
        if node.is_map
        for commit in commits_of(workspace, node).values()
        for item in commit.outcomes()
        if item.reason
    ]
    frame = pd.DataFrame(rows, columns=["stage", "status", "reason"])
    return frame.groupby(["stage", "status", "reason"], as_index=False).size().rename(columns={"size": "n"})


def gallery(workspace: Workspace) -> list[GalleryItem]:
    """A few test images of every class under every policy, with what the largest probe said of them."""
    items: list[GalleryItem] = []
    for node in (n for n in workspace.nodes.values() if n.stage == "masks"):
        predicted = _predictions(workspace, node.policy)
        taken: dict[str, int] = {}
        for drop in workspace.drops:
            store = workspace.store(node, drop.drop_id)
            source = workspace.image_source(drop.drop_id)
            for chunk in drop.chunks():
                rows = workspace.chunk_rows(chunk)
                wanted = [
                    i for i, r in enumerate(rows) if r.split == "test" and taken.get(r.label, 0) < GALLERY_PER_CLASS
                ]
                if wanted:
                    arrays = read_rows(store, chunk, ("mask", "masked_image", "placement", "status"))
                    for i in wanted:
                        if taken.get(rows[i].label, 0) < GALLERY_PER_CLASS and arrays["status"][i] != Status.FAILED:
                            taken[rows[i].label] = taken.get(rows[i].label, 0) + 1
                            items.append(_gallery_item(rows[i], arrays, i, source, predicted, node))
    return items


def _gallery_item(
    row: ImageRow, arrays: dict[str, Any], i: int, source: Any, predicted: dict[str, str], node: Node
) -> GalleryItem:
    from stages.images import letterbox

    image, _ = letterbox(source.read(row), arrays["mask"].shape[-1])
    return GalleryItem(
        image=image,
        mask=np.asarray(arrays["mask"][i]),
        masked=np.asarray(arrays["masked_image"][i]),
        label=row.label,
        predicted=predicted.get(row.image_id, ""),
        status=Status(int(arrays["status"][i])).name.lower(),
        caption=row.image_id,
        policy=node.policy,
    )


def _predictions(workspace: Workspace, policy: str) -> dict[str, str]:
    """Predicted class by image_id, of the medfocus probe on all training data with the first seed."""
    for node in probe_nodes(workspace):
        cells = [c for c in workspace.cell_stage(node).cells() if c.method == "medfocus"]
        cells = [c for c in cells if c.seed == cells[0].seed]
        if node.policy == policy and cells:
            largest = max(cells, key=lambda c: c.fraction)
            file = workspace.root(node) / "commits" / largest.unit / "predictions.csv"
            if file.exists():
                frame = pd.read_csv(file, dtype=str)
                return dict(zip(frame["image_id"], frame["predicted"], strict=True))
    return {}


def report_data(workspace: Workspace, command: str) -> ReportData:
    """Everything that the page shows.

    Raises
    ------
    InventoryError
        If no cell is committed yet.
    """
    scores = score_table(workspace)
    nodes = list(workspace.nodes.values())
    fingerprints = {n.key: workspace.fingerprint(n) for n in nodes if n.is_map or not incomplete_inputs(workspace, n)}
    pending = {n.key: len(plan_cells(workspace, n)) for n in probe_nodes(workspace)}
    cards = {}
    for node in nodes:
        if node.stage in ("proposals", "embeddings"):
            card = workspace.store(node, workspace.drops[0].drop_id).attributes.get("card")
            if card:
                cards[str(card.get("name"))] = card
    return ReportData(
        dataset=workspace.paths.name,
        drops=[{"id": d.drop_id, "n_items": d.n_items, "created": str(d.created)} for d in workspace.drops],
        classes=workspace.classes,
        command=command,
        fingerprint=digest_json({"fingerprints": fingerprints, "pending": pending}),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scores=scores,
        cards=list(cards.values()),
        ledger=mask_ledger(workspace),
        failures=failure_table(workspace),
        gallery=gallery(workspace),
    )


def build_report(workspace: Workspace, command: str) -> tuple[Path, ReportData]:
    """Write the page and its tables; return its path and what it shows."""
    data = report_data(workspace, command)
    out = workspace.paths.report(data.fingerprint)
    return write_report(data, out), data
