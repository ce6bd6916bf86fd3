"""Counts of a run, and the line that says them."""

from __future__ import annotations

from manifests.errors import ExitCode
from pipeline.execute import UnitReport
from pipeline.runner import Outcome
from pipeline.running import _run_lines
from pipeline.tally import Tally


def test_unit_that_another_run_committed_is_told_apart() -> None:
    tally = Tally()
    tally.planned["masks"] = 3
    for won in (True, True, False):
        tally.add("masks", UnitReport(won, {"ok": 4}))
    assert tally.images["masks"]["ok"] == 8
    assert (tally.as_json()["committed"], tally.as_json()["elsewhere"]) == ({"masks": 2}, {"masks": 1})
    lines = list(_run_lines(Outcome("run", ExitCode.DONE, tally, 2.0)))
    assert lines == ["Done: 2 of 3 units, 1 by another run in 2.0 s."]


def test_gpus_that_computed_are_kept_once_each() -> None:
    tally = Tally()
    for device, on_gpu in (("H100, torch 2", True), ("H100, torch 2", True), ("EPYC, torch 2", False)):
        tally.add("proposals", UnitReport(won=True, device=device, on_gpu=on_gpu))
    assert tally.gpus == {"H100, torch 2"}
