"""What a cell stage is handed: committed arrays of its map inputs, and the folders of the cells that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.errors import UnitError
from manifests.fingerprint import digest_json
from manifests.integrity import checked_artifacts
from manifests.types import Cell, ChunkArrays, Status
from pipeline.graph import Node
from pipeline.workspace import Workspace
from stages.base import StageData

Told = tuple[ChunkArrays, Mapping[str, Any]]
"""Arrays of a map node, and attributes of its group."""


@dataclass(frozen=True, slots=True)
class Features:
    """What the map inputs of a cell node say of some rows."""

    status: NDArray[np.uint8]
    """`Status` of each row, (N,)."""
    arrays: ChunkArrays
    """The first axis is N."""
    attributes: Mapping[str, Any]
    """Attributes of the groups; where they differ, those of the node that is read first."""


def cell_data(workspace: Workspace, node: Node, cell: Cell, device: str) -> StageData:
    """Committed arrays of the node's map inputs over all drops, and the folders of the cells that this one reads.

    Raises
    ------
    DamagedError
        If an artifact of an upstream cell is not what was committed.
    UnitError
        If another run commits meanwhile.
    """
    rows = tuple(row for drop in workspace.drops for row in workspace.rows(drop.drop_id))
    drops = tuple(drop.drop_id for drop in workspace.drops for _ in range(drop.n_items))
    artifacts = cell_artifacts(workspace, node, cell)
    if not map_inputs(workspace, node):
        return StageData(rows, drops, np.zeros(len(rows), np.uint8), {}, {}, artifacts, device, workspace.twins)
    wanted = workspace.cell_stage(node).reads(cell)
    told = collect(workspace, node, wanted, lambda source, names: _committed(workspace, source, names))
    return StageData(
        rows, drops, told.status, told.arrays, told.attributes, artifacts, device=device, twins=workspace.twins
    )


def cell_artifacts(workspace: Workspace, node: Node, cell: Cell) -> dict[str, Path]:
    """Folder of each upstream cell that a cell reads, by stage name, once its digests were checked."""
    needs = workspace.cell_stage(node).needs(cell)
    roots = {name: workspace.root(workspace.nodes[node.inputs[name]]) for name in needs}
    return {name: checked_artifacts(roots[name], needed.unit) for name, needed in needs.items()}


def map_inputs(workspace: Workspace, node: Node) -> list[Node]:
    """Map nodes among the inputs of a node."""
    return [workspace.nodes[key] for key in node.inputs.values() if workspace.nodes[key].is_map]


def collect(
    workspace: Workspace, node: Node, wanted: Sequence[str], read: Callable[[Node, tuple[str, ...]], Told]
) -> Features:
    """Bring together the arrays that a cell reads, each from the first map input that has it.

    Parameters
    ----------
    workspace : Workspace
        Whose stage objects say what each input has.
    node : Node
        Cell node with map inputs.
    wanted : Sequence[str]
        What its stage `reads` of a cell.
    read : Callable
        Arrays of these names of a map node; the same rows of each.

    Returns
    -------
    Features
        A row is lost if it failed in any stage that is read; else the first of them speaks.
    """
    arrays: dict[str, Any] = {}
    attributes: Mapping[str, Any] = {}
    status: NDArray[np.uint8] | None = None
    for source in map_inputs(workspace, node):
        kept = {spec.name for spec in workspace.map_stage(source).outputs()} - arrays.keys()
        names = tuple(name for name in wanted if name in kept)
        if names:
            found, said = read(source, (*names, "status"))
            arrays |= {name: found[name] for name in names}
            attributes = {**said, **attributes}
            own = found["status"].astype(np.uint8)
            status = own if status is None else np.where(own == Status.FAILED, own, status)
    if status is None:
        raise ValueError(f"{node.key}: reads {wanted}, which none of {', '.join(node.inputs)} has")
    return Features(status, arrays, attributes)


_FEATURES: dict[str, tuple[str, ChunkArrays, Mapping[str, Any]]] = {}
"""Features of the last node of each stage that this process fitted cells on, with a digest of what was committed."""


def _committed(workspace: Workspace, node: Node, names: tuple[str, ...]) -> Told:
    """Some arrays of a map node over all drops; read anew whenever a commit changed, also while they are read."""
    key = digest_json([workspace.fingerprint(node), workspace.measure_data(node)])
    known, arrays, attributes = _FEATURES.get(node.stage, ("", {}, {}))
    if key != known or not set(names) <= set(arrays):
        stores = [(workspace.store(node, drop.drop_id), drop.chunks()) for drop in workspace.drops]
        parts = [read_rows(store, chunk, names) for store, chunks in stores for chunk in chunks]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in names}
        attributes = stores[0][0].attributes
        if digest_json([workspace.fingerprint(node), workspace.measure_data(node)]) != key:
            raise UnitError("Another run committed other features meanwhile.", "Run again.")
        _FEATURES[node.stage] = key, arrays, attributes
    return arrays, attributes
