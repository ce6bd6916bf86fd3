"""One run: plan each node, hand its units to the cluster, record what became of them, stop cleanly on a signal."""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from manifests.errors import DamagedError, ExitCode, PipelineError, RefusedError, UsageError
from manifests.layout import DatasetPaths
from manifests.runs import (
    HIDDEN,
    EventLog,
    RunRecord,
    finish_run,
    hide_text_paths,
    installed_versions,
    new_run_id,
    start_run,
)
from pipeline.cluster import Cluster, Clusters, choose_device
from pipeline.config import RunConfig
from pipeline.execute import UnitReport, UnitTask
from pipeline.graph import Node, select
from pipeline.logs import duration, log, ticker
from pipeline.plan import Part, PlannedUnit, incomplete_inputs, plan_cells, plan_map, share
from pipeline.signals import StopSignal
from pipeline.tally import Tally
from pipeline.workspace import Workspace

SECRET: Final = re.compile(r"^((?:--set=)?\s*cluster(?:\.(?:cpu_)?(?:jobs|tls|scheduler)[\w.]*)?)\s*=.*$", re.DOTALL)
"""An override of the keys that `recorded` leaves out, and of their neighbours."""


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
    private: frozenset[str] = frozenset()
    """Arguments that the record of the command line leaves out, because they may name patients."""


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
        if options.drop is not None:
            self.workspace.drop(options.drop)
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
        folder = self.paths.run(self.run_id)
        argv = _without_secrets(sys.argv, self.options.private)
        record = start_run(folder, self.run_id, argv, recorded(self.config))
        try:
            self.events = EventLog(folder / "events.jsonl")
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
        record = record.model_copy(update={"gpu": ", ".join(sorted(self.tally.gpus)) or None})
        finish_run(self.paths.run(self.run_id), record, outcome, int(code), self.tally.as_json())

    def _run_nodes(self, nodes: Sequence[Node]) -> None:
        """Run nodes in order; a cluster starts with the first node that has work, and serves those after it."""
        logs = self.paths.run(self.run_id) / "jobs"
        with (
            TemporaryDirectory(prefix="medfocus-") as scratch,
            Clusters(self.config.cluster, scratch, logs) as clusters,
        ):
            for position, node in enumerate(nodes):
                planned = self._plan(node)
                if planned:
                    cluster = clusters.serve(self._units(planned, nodes[position:]), gpu=self._device(node) == "cuda")
                    self._run_node(node, planned, cluster)
                if self.stop.name:
                    return
        self.tally.count_failed(self.workspace, [n for n in nodes if n.is_map])

    def _device(self, node: Node) -> str:
        return self.device if node.has_model else "cpu"

    def _units(self, planned: Sequence[PlannedUnit], ahead: Sequence[Node]) -> int:
        """Most units of the first node that has work, and of those that come after it."""
        chunks = sum(len(drop.chunks()) for drop in self.workspace.drops) if any(n.is_map for n in ahead[1:]) else 1
        cells = len(self.config.study.cells(("any",)))
        return max(len(planned), chunks, cells if any(not node.is_map for node in ahead) else 1)

    def _plan(self, node: Node) -> list[PlannedUnit] | None:
        lacking = {} if node.is_map else incomplete_inputs(self.workspace, node)
        if lacking:
            waits = ", ".join(f"{count} units of {key}" for key, count in lacking.items())
            self.tally.waiting[node.key] = waits
            self.events.write("waiting", node=node.key, lacking=lacking)
            log.warning("%s waits for %s", node.key, waits)
            return None
        units = plan_map(self.workspace, node, self.options.drop) if node.is_map else plan_cells(self.workspace, node)
        units = share(self._computable(node, units), self.options.part, self.options.limit)
        self.tally.planned[node.key] = len(units)
        self.events.write("planned", node=node.key, units=len(units), reasons=dict(Counter(u.reason for u in units)))
        return units

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
        drop_ids = sorted({u.chunk.drop for u in planned if u.chunk is not None})
        self.workspace.check_sources(drop_ids)
        self.workspace.write_identity(node)
        for drop_id in drop_ids:
            self.workspace.store(node, drop_id)
        config = self.config.model_dump_json()
        source = str(self.options.source.resolve()) if self.options.source else ""
        digest = self.workspace.data_digest(node) if not node.is_map and node.inputs else ""
        drops, device = tuple(d.drop_id for d in self.workspace.drops), self._device(node)
        root, versions = str(self.paths.root), installed_versions()
        tasks = [
            UnitTask(root, config, source, unit, digest, device, drops, self.run_id, versions=versions)
            for unit in planned
        ]
        with ticker(node.key, len(tasks)) as progress:
            for task, result in cluster.run(tasks, self.stop.remaining_s):
                self._record(node, task, result)
                progress.advance()
        self.workspace.forget_plans()
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
                device=result.device,
            )
            return
        if isinstance(result, (UsageError, RefusedError)) and not isinstance(result, DamagedError):
            raise result
        cause = f"{type(result).__name__}: {hide_text_paths(str(result))}"
        self.tally.failed_units[task.key] = cause
        self.events.write("failed", unit=task.key, cause=cause)
        log.error("%s failed for good: %s: %s", task.key, type(result).__name__, result)

    def _images(self, node: Node) -> str:
        counts = self.tally.images.get(node.key)
        if not counts:
            return ""
        return ": " + ", ".join(f"{counts[name]} {name}" for name in ("ok", "fallback", "failed") if counts[name])


def recorded(config: RunConfig) -> dict[str, Any]:
    """The configuration for the run's record, without what may hold secrets or name a machine."""
    hidden = {"prologue", "directives"}
    return config.model_dump(
        mode="json", exclude={"cluster": {"scheduler": True, "jobs": hidden, "cpu_jobs": hidden, "tls": True}}
    )


def _without_secrets(argv: Sequence[str], private: Collection[str] = ()) -> list[str]:
    """A command line without the values of the keys that `recorded` leaves out, and without `private` arguments."""
    return [HIDDEN if argument in private else SECRET.sub(r"\1=<hidden>", argument) for argument in argv]
