"""Which units would run, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from manifests.commits import Commit, digest_of, pending
from manifests.errors import UsageError
from manifests.forgetting import holds
from manifests.types import Cell, Chunk, Status
from pipeline.graph import Node
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """One unit that would run."""

    node: str
    """Key of the node."""
    unit: str
    reason: str
    """`new`, `retired`, `upstream changed` or `withdrawn`."""
    position: int
    """Place among all units of the node, committed ones too, so that array tasks agree on whose it is."""
    chunk: Chunk | None = None
    cell: Cell | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """Every count-th unit, beginning with number index: `3/16` is index 3 of count 16."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `I/N` with 1 <= I <= N.

        Raises
        ------
        UsageError
            If the text has another form or the numbers do not fit.
        """
        first, _, second = text.partition("/")
        if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
            raise UsageError(f"--part {text!r} is not of the form I/N with 1 <= I <= N.", "Example: --part 3/16")
        return cls(int(first), int(second))


def plan_map(workspace: Workspace, node: Node, drop_id: str | None = None) -> list[PlannedUnit]:
    """Chunks of a map node that are not committed, or whose input chunk has been committed anew since."""
    if node.key not in workspace.plans:
        workspace.plans[node.key] = _plan_chunks(workspace, node)
    units: list[PlannedUnit] = workspace.plans[node.key]
    return [u for u in units if u.chunk is not None and drop_id in (None, u.chunk.drop)]


def _plan_chunks(workspace: Workspace, node: Node) -> list[PlannedUnit]:
    planned: list[PlannedUnit] = []
    position = 0
    for drop in workspace.drops:
        chunks = {chunk.unit: chunk for chunk in drop.chunks()}
        reasons = dict(pending(workspace.root(node, drop.drop_id), list(chunks)))
        for index, (unit, chunk) in enumerate(chunks.items(), position):
            if unit not in reasons and (stale := stale_commit(workspace, node, chunk)):
                reasons[unit] = stale.reason
            if unit in reasons:
                planned.append(PlannedUnit(node.key, unit, reasons[unit], index, chunk=chunk))
        position += len(chunks)
    return planned


def input_digests(workspace: Workspace, node: Node, chunk: Chunk) -> dict[str, str]:
    """Content digest of the same chunk in every input of a map node; goes into the commit record."""
    sources = {stage: workspace.nodes[key] for stage, key in node.inputs.items()}
    return {
        stage: digest_of({chunk.unit: workspace.commit(source, chunk.unit, chunk.drop)})
        for stage, source in sources.items()
    }


class Stale(NamedTuple):
    """A commit that is to be replaced."""

    commit: Commit
    reason: str


def stale_commit(workspace: Workspace, node: Node, chunk: Chunk) -> Stale | None:
    """The commit of a chunk if it was made from another commit of its input, or holds images withdrawn since."""
    rows = workspace.chunk_rows(chunk) if workspace.withdrawn else ()
    gone = any(row.image_id in workspace.withdrawn for row in rows)
    if not node.inputs and not gone:
        return None
    commit = workspace.commit(node, chunk.unit, chunk.drop)
    if commit is None:
        return None
    if gone and holds(commit, workspace.withdrawn):
        return Stale(commit, "withdrawn")
    if node.inputs and commit.record.get("inputs") != input_digests(workspace, node, chunk):
        return Stale(commit, "upstream changed")
    return None


def plan_cells(workspace: Workspace, node: Node) -> list[PlannedUnit]:
    """Cells of a cell node that are not committed, or were made from other cells; its inputs must be complete."""
    if node.key not in workspace.plans:
        workspace.plans[node.key] = _plan_cells(workspace, node)
    units: list[PlannedUnit] = workspace.plans[node.key]
    return units


def _plan_cells(workspace: Workspace, node: Node) -> list[PlannedUnit]:
    cells = {cell.unit: cell for cell in workspace.cell_stage(node).cells()}
    reasons = dict(pending(workspace.root(node), list(cells)))
    for unit, cell in cells.items():
        if unit not in reasons and stale_cell(workspace, node, cell):
            reasons[unit] = "upstream changed"
    return [
        PlannedUnit(node.key, unit, reasons[unit], index, cell=cell)
        for index, (unit, cell) in enumerate(cells.items())
        if unit in reasons
    ]


def cell_inputs(workspace: Workspace, node: Node, cell: Cell) -> dict[str, str]:
    """Content digest of every cell whose artifacts this one reads; goes into the commit record."""
    needs = workspace.cell_stage(node).needs(cell)
    sources = {stage: workspace.nodes[node.inputs[stage]] for stage in needs}
    return {
        stage: digest_of({needed.unit: workspace.commit(sources[stage], needed.unit)})
        for stage, needed in needs.items()
    }


def stale_cell(workspace: Workspace, node: Node, cell: Cell) -> Commit | None:
    """The commit of a cell if it was made from another commit of a cell that it reads than the one that stands now."""
    commit = workspace.commit(node, cell.unit)
    if commit is None or commit.record.get("inputs", {}) == cell_inputs(workspace, node, cell):
        return None
    return commit


def incomplete_inputs(workspace: Workspace, node: Node) -> dict[str, int]:
    """How many units each input of a node still lacks, by key; only inputs that lack some."""
    lacking: dict[str, int] = {}
    for key in node.inputs.values():
        source = workspace.nodes[key]
        below = incomplete_inputs(workspace, source)
        if below and not source.is_map:
            lacking |= below
            continue
        count = len(plan_map(workspace, source) if source.is_map else plan_cells(workspace, source))
        if count or below:
            lacking[key] = count
    return lacking


def share(units: Sequence[PlannedUnit], part: Part | None, limit: int | None) -> list[PlannedUnit]:
    """The units of one array task, and no more than `limit`."""
    return [u for u in units if part is None or u.position % part.count == part.index - 1][:limit]


def commits_of(workspace: Workspace, node: Node) -> Mapping[tuple[str, str], Commit]:
    """All commits of a node by (drop or empty, unit)."""
    found: dict[tuple[str, str], Commit] = {}
    if node.is_map:
        wanted = [(drop.drop_id, chunk.unit) for drop in workspace.drops for chunk in drop.chunks()]
    else:
        wanted = [("", cell.unit) for cell in workspace.cell_stage(node).cells()]
    for drop_id, unit in wanted:
        commit = workspace.commit(node, unit, drop_id)
        if commit is not None:
            found[drop_id, unit] = commit
    return found


def count_outcomes(commits: Mapping[tuple[str, str], Commit]) -> tuple[Counter[str], Counter[str]]:
    """Images by status and by reason over commits of a map node."""
    outcomes = [item for commit in commits.values() for item in commit.outcomes()]
    numbers = Counter(int(item.status) for item in outcomes)
    statuses = Counter({Status(number).name.lower(): count for number, count in numbers.items()})
    return statuses, Counter(item.reason for item in outcomes if item.reason)
