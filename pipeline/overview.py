"""What would run and why, and what is there: the tables of `plan` and `status`."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from manifests.commits import Commit, committed_units, read_commit
from manifests.errors import DamagedError
from pipeline.cluster import worker_count
from pipeline.commands import print_json, say
from pipeline.graph import Node, select
from pipeline.history import History, read_history, stage_of
from pipeline.logs import duration
from pipeline.plan import PlannedUnit, commits_of, count_outcomes, incomplete_inputs, plan_cells, plan_map
from pipeline.reasons import earlier_roots, summarise, why_new
from pipeline.terminal import print_table
from pipeline.workspace import Workspace

SAMPLED = 20
"""Commits whose sizes are averaged."""


@dataclass(frozen=True, slots=True)
class PlannedNode:
    """What a run would do for one node."""

    stage: str
    """Key of the node."""
    units: int | None
    """Units that would run; None while that cannot be known, because inputs are not complete."""
    reasons: Mapping[str, int]
    """Units by reason."""
    drops: Mapping[str, int]
    """Chunks by drop; empty for cells."""
    bytes: int | None
    """What they would write: after what such units wrote before, else the size of the arrays before compression."""
    seconds: float | None
    """After past runs, with the workers that are configured; None if there was none."""

    def as_json(self) -> dict[str, Any]:
        """Fields as JSON values, and `why` in one line."""
        fields = {name: getattr(self, name) for name in PlannedNode.__dataclass_fields__}
        return {**fields, "reasons": dict(self.reasons), "drops": dict(self.drops), "why": self.why}

    @property
    def why(self) -> str:
        """All reasons in one line."""
        if len(self.reasons) == 1:
            return next(iter(self.reasons))
        return "; ".join(f"{count} {reason}" if count else reason for reason, count in self.reasons.items())


def plan_nodes(workspace: Workspace, stage: str) -> Iterator[PlannedNode]:
    """Plan every node that a stage's name selects; nothing is created.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    stage : str
        Stage, or `one`, `two`, `all`.
    """
    workspace.looking = True
    history = read_history(workspace.paths)
    for node in select(tuple(workspace.nodes.values()), stage):
        lacking = {} if node.is_map else incomplete_inputs(workspace, node)
        if lacking:
            yield PlannedNode(node.key, None, {"after " + ", ".join(lacking): 0}, {}, None, None)
            continue
        units = plan_map(workspace, node) if node.is_map else plan_cells(workspace, node)
        drops = Counter(unit.chunk.drop for unit in units if unit.chunk)
        seconds = history.seconds.get(node.stage)
        yield PlannedNode(
            node.key,
            len(units),
            _reasons(workspace, node, units, history),
            drops,
            _bytes(workspace, node, len(units)),
            None if seconds is None else seconds * len(units) / worker_count(workspace.config.cluster, len(units)),
        )


def _reasons(workspace: Workspace, node: Node, units: Sequence[PlannedUnit], history: History) -> dict[str, int]:
    """Units by reason; for a stage that has nothing yet, what differs from the most similar one that has."""
    found: Counter[str] = Counter()
    because: dict[str, str] = {}
    for unit in units:
        drop_id = unit.chunk.drop if unit.chunk else ""
        cause = history.failures.get(f"{node.key}/{drop_id}{'/' if drop_id else ''}{unit.unit}")
        if cause:
            found[f"failed: {cause}"] += 1
        elif unit.reason != "new":
            found[unit.reason] += 1
        else:
            if drop_id not in because:
                is_empty = not committed_units(workspace.root(node, drop_id))
                because[drop_id] = summarise(why_new(workspace, node, drop_id)) if is_empty else ""
            found[because[drop_id] or "new"] += 1
    return dict(found)


def _bytes(workspace: Workspace, node: Node, units: int) -> int | None:
    """Mean size of a few units of this stage times the number of units; before there are any, that of their arrays."""
    if not units:
        return 0
    roots = [workspace.root(node, drop.drop_id) for drop in workspace.drops] if node.is_map else [workspace.root(node)]
    sizes = [sum(commit.sizes.values()) for root in (*roots, *earlier_roots(workspace, node)) for commit in _some(root)]
    if sizes:
        return round(fmean(sizes[:SAMPLED]) * units)
    if node.is_map:
        row = sum(array.item_bytes for array in workspace.map_stage(node).outputs())
        return units * row * max(drop.chunk_items for drop in workspace.drops)
    return None


def _some(root: Any) -> Iterator[Commit]:
    for unit in committed_units(root)[:SAMPLED]:
        try:
            commit = read_commit(root, unit)
        except DamagedError:
            continue
        if commit is not None:
            yield commit


def do_plan(workspace: Workspace, stage: str, *, as_json: bool) -> None:
    """Print what a run would do."""
    _stop_collecting()
    planned = list(plan_nodes(workspace, stage))
    if as_json:
        print_json([node.as_json() for node in planned])
        return
    rows = [
        (n.stage, "all" if n.units is None else n.units, _size(n.bytes), _time(n.seconds) if n.units else "", n.why)
        for n in planned
    ]
    print_table(("stage", "units", "size", "time", "why"), rows)
    units = sum(node.units or 0 for node in planned)
    say([f"{units} units to run{_forecast(planned)}." if units else "Nothing to do: everything is committed."])


def _forecast(planned: Sequence[PlannedNode]) -> str:
    at_work = [node for node in planned if node.units]
    known = [node.seconds for node in at_work if node.seconds is not None]
    told = [f"about {_size(sum(node.bytes or 0 for node in at_work))}"]
    if known:
        unknown = [stage_of(node.stage) for node in at_work if node.seconds is None]
        without = f", without {', '.join(dict.fromkeys(unknown))}" if unknown else ""
        told.append(f"about {duration(sum(known))} after past runs{without}")
    return ": " + ", ".join(told)


def _stop_collecting() -> None:
    """Spare the collector: all records live until the process ends, and it would walk through them again and again."""
    gc.disable()


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else duration(seconds)


def _size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return "?"
    size = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def status_rows(workspace: Workspace) -> list[dict[str, Any]]:
    """One row a map node and drop, and one a cell node, as JSON values.

    `pending` counts what is not committed, or is committed and out of date; it is None for a cell node whose inputs are
    not complete, as `units` is.
    """
    workspace.looking = True
    history = read_history(workspace.paths)
    rows: list[dict[str, Any]] = []
    for node in workspace.nodes.values():
        if node.is_map:
            commits = commits_of(workspace, node)
            planned = plan_map(workspace, node)
            for drop in workspace.drops:
                of_drop = {key: commit for key, commit in commits.items() if key[0] == drop.drop_id}
                pending = sum(unit.chunk is not None and unit.chunk.drop == drop.drop_id for unit in planned)
                rows.append(
                    _status(node, drop.drop_id, of_drop, len(drop.chunks()), pending)
                    | {"failed_units": _failures(history, f"{node.key}/{drop.drop_id}/")}
                )
            continue
        lacking = incomplete_inputs(workspace, node)
        commits = {} if lacking else commits_of(workspace, node)
        total = None if lacking else len(workspace.cell_stage(node).cells())
        pending_ = None if lacking else len(plan_cells(workspace, node))
        rows.append(_status(node, "", commits, total, pending_) | {"failed_units": _failures(history, f"{node.key}/")})
    return rows


def _failures(history: History, prefix: str) -> dict[str, str]:
    return {unit: cause for unit, cause in history.failures.items() if unit.startswith(prefix)}


def _status(
    node: Node, drop: str, commits: Mapping[tuple[str, str], Commit], units: int | None, pending: int | None
) -> dict[str, Any]:
    statuses, reasons = count_outcomes(commits)
    return {
        "stage": node.key,
        "drop": drop,
        "committed": len(commits),
        "units": units,
        "pending": pending,
        "images": dict(statuses),
        "reasons": dict(reasons),
    }


def do_status(workspace: Workspace, *, as_json: bool) -> None:
    """Print units and images of every stage and drop."""
    _stop_collecting()
    rows = status_rows(workspace)
    if as_json:
        print_json(rows)
        return
    cells = [
        (
            row["stage"],
            row["drop"],
            f"{row['committed']}/{'?' if row['units'] is None else row['units']}",
            "?" if row["pending"] is None else row["pending"],
            _pairs(row["images"]),
            _pairs(row["reasons"]),
        )
        for row in rows
    ]
    print_table(("stage", "drop", "committed", "pending", "images", "reasons"), cells)
    say(f"failed for good: {unit}: {cause}" for row in rows for unit, cause in row["failed_units"].items())


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
