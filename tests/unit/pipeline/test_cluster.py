"""Running in this process, devices, and stopping on a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError, StoreError
from pipeline import cluster
from pipeline.cluster import Clusters, InlineCluster, choose_device, worker_count
from pipeline.cluster_config import ClusterConfig, JobSettings
from pipeline.execute import UnitReport, UnitTask
from pipeline.gpus import visible_gpus
from pipeline.plan import PlannedUnit
from pipeline.signals import StopSignal

TASKS = [
    UnitTask("/d", "{}", "", PlannedUnit("masks", f"{i:06d}", "new", i), "", "cpu", ("drop-001",), "run")
    for i in range(3)
]


def run_with(monkeypatch: pytest.MonkeyPatch, unit: Callable[[UnitTask], UnitReport], retries: int = 1) -> list[object]:
    monkeypatch.setattr(cluster, "run_unit", unit)
    return [result for _, result in InlineCluster(retries).run(TASKS, lambda: None)]


def test_unit_that_raises_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def flaky(task: UnitTask) -> UnitReport:
        calls.append(task.key)
        if len(calls) == 1:
            raise RuntimeError("once")
        return UnitReport(won=True)

    assert all(isinstance(r, UnitReport) for r in run_with(monkeypatch, flaky))
    assert len(calls) == 4


def test_unit_that_always_raises_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def second_fails(task: UnitTask) -> UnitReport:
        if task.planned.position == 1:
            raise RuntimeError("always")
        return UnitReport(won=True)

    results = run_with(monkeypatch, second_fails)
    assert [isinstance(r, UnitReport) for r in results] == [True, False, True]


def test_error_of_the_store_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def full(task: UnitTask) -> UnitReport:
        calls.append(task.key)
        raise StoreError("disk full", "free space")

    results = run_with(monkeypatch, full, retries=5)
    assert len(calls) == len(TASKS)
    assert all(isinstance(r, StoreError) for r in results)


def test_nothing_is_started_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "run_unit", lambda task: UnitReport(won=True))
    assert list(InlineCluster(0).run(TASKS, lambda: 5.0)) == []


def test_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert choose_device(ClusterConfig()) == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device(ClusterConfig(device="cuda"))


def test_signal_is_remembered_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal(grace_s=9.0).listening() as stop:
        assert stop.remaining_s() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"
        assert 8.0 < (stop.remaining_s() or 0) <= 9.0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("visible", "names"),
    [("", ()), ("-1", ()), ("0", ("0",)), ("0, 2", ("0", "2")), ("GPU-8f3a,GPU-11c0", ("GPU-8f3a", "GPU-11c0"))],
)
def test_gpus_are_those_that_the_batch_system_left_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == names


@pytest.mark.parametrize(
    ("kind", "workers", "units", "gpu", "count"),
    [
        ("local", 4, 9, False, 4),
        ("local", 4, 2, False, 2),
        ("local", 4, 0, False, 1),
        ("local", 0, 9, True, 3),
        ("local", 2, 9, True, 2),
        ("local", 8, 9, True, 3),
        ("auto", 0, 1, True, 1),
        ("auto", 3, 9, False, 3),
        ("auto", 3, 1, False, 1),
        ("inline", 4, 9, True, 1),
    ],
)
def test_no_more_workers_than_units_or_gpus(
    monkeypatch: pytest.MonkeyPatch, kind: Any, workers: int, units: int, gpu: bool, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert worker_count(ClusterConfig(kind=kind, workers=workers), units, gpu=gpu) == count


def test_device_of_a_batch_system_is_that_of_its_jobs_and_not_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert choose_device(ClusterConfig(kind="slurm")) == "cpu"
    assert choose_device(ClusterConfig(kind="slurm", jobs=JobSettings(gpus=1))) == "cuda"
    assert choose_device(ClusterConfig(kind="slurm", jobs=JobSettings(gpus=1), device="cpu")) == "cpu"
    with pytest.raises(ConfigError, match=r"cluster\.jobs\.gpus is 0"):
        choose_device(ClusterConfig(kind="slurm", device="cuda"))


OPEN_ALL = ["open False", "open True", "close True", "close False"]
ONE_AT_A_TIME = ["open False", "close False", "open True", "close True", "open False", "close False"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Clusters that are opened and closed instead of the real ones."""
    told: list[str] = []

    @contextmanager
    def recording(*_: object, gpu: bool, **__: object) -> Iterator[InlineCluster]:
        told.append(f"open {gpu}")
        yield InlineCluster(0)
        told.append(f"close {gpu}")

    monkeypatch.setattr(cluster, "open_cluster", recording)
    return told


@pytest.mark.parametrize(("kind", "expected"), [("local", OPEN_ALL), ("slurm", ONE_AT_A_TIME)])
def test_cluster_serves_node_after_node_but_jobs_of_one_sort_do_not_wait_while_others_work(
    tmp_path: Path, told: list[str], kind: Any, expected: list[str]
) -> None:
    with Clusters(ClusterConfig(kind=kind), str(tmp_path), tmp_path / "jobs") as clusters:
        served = [clusters.serve(3, gpu=gpu) for gpu in (False, False, True, True, False)]
    assert told == expected
    assert (served[0] is served[1], served[2] is served[3]) == (True, True)
    assert (served[0] is served[4]) == (kind == "local")


@pytest.mark.parametrize("named", [{"scheduler": "tls://a:8786"}, {"scheduler_file": Path("f")}])
@pytest.mark.parametrize("first", [True, False])
def test_cluster_that_stands_is_opened_once_for_units_with_and_without_a_gpu(
    tmp_path: Path, told: list[str], named: dict[str, Any], *, first: bool
) -> None:
    with Clusters(ClusterConfig(**named), str(tmp_path), tmp_path / "jobs") as clusters:
        assert clusters.serve(3, gpu=first) is clusters.serve(3, gpu=not first)
    assert len(told) == 2
