"""The command that runs: the units, and at the end of a whole study its report; what it says, and when it gives up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from manifests.errors import ExitCode, InterruptedRunError, RefusedError
from manifests.events import REPORTED, EventLog
from manifests.layout import DatasetPaths
from manifests.runs import RunRecord, load_run
from pipeline.commands import do_report, print_json, say
from pipeline.logs import duration
from pipeline.runner import Outcome, Runner, RunOptions
from pipeline.workspace import Workspace

WALLTIME: Final = "SIGUSR1"
"""Signal before the end of a batch job's walltime."""
MOST_FRUITLESS: Final = 2
"""Walltimes of a batch job, one after the other, in which nothing is committed, before it is not requeued again."""


def do_run(workspace: Workspace, options: RunOptions, *, as_json: bool) -> int:
    """Run, say what was done, and return the exit code; `--stage all` ends with the report.

    Raises
    ------
    RefusedError
        If the walltime of this batch job ends once more without any unit committed.
    """
    runner = Runner(workspace.paths, workspace.config, options)
    with runner.stop.listening():
        outcome = runner.run()
        if not as_json:
            say(_run_lines(outcome))
        report = _report(runner, outcome, quiet=as_json) if _is_whole_study(options, outcome) else None
    if runner.stop.name == WALLTIME and _is_fruitless(workspace.paths, os.environ.get("SLURM_JOB_ID", "")):
        raise RefusedError(
            f"Nothing was committed in {MOST_FRUITLESS} walltimes of this job, which is not requeued again.",
            "Give it more time (cluster.jobs.walltime), or ingest with smaller chunks; then submit it again.",
        )
    code = ExitCode.INTERRUPTED if runner.stop.name else outcome.exit_code
    if as_json:
        page = report.relative_to(workspace.paths.root.parent).as_posix() if report else None
        print_json({"run": outcome.run_id, "exit_code": int(code), "report": page, **outcome.tally.as_json()})
    return int(code)


def _report(runner: Runner, outcome: Outcome, *, quiet: bool) -> Path | None:
    """Write the report of a whole study; None if a signal ends that."""
    drops = tuple(drop.drop_id for drop in runner.workspace.drops)
    shown = Workspace(runner.paths, runner.config, runner.options.source, drops)
    try:
        with runner.stop.interrupting():
            page = do_report(shown, quiet=quiet)
    except InterruptedRunError as error:
        say([] if quiet else [str(error)])
        return None
    with EventLog(runner.paths.run(outcome.run_id) / "events.jsonl") as events:
        events.write(REPORTED, report=page.parent.name)
    return page


def _is_fruitless(paths: DatasetPaths, job: str) -> bool:
    """Whether the newest runs of a batch job, which this process belongs to, committed nothing."""
    found: list[RunRecord] = []
    for folder in sorted(paths.runs.iterdir(), reverse=True):
        record = load_run(folder) if (folder / "run.json").exists() else None
        if record is not None and job and record.slurm.get("SLURM_JOB_ID") == job:
            found.append(record)
        if len(found) == MOST_FRUITLESS:
            counts = [record.counts.get(name, {}) for record in found for name in ("committed", "elsewhere")]
            return not any(any(count.values()) for count in counts)
    return False


def _is_whole_study(options: RunOptions, outcome: Outcome) -> bool:
    """Whether a run left nothing for a later one, so that its report is the study's."""
    left = outcome.tally.waiting or outcome.tally.failed_units or options.part
    return options.stage == "all" and outcome.exit_code in (ExitCode.DONE, ExitCode.FAILURES) and not left


def _run_lines(outcome: Outcome) -> Iterable[str]:
    tally = outcome.tally
    done = sum(tally.committed.values())
    if outcome.exit_code is ExitCode.INTERRUPTED:
        yield f"Stopped by a signal after {done} units; run the same command again to go on."
    elif not sum(tally.planned.values()) and not tally.waiting:
        yield "Nothing to do: everything is committed."
    else:
        others = f", {tally.elsewhere.total()} by another run" if tally.elsewhere else ""
        yield f"Done: {done} of {sum(tally.planned.values())} units{others} in {duration(outcome.seconds)}."
    for node, waits in tally.waiting.items():
        yield f"  {node} waits for {waits}"
    for reason, count in sorted(tally.failed_images.items()):
        yield f"  images without a result: {count} ({reason})"
    for unit, cause in tally.failed_units.items():
        yield f"  failed for good: {unit}: {cause}"
