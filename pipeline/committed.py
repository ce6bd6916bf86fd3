"""What is committed under one configuration, looked up once for a whole report; nothing is created by looking."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from manifests.commits import Commit
from manifests.errors import DamagedError
from manifests.fingerprint import digest_bytes
from manifests.inventory_file import ESCAPED
from manifests.types import Cell
from pipeline.graph import SCORED_STAGES, Node
from pipeline.plan import PlannedUnit, commits_of, plan_cells, plan_map
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Committed:
    """What is committed under one configuration, each node looked at once."""

    chunks: Mapping[str, Mapping[tuple[str, str], Commit]]
    """Commits by (drop, unit) of every map node that lacks none, by key of the node."""
    cells: Mapping[str, Mapping[Cell, Commit]]
    """Commits by cell of every scored node whose inputs are complete, by key of the node."""
    incomplete: Mapping[str, str]
    """What each unfinished mask policy lacks, such as `3 of 5 chunks of masks`."""


def look_up(workspace: Workspace) -> Committed:
    """Find what is committed; nothing is created, and a node that has not run is no error."""
    lacking: dict[str, str] = {}
    chunks: dict[str, Mapping[tuple[str, str], Commit]] = {}
    cells: dict[str, Mapping[Cell, Commit]] = {}
    for node in workspace.nodes.values():
        if not node.is_map and any(key in lacking for key in node.inputs.values()):
            lacking[node.key] = ""  # it cannot even be planned; what its inputs lack is said there
            continue
        planned = {(u.chunk.drop if u.chunk else "", u.unit) for u in _plan(workspace, node)}
        if planned:
            lacking[node.key] = f"{len(planned)} of {_total(workspace, node)} of {node.stage}"
        elif node.is_map:
            chunks[node.key] = commits_of(workspace, node)
        if node.stage in SCORED_STAGES:
            commits = {key: commit for key, commit in commits_of(workspace, node).items() if key not in planned}
            known = workspace.cell_stage(node).cells()
            cells[node.key] = {cell: commits["", cell.unit] for cell in known if ("", cell.unit) in commits}
    return Committed(chunks, cells, _incomplete(workspace, lacking))


def _plan(workspace: Workspace, node: Node) -> Sequence[PlannedUnit]:
    return plan_map(workspace, node) if node.is_map else plan_cells(workspace, node)


def _total(workspace: Workspace, node: Node) -> str:
    if node.is_map:
        return f"{sum(len(drop.chunks()) for drop in workspace.drops)} chunks"
    return f"{len(workspace.cell_stage(node).cells())} cells"


def _incomplete(workspace: Workspace, lacking: Mapping[str, str]) -> dict[str, str]:
    """What each policy lacks, in its own branch and in what it shares with others."""
    out: dict[str, str] = {}
    for node in workspace.nodes.values():
        if node.stage == "probes" and not node.backbone:
            needed = {node.key}
            for below in reversed(tuple(workspace.nodes.values())):
                needed.update(below.inputs.values() if below.key in needed else ())
            if parts := [text for key, text in lacking.items() if key in needed and text]:
                out[node.policy] = ", ".join(parts)
    return out


def read_artifact(workspace: Workspace, node: Node, commit: Commit, name: str) -> bytes:
    """One file of a committed cell, as it was committed.

    Raises
    ------
    DamagedError
        If it is missing or has other bytes.
    """
    file = workspace.root(node) / "commits" / commit.unit / name
    data = file.read_bytes() if file.is_file() else b""
    if digest_bytes(data) != commit.digests.get(name):
        raise DamagedError(
            f"{node.key}/{commit.unit}/{name} is missing or not what was committed.",
            "Run: pipeline verify, then: pipeline repair",
        )
    return data


@dataclass(frozen=True, slots=True)
class Told:
    """What one method says of the test images."""

    method: str
    training: str
    classes: Mapping[tuple[str, int], str]
    """Predicted class by drop and row: copies of a file share an image_id."""


def predictions(workspace: Workspace, committed: Committed, policy: str | None, methods: Sequence[str]) -> Told | None:
    """Answers of the first of the methods that has some, on its largest training subset with the first seed.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    committed : Committed
        What `look_up` found.
    policy : str or None
        Mask policy; None for methods that see no mask, whichever branch has them.
    methods : Sequence[str]
        In order of preference.

    Raises
    ------
    DamagedError
        If predictions are missing or not what was committed.
    """
    probes = [key for key in committed.cells if workspace.nodes[key].stage == "probes"]
    own = [key for key in probes if not workspace.nodes[key].backbone]
    nodes = [workspace.nodes[key] for key in own if policy in (None, workspace.nodes[key].policy)]
    for method in methods:
        for node in nodes:
            if shown := largest(committed.cells[node.key], method):
                return Told(method, shown.training, answers_of(workspace, committed, node, shown))
    return None


def answers_of(workspace: Workspace, committed: Committed, node: Node, cell: Cell) -> dict[tuple[str, int], str]:
    """Predicted class of one cell by drop and row.

    Raises
    ------
    DamagedError
        If predictions are missing or not what was committed.
    """
    file = read_artifact(workspace, node, committed.cells[node.key][cell], "predictions.csv")
    lines = csv.DictReader(io.StringIO(file.decode("utf-8"), newline=""))
    return {(line["drop"], int(line["row"])): plain_name(line["predicted"]) for line in lines}


def largest(cells: Iterable[Cell], method: str) -> Cell | None:
    """The cell of a method's largest training subset with the first seed; None if there is none."""
    fitted = [cell for cell in cells if cell.method == method]
    return max(fitted, key=lambda cell: (cell.fraction, cell.shots, -cell.seed), default=None)


def plain_name(name: str) -> str:
    """A class name without the apostrophe that keeps spreadsheets from running it."""
    return name[1:] if name[:1] == "'" and name[1:].startswith(ESCAPED) else name
