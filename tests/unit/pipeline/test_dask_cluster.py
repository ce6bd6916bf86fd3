"""What a driver does when the scheduler that it speaks to is gone, or workers are taken away again and again."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from distributed import KilledWorker
from distributed.client import FuturesCancelledError
from distributed.comm import CommClosedError

from manifests.errors import RefusedError
from manifests.types import Chunk
from pipeline import dask_cluster
from pipeline.attempts import WorkersEndedError
from pipeline.dask_cluster import DaskCluster
from pipeline.execute import UnitReport, UnitTask
from pipeline.plan import PlannedUnit
from pipeline.workforce import Workforce

TASK = UnitTask("/d", "{}", "", PlannedUnit("masks", "000000", "new", 0), "", "cpu", ("drop-001",), "run")


def raising(error: BaseException | None, answer: Any = None) -> Any:
    """A call that answers, or raises."""

    def call(*_: object, **__: object) -> Any:
        if error is not None:
            raise error
        return answer

    return call


@pytest.mark.parametrize("error", [FuturesCancelledError([]), CommClosedError("closed")])
@pytest.mark.parametrize("where", ["wait", "result"])
def test_scheduler_that_is_gone_ends_the_run_in_two_lines_wherever_it_is_noticed(
    monkeypatch: pytest.MonkeyPatch, where: str, error: BaseException
) -> None:
    told = raising(error if where == "result" else None, UnitReport(won=True))
    future = Mock(exception=raising(None), result=told)
    waited = raising(error if where == "wait" else None, SimpleNamespace(done=[future]))
    monkeypatch.setattr(dask_cluster, "wait", waited)
    client = Mock(submit=lambda *_, **__: future, as_current=nullcontext)
    with pytest.raises(RefusedError, match=r"The Dask scheduler is gone\..*run the same command again\."):
        list(DaskCluster(client, 1, 0, Workforce()).run([TASK], lambda: None))


def test_chunk_whose_workers_are_ended_from_outside_too_often_is_failed_and_its_images_are_not_suspected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned = PlannedUnit("masks", "000000", "new", 0, chunk=Chunk("drop-001", 0, 0, 8))
    task, submitted = replace(TASK, planned=planned), []
    told_to_close = [(0.0, {"action": "closing-worker"})]

    def submit(_signed: object, _attempt: object, asked: UnitTask, **_: object) -> Mock:
        submitted.append(asked)
        error = KilledWorker(asked.key, Mock(address="tcp://a:1"), 0)
        return Mock(exception=raising(None, error))

    monkeypatch.setattr(dask_cluster, "wait", lambda futures, **_: SimpleNamespace(done=list(futures)))
    client = Mock(submit=submit, as_current=nullcontext, get_events=raising(None, told_to_close))
    ((_, result),) = DaskCluster(client, 1, 0, Workforce()).run([task], lambda: None)
    assert isinstance(result, WorkersEndedError)
    assert submitted == (dask_cluster.MOST_ENDED + 1) * [task]
