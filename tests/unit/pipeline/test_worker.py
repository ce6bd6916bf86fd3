"""How a worker of a batch job ends: early enough, and not before the unit at work."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Status

from pipeline import worker
from pipeline.worker import STARTED, Life, Prepare, drain

LIFE = Life(lifetime_s=3000, stagger_s=30, walltime_s=3600)


def aged(monkeypatch: pytest.MonkeyPatch, age_s: float) -> None:
    """Let this process' job be so old."""
    monkeypatch.setenv(STARTED, str(time.time() - age_s))


def test_worker_takes_no_further_unit_up_to_the_stagger_before_its_lifetime(monkeypatch: pytest.MonkeyPatch) -> None:
    aged(monkeypatch, 1000)
    drawn = [LIFE.remaining_s() for _ in range(200)]
    assert 1969 < min(drawn) < max(drawn) <= 2000
    assert max(drawn) - min(drawn) > 15


@pytest.mark.parametrize("age_s", [3000, 3600, 5000])
def test_worker_older_than_its_lifetime_ends_at_once(monkeypatch: pytest.MonkeyPatch, age_s: float) -> None:
    aged(monkeypatch, age_s)
    assert LIFE.remaining_s() == 0


@pytest.mark.parametrize(("age_s", "patience_s"), [(0, 3590), (3000, 590), (3589, 1), (3590, 0), (3600, 0), (5000, 0)])
def test_unit_at_work_may_take_until_ten_seconds_before_the_walltime(
    monkeypatch: pytest.MonkeyPatch, age_s: float, patience_s: float
) -> None:
    aged(monkeypatch, age_s)
    assert LIFE.patience_s() == pytest.approx(patience_s, abs=0.5)
    assert LIFE.patience_s() >= 0


def test_worker_that_no_job_started_is_as_old_as_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTED, raising=False)
    assert LIFE.age_s() == pytest.approx(0, abs=0.1)


class Draining:
    """Stands for Dask's worker: computes until it is told not to, and notes what is asked of it."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(executing={"unit"})
        self.status, self.address = Status.running, "tls://127.0.0.1:1"
        self.scheduler = self
        self.told: list[str] = []

    async def retire_workers(self, workers: list[str], **_: object) -> None:
        assert workers == [self.address]
        self.told.append("retired")

    async def close(self, **_: object) -> None:
        self.told.append("closed")


@pytest.fixture
def draining(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(worker, "FETCH_S", 0.0)
    return Draining()


def test_worker_that_ends_waits_for_the_unit_at_work(monkeypatch: pytest.MonkeyPatch, draining: Any) -> None:
    async def work() -> None:
        ending = asyncio.create_task(drain(draining, LIFE))
        await asyncio.sleep(0.5)
        assert (draining.status, draining.told) == (Status.closing_gracefully, [])
        draining.state.executing.clear()
        await ending

    aged(monkeypatch, 3000)
    asyncio.run(work())
    assert draining.told == ["retired", "closed"]


def test_worker_ends_shortly_before_the_walltime_though_its_unit_is_still_at_work(
    monkeypatch: pytest.MonkeyPatch, draining: Any
) -> None:
    aged(monkeypatch, 3589)
    began = time.monotonic()
    asyncio.run(drain(draining, LIFE))
    assert 0.8 < time.monotonic() - began < 2
    assert draining.told == ["retired", "closed"]


def test_worker_past_its_walltime_ends_at_once(monkeypatch: pytest.MonkeyPatch, draining: Any) -> None:
    aged(monkeypatch, 5000)
    began = time.monotonic()
    asyncio.run(drain(draining, LIFE))
    assert time.monotonic() - began < 0.5
    assert draining.told == ["retired", "closed"]


def test_two_drivers_prepare_workers_under_two_names() -> None:
    assert Prepare().name != Prepare().name
