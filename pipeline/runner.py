"""One run: plan each node, hand its units to the cluster, record what became of them, stop cleanly on a signal."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from manifests.errors import ExitCode, PipelineError
from manifests.layout import DatasetPaths
from manifests.runs import EventLog, RunRecord, finish_run, new_run_id, start_run
from manifests.types import Status
from pipeline.cluster import Cluster, choose_device, open_cluster
from pipeline.config import RunConfig
from pipeline.execute import UnitReport, UnitTask
from pipeline.graph import Node, select
from pipeline.logs import duration, log, ticker
from pipeline.plan import Part, PlannedUnit, commits_of, incomplete_inputs, plan_cells, plan_map, share
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What one invocation is told beside the configuration."""

    stage: str = "all"
    drop: str | None = None
    """Only chunks of this drop."""
    part: Part | None = None
    limit: int | None = None
    """At most this many units a node."""
    source: Path | None = None
    """Where the source folder is mounted here."""


@dataclass(slots=True)
class Tally:
    """What a run has done so far, by node."""

    planned: Counter[str] = field(default_factory=Counter)
    committed: Counter[str] = field(default_factory=Counter)
    images: dict[str, Counter[str]] = field(default_factory=dict)
    """Images by status."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Failed and fallback images by reason."""
    failed_units: dict[str, str] = field(default_factory=dict)
    """What ended a unit for good, by its name."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Nodes that could not start, and for what they wait."""
    failed_images: Counter[str] = field(default_factory=Counter)
    """Images without a result by reason, from earlier runs too."""

    def add(self, node: str, report: UnitReport) -> None:
        """Count one committed unit."""
        self.committed[node] += 1
        self.images.setdefault(node, Counter()).update(report.images)
        self.reasons.update(report.reasons)

    def count_failed(self, workspace: Workspace, nodes: Sequence[Node]) -> None:
        """Count each image that failed once, under the reason of the first stage that could not use it."""
        seen: dict[tuple[str, int], str] = {}
        for node in nodes:
            for (drop_id, _), commit in commits_of(workspace, node).items():
                for item in commit.outcomes():
                    if item.status == Status.FAILED:
                        seen.setdefault((drop_id, item.row), item.reason)
        self.failed_images = Counter(seen.values())

    def exit_code(self) -> ExitCode:
        """FAILURES if a unit failed for good or an image has no result."""
        return ExitCode.FAILURES if self.failed_units or self.failed_images else ExitCode.DONE

    def as_json(self) -> dict[str, Any]:
        """Counts as JSON values."""
        return {
            "planned": dict(self.planned),
            "committed": dict(self.committed),
            "images": {node: dict(counts) for node, counts in self.images.items()},
            "reasons": dict(self.reasons),
            "failed_images": dict(self.failed_images),
            "failed_units": self.failed_units,
            "waiting": self.waiting,
        }


class StopSignal:
    """Remembers that SIGTERM, SIGUSR1 or SIGINT came, and how long units in flight may still take.

    Parameters
    ----------
    grace_s : float
        Seconds from the signal on; a second SIGINT ends them at once.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._until: float | None = None
        self.name = ""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        again = self._until is not None and number == signal.SIGINT
        self.name = self.name or signal.Signals(number).name
        self._until = 0.0 if again else (self._until or time.monotonic() + self._grace_s)

    def remaining_s(self) -> float | None:
        """None while no signal came; else the seconds that are left."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Handle the signals inside the block, and restore what handled them before."""
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    run_id: str
    exit_code: ExitCode
    tally: Tally
    seconds: float


class Runner:
    """Carries one run out.

    Parameters
    ----------
    paths : DatasetPaths
        The data set.
    config : RunConfig
        Its configuration.
    options : RunOptions
        What this invocation asks for.
    """

    def __init__(self, paths: DatasetPaths, config: RunConfig, options: RunOptions) -> None:
        self.paths, self.config, self.options = paths, config, options
        self.workspace = Workspace(paths, config, options.source)
        self.device = choose_device(config.cluster)
        self.stop = StopSignal(config.cluster.grace_s)
        self.tally = Tally()
        self.run_id = new_run_id()

    def run(self) -> Outcome:
        """Complete the stage that was asked for, and everything it needs.

        Raises
        ------
        PipelineError
            If weights, configuration or the store are at fault; the run record says so too.
        """
        started = time.monotonic()
        nodes = select(tuple(self.workspace.nodes.values()), self.options.stage)
        record, folder = (
            start_run(self.paths.run(self.run_id), self.run_id, sys.argv, self.config.model_dump(mode="json")),
            self.paths.run(self.run_id),
        )
        self.events = EventLog(folder / "events.jsonl")
        try:
            with self.stop.listening():
                self._run_nodes(nodes)
        except PipelineError as error:
            self._finish(record, error.exit_code, type(error).__name__)
            raise
        except BaseException as error:
            self._finish(record, ExitCode.BUG, type(error).__name__)
            raise
        code = ExitCode.INTERRUPTED if self.stop.name else self.tally.exit_code()
        self._finish(record, code, self.stop.name or code.name.lower())
        return Outcome(self.run_id, code, self.tally, time.monotonic() - started)

    def _finish(self, record: RunRecord, code: ExitCode, outcome: str) -> None:
        finish_run(self.paths.run(self.run_id), record, outcome, int(code), self.tally.as_json())

    def _run_nodes(self, nodes: Sequence[Node]) -> None:
        """Run nodes in order; one cluster serves them all and starts with the first node that has work."""
        cluster: Cluster | None = None
        with ExitStack() as stack:
            for position, node in enumerate(nodes):
                planned = self._plan(node)
                if planned:
                    cluster = cluster or stack.enter_context(self._cluster(planned, nodes[position:]))
                    self._run_node(node, planned, cluster)
                if self.stop.name:
                    return
        self.tally.count_failed(self.workspace, [n for n in nodes if n.is_map])

    @contextmanager
    def _cluster(self, planned: Sequence[PlannedUnit], ahead: Sequence[Node]) -> Iterator[Cluster]:
        """Start workers for the first node that has work, and for the cells that come after it."""
        cells = len(self.config.study.fractions) * len(self.config.study.seeds)
        units = max(len(planned), cells if any(not node.is_map for node in ahead) else 1)
        with TemporaryDirectory(prefix="medfocus-") as scratch, open_cluster(self.config.cluster, units, scratch) as it:
            yield it

    def _plan(self, node: Node) -> list[PlannedUnit] | None:
        lacking = {} if node.is_map else incomplete_inputs(self.workspace, node)
        if lacking:
            waits = ", ".join(f"{count} units of {key}" for key, count in lacking.items())
            self.tally.waiting[node.key] = waits
            self.events.write("waiting", node=node.key, lacking=lacking)
            log.warning("%s waits for %s", node.key, waits)
            return None
        units = plan_map(self.workspace, node, self.options.drop) if node.is_map else plan_cells(self.workspace, node)
        units = share(units, self.options.part, self.options.limit)
        self.tally.planned[node.key] = len(units)
        self.events.write("planned", node=node.key, units=len(units), reasons=dict(Counter(u.reason for u in units)))
        return self._computable(node, units)

    def _computable(self, node: Node, units: list[PlannedUnit]) -> list[PlannedUnit]:
        """Leave out chunks whose input chunk is not committed: it failed, or belongs to another part."""
        if not node.is_map or not node.inputs:
            return units
        lacking = {
            (u.chunk.drop, u.unit)
            for key in node.inputs.values()
            for u in plan_map(self.workspace, self.workspace.nodes[key])
            if u.chunk is not None
        }
        ready = [u for u in units if u.chunk is not None and (u.chunk.drop, u.unit) not in lacking]
        if len(ready) < len(units):
            self.tally.waiting[node.key] = f"{len(units) - len(ready)} chunks of {', '.join(node.inputs.values())}"
        return ready

    def _run_node(self, node: Node, planned: Sequence[PlannedUnit], cluster: Cluster) -> None:
        started = time.monotonic()
        self.workspace.write_identity(node)
        for drop_id in sorted({u.chunk.drop for u in planned if u.chunk is not None}):
            self.workspace.store(node, drop_id)
        config = self.config.model_dump_json()
        source = str(self.options.source.resolve()) if self.options.source else ""
        digest = self.workspace.data_digest(node) if not node.is_map and node.inputs else ""
        drops = tuple(d.drop_id for d in self.workspace.drops)
        tasks = [
            UnitTask(str(self.paths.root), config, source, u, digest, self.device, drops, self.run_id) for u in planned
        ]
        with ticker(node.key, len(tasks)) as progress:
            for task, result in cluster.run(tasks, self.stop.remaining_s):
                self._record(node, task, result)
                progress.advance()
        done, seconds = self.tally.committed[node.key], time.monotonic() - started
        log.info("%s: %d of %d units in %s%s", node.key, done, len(tasks), duration(seconds), self._images(node))

    def _record(self, node: Node, task: UnitTask, result: UnitReport | Exception) -> None:
        if isinstance(result, UnitReport):
            self.tally.add(node.key, result)
            self.events.write(
                "committed" if result.won else "committed elsewhere",
                unit=task.key,
                reason=task.planned.reason,
                images=dict(result.images),
                reasons=dict(result.reasons),
                timings={k: round(v, 4) for k, v in result.timings.items()},
                pid=result.pid,
            )
            return
        if isinstance(result, PipelineError) and result.exit_code in (ExitCode.USAGE, ExitCode.REFUSED):
            raise result
        cause = f"{type(result).__name__}: {result}"
        self.tally.failed_units[task.key] = cause
        self.events.write("failed", unit=task.key, cause=cause)
        log.error("%s failed for good: %s", task.key, cause)

    def _images(self, node: Node) -> str:
        counts = self.tally.images.get(node.key)
        if not counts:
            return ""
        return ": " + ", ".join(f"{counts[name]} {name}" for name in ("ok", "fallback", "failed") if counts[name])
