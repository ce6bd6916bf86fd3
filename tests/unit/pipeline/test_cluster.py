"""Running in this process, devices, and stopping on a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from manifests.errors import ConfigError, StoreError
from pipeline import cluster
from pipeline.cluster import InlineCluster, choose_device
from pipeline.config import ClusterConfig
from pipeline.execute import UnitReport, UnitTask
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
