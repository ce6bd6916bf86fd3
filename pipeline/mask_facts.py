"""What is committed of every image's masks: status, area, score, and agreement with a supplied mask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.store import StageStore
from manifests.types import Chunk, ImageRow, Split, Status
from pipeline.committed import Committed
from pipeline.graph import Node
from pipeline.supplied_masks import SUPPLIED, SuppliedMasks
from pipeline.workspace import Workspace
from stages.report.data import LEDGER_COLUMNS


def mask_nodes(workspace: Workspace, committed: Committed) -> list[Node]:
    """Masks nodes whose every chunk is committed, in the order of the configuration."""
    return [workspace.nodes[key] for key in committed.chunks if workspace.nodes[key].stage == "masks"]


def mask_facts(workspace: Workspace, committed: Committed, supplied: SuppliedMasks) -> pd.DataFrame:
    """One row an image and mask policy, images that were withdrawn left out.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    committed : Committed
        What `look_up` found.
    supplied : SuppliedMasks
        What masks are compared with.

    Returns
    -------
    DataFrame
        `mask`, `drop`, `row`, `image`, `split`, `class`, `status`, `area` (share of the image), `score`, and `iou`
        with the supplied mask; the last three NaN where there is none.
    """
    rows: list[dict[str, Any]] = []
    for node in mask_nodes(workspace, committed):
        compared = {} if node.policy == SUPPLIED else supplied.found
        for store, chunk, wanted in _chunks(workspace, node):
            names = ("status", "area_fraction", "score")
            keys = {(chunk.drop, row.row) for row in wanted}
            arrays = read_rows(store, chunk, (*names, "mask") if keys & compared.keys() else names)
            for position, row in enumerate(wanted):
                if row.image_id in workspace.withdrawn:
                    continue
                status = Status(int(arrays["status"][position]))
                usable = status == Status.OK
                own = compared.get((chunk.drop, row.row)) if usable else None
                rows.append(
                    {
                        "mask": node.policy,
                        "drop": chunk.drop,
                        "row": row.row,
                        "image": row.image_id,
                        "split": str(row.split),
                        "class": row.label,
                        "status": status.name.lower(),
                        "area": float(arrays["area_fraction"][position]) if usable else np.nan,
                        "score": float(arrays["score"][position]) if usable else np.nan,
                        "iou": np.nan if own is None else iou(arrays["mask"][position], own.mask),
                    }
                )
    columns = ["mask", "drop", "row", "image", "split", "class", "status", "area", "score", "iou"]
    floats = dict.fromkeys(("area", "score", "iou"), "float64")
    return pd.DataFrame(rows, columns=columns).astype(floats)


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Intersection over union of two masks, (S, S), the other one not empty."""
    return float((one & other).sum() / (one | other).sum())


def _chunks(workspace: Workspace, node: Node) -> Iterator[tuple[StageStore, Chunk, list[ImageRow]]]:
    for drop in workspace.drops:
        store = StageStore.load(workspace.root(node, drop.drop_id))
        for chunk in drop.chunks():
            yield store, chunk, list(workspace.chunk_rows(chunk))


def mask_ledger(workspace: Workspace, facts: pd.DataFrame) -> pd.DataFrame:
    """Images by mask policy, split and class: how many have a mask, fell back or failed, and the mean mask area.

    Parameters
    ----------
    workspace : Workspace
        Says the order of policies and classes.
    facts : DataFrame
        What `mask_facts` found.

    Returns
    -------
    DataFrame
        With `LEDGER_COLUMNS`.
    """
    groups = facts.groupby(["mask", "split", "class"], sort=False)
    found = groups["status"].value_counts().unstack(fill_value=0)
    found = found.reindex(columns=["ok", "fallback", "failed"], fill_value=0)
    ledger = found.assign(n=groups.size(), mean_area=groups["area"].mean()).reset_index()
    places = [_place(workspace, *key) for key in zip(ledger["mask"], ledger["split"], ledger["class"], strict=True)]
    order = sorted(range(len(ledger)), key=lambda i: places[i])
    return ledger.iloc[order].reset_index(drop=True)[list(LEDGER_COLUMNS)]


def _place(workspace: Workspace, policy: str, split: str, label: str) -> tuple[int, int, int]:
    """Place of a row of the ledger: policies as configured, splits as declared, classes by index, no label last."""
    policies = [node.policy for node in workspace.nodes.values() if node.stage == "masks"]
    classes = [*workspace.classes, label]
    return policies.index(policy), list(Split).index(Split(split)), classes.index(label)
