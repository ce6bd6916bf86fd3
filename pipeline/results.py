"""What is committed, looked up once, as the tables and the page of a report."""

from __future__ import annotations

import gc
import io
import json
import shlex
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from manifests.drops import load_audit
from manifests.errors import InventoryError
from manifests.fingerprint import digest_json
from manifests.store import StageStore
from manifests.types import Status
from pipeline.committed import Committed, look_up, plain_name, read_artifact
from pipeline.config import load_config
from pipeline.gallery import Pictures, take_pictures
from pipeline.graph import Node
from pipeline.lineage import lineage
from pipeline.map_points import take_points
from pipeline.mask_facts import mask_facts, mask_ledger, mask_nodes
from pipeline.report_sources import report_sources
from pipeline.supplied_masks import take_supplied
from pipeline.workspace import Workspace
from stages.methods import sees_masks
from stages.models.registry import UNTRAINED
from stages.report.data import (
    ANSWER_COLUMNS,
    FAILURE_COLUMNS,
    MASK_COLUMNS,
    PROBABILITY_COLUMNS,
    ReportData,
)
from stages.report.page import PAGE, layout_digest, write_report
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
            mask = node.policy if _sees_masks(workspace, node, cell.method) else ""
            rows.append(
                {
                    **scores,
                    "mask": mask,
                    "method": _shown(node, cell.method),
                    "training": cell.training,
                    "seed": cell.seed,
                }
            )
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
            mask = node.policy if _sees_masks(workspace, node, cell.method) else ""
            fit: dict[str, Any] = {
                "mask": mask,
                "method": _shown(node, cell.method),
                "training": cell.training,
                "seed": cell.seed,
            }
            frames.append(told.assign(**fit))
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
                told.insert(0, "seed", cell.seed)
                told.insert(0, "training", cell.training)
                told.insert(0, "method", _shown(node, cell.method))
                told.insert(0, "mask", node.policy if _sees_masks(workspace, node, cell.method) else "")
                frames.append(told)
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


def _shown(node: Node, method: str) -> str:
    """Name of a method in tables: one on another backbone is named after that, too."""
    if not node.backbone:
        return method
    name = node.backbone.removesuffix(UNTRAINED)
    return f"{name} {method}" if name == node.backbone else f"{name} (untrained) {method}"


def _sees_masks(workspace: Workspace, node: Node, method: str) -> bool:
    return sees_masks(workspace.config.baselines.view if node.stage == "baselines" else method)


def failure_table(committed: Committed) -> pd.DataFrame:
    """Failed and fallback images by stage, status and reason."""
    found = Counter(
        (key, Status(item.status).name.lower(), item.reason)
        for key, commits in committed.chunks.items()
        for commit in commits.values()
        for item in commit.outcomes()
        if item.reason
    )
    return pd.DataFrame([(*key, n) for key, n in found.items()], columns=list(FAILURE_COLUMNS))


def model_cards(workspace: Workspace, committed: Committed) -> list[dict[str, Any]]:
    """Identity card of every model that took part, none twice."""
    cards: dict[str, dict[str, Any]] = {}
    for key in committed.chunks:
        node = workspace.nodes[key]
        card = StageStore.load(workspace.root(node, workspace.drops[0].drop_id)).attributes.get("card")
        if card:
            cards.setdefault(str(card.get("name")), dict(card))
    return list(cards.values())


def report_command(workspace: Workspace) -> str:
    """The command line that makes the report again: whatever the configuration sets beside its preset, and no path."""
    config = workspace.config
    words = ["pipeline", "report", "--dataset", workspace.paths.name, "--preset", config.preset]
    base = load_config(preset=config.preset).model_dump(mode="json", exclude={"cluster"})
    for section, table in config.model_dump(mode="json", exclude={"cluster", "preset"}).items():
        for key, value in table.items():
            if value != base[section][key]:
                words += ["--set", f"{section}.{key}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)


def report_data(workspace: Workspace) -> ReportData:
    """Everything that the page shows.

    Raises
    ------
    InventoryError
        If no cell is committed yet.
    StoreError
        If a store is damaged.
    """
    committed = look_up(workspace)
    scores = score_table(workspace, committed)
    supplied = take_supplied(workspace)
    facts = mask_facts(workspace, committed, supplied)
    pictures = take_pictures(workspace, mask_nodes(workspace, committed), committed, facts, supplied)
    command = report_command(workspace)
    return ReportData(
        dataset=workspace.paths.name,
        drops=[{"id": d.drop_id, "n_items": d.n_items, "created": str(d.created)} for d in workspace.drops],
        classes=workspace.classes,
        command=command,
        fingerprint=_fingerprint(workspace, committed, pictures, command),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scores=scores,
        answers=answer_table(workspace, committed),
        probabilities=probability_table(workspace, committed),
        published=workspace.config.study.published,
        cards=model_cards(workspace, committed),
        ledger=mask_ledger(workspace, facts),
        failures=failure_table(committed),
        gallery=pictures.items,
        masks=facts[list(MASK_COLUMNS)],
        outcomes=pictures.outcomes,
        asked=pictures.asked,
        attention=pictures.attention.scores,
        unseen=pictures.attention.left_out,
        points=take_points(workspace, committed),
        incomplete=committed.incomplete,
        unreadable=pictures.unreadable,
        audits=[(drop.drop_id, load_audit(workspace.paths, drop)) for drop in workspace.drops],
        provenance=lineage(workspace, committed),
    )


def _fingerprint(workspace: Workspace, committed: Committed, pictures: Pictures, command: str) -> str:
    """Digest of what the page shows and of its layout: another report has another folder, the same one the same."""
    shown = {
        "layout": layout_digest(report_sources()),
        "command": command,
        "classes": workspace.classes,
        "drops": [[drop.drop_id, drop.inventory_sha256] for drop in workspace.drops],
        "cells": [
            [key, workspace.fingerprint(workspace.nodes[key]), cell.unit, commit.digests]
            for key, cells in committed.cells.items()
            for cell, commit in cells.items()
        ],
        "chunks": [
            [key, workspace.fingerprint(workspace.nodes[key]), *unit, commit.digests]
            for key, commits in committed.chunks.items()
            for unit, commit in commits.items()
        ],
        "incomplete": committed.incomplete,
        "unreadable": pictures.unreadable,
        "unseen": list(pictures.attention.left_out),
        "withdrawals": [record.withdrawal_id for record in workspace.withdrawals],
    }
    return digest_json(shown)


def build_report(workspace: Workspace) -> tuple[Path, ReportData]:
    """Write the page and its tables, unless they stand already; return the page and what it shows."""
    from threadpoolctl import threadpool_limits

    data = report_data(workspace)
    out = workspace.paths.report(data.fingerprint)
    page = out / PAGE  # it is written last, so where it stands all else does
    if not page.is_file():
        gc.freeze()  # statsmodels collects garbage with each correction of p values, half a second of what is here
        with threadpool_limits(1):  # the map takes a core of its own meanwhile
            write_report(data, out)
        gc.unfreeze()
    return page, data
