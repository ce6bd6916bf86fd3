"""What a driver does when the scheduler that it speaks to is gone."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from distributed.client import FuturesCancelledError
from distributed.comm import CommClosedError

from manifests.errors import RefusedError
from pipeline import dask_cluster
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
