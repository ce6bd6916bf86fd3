"""What is committed, looked up once, as the tables and the page of a report."""

from __future__ import annotations

import gc
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from manifests.drops import load_audit
from manifests.fingerprint import digest_json
from manifests.store import StageStore
from manifests.types import Status
from pipeline.committed import Committed, look_up
from pipeline.config import load_config
from pipeline.fit_tables import answer_table, probability_table, score_table
from pipeline.gallery import take_pictures
from pipeline.lineage import lineage
from pipeline.map_points import take_points
from pipeline.mask_facts import mask_facts, mask_ledger, mask_nodes
from pipeline.report_sources import report_sources
from pipeline.supplied_masks import take_supplied
from pipeline.workspace import Workspace
from stages.report.data import (
    FAILURE_COLUMNS,
    MASK_COLUMNS,
    ReportData,
)
from stages.report.notes import warnings_of
from stages.report.page import PAGE, PROVENANCE, layout_digest, write_report


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


def report_data(workspace: Workspace, committed: Committed | None = None) -> ReportData:
    """Everything that the page shows.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    committed : Committed, optional
        What `look_up` found.

    Raises
    ------
    InventoryError
        If no cell is committed yet.
    StoreError
        If a store is damaged.
    """
    committed = committed or look_up(workspace)
    scores = score_table(workspace, committed)
    supplied = take_supplied(workspace)
    facts = mask_facts(workspace, committed, supplied)
    pictures = take_pictures(workspace, mask_nodes(workspace, committed), committed, facts, supplied)
    return ReportData(
        dataset=workspace.paths.name,
        drops=[{"id": d.drop_id, "n_items": d.n_items, "created": str(d.created)} for d in workspace.drops],
        classes=workspace.classes,
        command=report_command(workspace),
        fingerprint=_fingerprint(workspace, committed, pictures.unreadable, pictures.attention.left_out),
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


def _fingerprint(
    workspace: Workspace, committed: Committed, unreadable: Mapping[str, int], unseen: Sequence[str]
) -> str:
    """Digest of what the page shows and of its layout: another report has another folder, the same one the same."""
    shown = {
        "layout": layout_digest(report_sources()),
        "command": report_command(workspace),
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
        "unreadable": unreadable,
        "unseen": list(unseen),
        "withdrawals": [record.withdrawal_id for record in workspace.withdrawals],
    }
    return digest_json(shown)


class Built(NamedTuple):
    """A report that stands."""

    page: Path
    scores: pd.DataFrame
    """What `score_table` gives."""
    cautions: Sequence[str]
    """What stands at its top."""


def build_report(workspace: Workspace) -> Built:
    """Write the page and its tables, unless they stand already.

    A page that lacks no picture and no map is found without looking at any image.

    Raises
    ------
    InventoryError
        If no cell is committed yet.
    StoreError
        If a store is damaged.
    """
    from threadpoolctl import threadpool_limits

    committed = look_up(workspace)
    whole = workspace.paths.report(_fingerprint(workspace, committed, {}, ()))
    if (whole / PAGE).is_file():  # it is written last, so where it stands all else does
        cautions = json.loads((whole / PROVENANCE).read_bytes())["cautions"]
        return Built(whole / PAGE, score_table(workspace, committed), cautions)
    data = report_data(workspace, committed)
    page = workspace.paths.report(data.fingerprint) / PAGE
    if not page.is_file():
        gc.freeze()  # statsmodels collects garbage with each correction of p values, half a second of what is here
        try:
            with threadpool_limits(1):  # the map takes a core of its own meanwhile
                write_report(data, page.parent)
        finally:
            gc.unfreeze()
    return Built(page, data.scores, warnings_of(data))
