"""One unit, from committed inputs to its own commit: what a worker runs."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from manifests.commits import publish_cell, publish_chunk, read_commit, read_rows, retire
from manifests.errors import PipelineError, UnitError
from manifests.forgetting import WITHDRAWALS
from manifests.layout import DatasetPaths
from manifests.types import Cell, Chunk, ChunkArrays, Status
from pipeline.canary import BrokenGpuError, broken_gpu, check_versions, device_name, meet_canary
from pipeline.cell_data import cell_data
from pipeline.config import RunConfig
from pipeline.graph import Node
from pipeline.plan import PlannedUnit, cell_inputs, input_digests, stale_cell, stale_commit
from pipeline.workspace import Workspace
from stages.base import MapStage


@dataclass(frozen=True, slots=True)
class UnitTask:
    """Everything a worker needs to know about one unit: names and numbers, never pixels or weights."""

    dataset_root: str
    config: str
    """The configuration as JSON."""
    source: str
    """Where the source folder is mounted, if not where it was ingested; else empty."""
    planned: PlannedUnit
    data_digest: str
    """Digest of a cell node's inputs; empty for a chunk."""
    device: str
    drops: tuple[str, ...]
    """Drops that the driver planned with; later ones are left to the next run."""
    run_id: str
    rows: tuple[int, ...] = ()
    """Positions in the chunk: compute these alone and commit nothing, to see whether the process survives."""
    poison: tuple[int, ...] = ()
    """Positions in the chunk of images that killed their process: they become failed rows."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages of the driver, which a worker's must equal."""

    @property
    def key(self) -> str:
        """Readable name of the unit, unique within a run."""
        drop = f"{self.planned.chunk.drop}/" if self.planned.chunk else ""
        return f"{self.planned.node}/{drop}{self.planned.unit}"


@dataclass(frozen=True, slots=True)
class UnitReport:
    """What one unit did, as counts."""

    won: bool
    """False if another process had committed the unit first."""
    images: Mapping[str, int] = field(default_factory=dict)
    """Images by status; empty for a cell."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Failed and fallback images by reason."""
    timings: Mapping[str, float] = field(default_factory=dict)
    """Seconds by step."""
    pid: int = 0
    device: str = ""
    """Processor or GPU of the model, and torch's version; empty where there is no model."""
    on_gpu: bool = False


@lru_cache(maxsize=4)
def _workspace(dataset_root: str, config: str, source: str, drops: tuple[str, ...], _run_id: str) -> Workspace:
    paths = DatasetPaths(Path(dataset_root))
    return Workspace(paths, RunConfig.model_validate_json(config), Path(source) if source else None, drops)


_LOADED: dict[tuple[Any, ...], MapStage] = {}
"""The one map stage whose model this process holds, by its folder, its device, and how it is run."""
_LOADING = threading.Lock()


def attempt_unit(task: UnitTask) -> UnitReport | PipelineError:
    """Run a unit; an error of the tree is returned, because trying again would not help."""
    try:
        check_versions(task.versions)
        return run_unit(task)
    except PipelineError as error:
        return error


def run_unit(task: UnitTask) -> UnitReport:
    """Compute and publish one unit in this process.

    Raises
    ------
    PipelineError
        If weights, the store or the GPU are at fault; images that cannot be read are rows of the result instead.
    """
    import torch
    from threadpoolctl import threadpool_limits

    workspace = _workspace(task.dataset_root, task.config, task.source, task.drops, task.run_id)
    threads = workspace.config.cluster.threads
    torch.set_num_threads(threads)
    node = workspace.nodes[task.planned.node]
    try:
        with threadpool_limits(threads):
            if task.planned.chunk is not None:
                return _run_chunk(workspace, node, task.planned.chunk, task)
            if task.planned.cell is None:
                raise ValueError(f"{task.key}: a planned unit has a chunk or a cell, got neither")
            return _run_cell(workspace, node, task.planned.cell, task)
    except RuntimeError as error:
        if not broken_gpu(error):
            raise
        said = str(error).partition("\n")[0]
        raise BrokenGpuError(
            f"{task.key}: the GPU of a process does not go on: {said}.", "Run again; if it comes back, look at the GPU."
        ) from error
    finally:
        _release_memory()


def _release_memory() -> None:
    """Give freed memory back: glibc keeps the pieces that several threads have freed, and a worker grows for hours."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _run_chunk(workspace: Workspace, node: Node, chunk: Chunk, task: UnitTask) -> UnitReport:
    started = time.perf_counter()
    stage = _loaded(workspace, node, task.device)
    loaded = time.perf_counter()
    inputs = input_digests(workspace, node, chunk)
    upstream = {stage: _read(workspace, key, chunk) for stage, key in node.inputs.items()}
    rows = workspace.chunk_rows(chunk)
    if task.rows:
        some = list(task.rows)
        parts = {name: {key: array[some] for key, array in arrays.items()} for name, arrays in upstream.items()}
        stage.process([rows[i] for i in some], workspace.image_source(chunk.drop), parts)
        return UnitReport(won=False, pid=os.getpid())
    source = workspace.image_source(chunk.drop, [rows[i].image_id for i in task.poison])
    result = stage.process(rows, source, upstream)
    computed = time.perf_counter()
    store = workspace.store(node, chunk.drop)
    stale = stale_commit(workspace, node, chunk)
    if stale is not None:
        retire(store.root, chunk.unit, stale.commit.attempt)
    won = publish_chunk(store, chunk, result, {"inputs": inputs, "run": task.run_id}) or _is_ours(
        store.root, chunk.unit, task
    )
    timings = {**result.timings, "load": loaded - started, "publish": time.perf_counter() - computed}
    statuses = Counter(Status(item.status).name.lower() for item in result.items)
    reasons = Counter(item.reason for item in result.items if item.reason)
    device = device_name(task.device) if node.has_model else ""
    return UnitReport(won, statuses, reasons, timings, os.getpid(), device, on_gpu=task.device == "cuda")


def _read(workspace: Workspace, key: str, chunk: Chunk) -> ChunkArrays:
    return read_rows(workspace.store(workspace.nodes[key], chunk.drop), chunk)


def _loaded(workspace: Workspace, node: Node, device: str) -> MapStage:
    """The stage with its model, loaded once in a process and compared with the models of other processes."""
    folder, cluster = workspace.paths.stage(node.stage, workspace.fingerprint(node)), workspace.config.cluster
    key = (folder, device, cluster.batch_items, cluster.compiled)
    with _LOADING:
        if key not in _LOADED:
            stage = workspace.map_stage(node)
            stage.load(device)
            precision = getattr(node.settings, "precision", "float32")
            meet_canary(folder, stage, precision, device)
            _LOADED.clear()
            _LOADED[key] = stage
        return _LOADED[key]


def _run_cell(workspace: Workspace, node: Node, cell: Cell, task: UnitTask) -> UnitReport:
    started = time.perf_counter()
    if node.inputs and workspace.data_digest(node) != task.data_digest:
        raise UnitError("Another run committed other features meanwhile.", "Run again.")
    stage, inputs = workspace.cell_stage(node), cell_inputs(workspace, node, cell)
    data = cell_data(workspace, node, cell, task.device)
    stale = stale_cell(workspace, node, cell)
    if stale is not None:
        retire(workspace.root(node), cell.unit, stale.attempt)
    record = {
        "inputs": inputs,
        "run": task.run_id,
        "drops": [drop.drop_id for drop in workspace.drops],
        WITHDRAWALS: [record.withdrawal_id for record in workspace.withdrawals],
    }
    root = workspace.root(node)
    won = publish_cell(root, cell.unit, lambda out: stage.fit(cell, data, out), record) or _is_ours(
        root, cell.unit, task
    )
    device = device_name(task.device) if node.has_model else ""
    timings = {"fit": time.perf_counter() - started}
    return UnitReport(won, timings=timings, pid=os.getpid(), device=device, on_gpu=task.device == "cuda")


def _is_ours(root: Path, unit: str, task: UnitTask) -> bool:
    """Whether an earlier attempt of this very run committed a unit, before its worker died."""
    commit = read_commit(root, unit)
    return commit is not None and commit.record.get("run") == task.run_id
