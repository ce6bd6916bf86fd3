"""`pipeline submit --send`: arrays, drivers that are told to stop, and walltimes that are shorter than the run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import Digests, NewStudy, ingest
from tests.cluster.studies import LIMIT_S, Study, keys_in, sets, stage_of, until
from tests.conftest import Cli
from tests.integration.pipelines import digests

pytestmark = pytest.mark.slow

MASKS, EMBEDDINGS = ("--stage", "masks"), ("--stage", "embeddings")
ARRAY = 4


@pytest.fixture(scope="module")
def ingested_18(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder that knows eighteen phantoms and has computed nothing."""
    return ingest(cli, tmp_path_factory.mktemp("ingested"), {"train": 4, "test": 2})


@pytest.fixture(scope="module", autouse=True)
def short_walltime(new_study: NewStudy, ingested_18: Path) -> Iterator[tuple[Study, str]]:
    """A job of a minute for a run of three: 36 units of five seconds; begun first in this file, as it mostly waits."""
    study = new_study(slow_s=5, work=ingested_18)
    (job,) = study.submit(*EMBEDDINGS, *sets(walltime='"00:01:00"', margin_s=30))
    yield study, job
    study.end()


def test_documented_array_without_a_scheduler_is_followed_by_a_job(new_study: NewStudy, undisturbed: Digests) -> None:
    study = new_study()
    replaced = {"16": ARRAY, "jobs": study.folder / "jobs"}
    first, array, after = study.sent(*study.documented("--array 16", "cluster.workers=1", **replaced))
    ended = study.slurm.wait([first, array, after], 2 * LIMIT_S)
    tasks = [f"{job}_{task}" for job in (first, array) for task in range(1, ARRAY + 1)]
    assert ended == dict.fromkeys([*tasks, after], "COMPLETED")
    study.check(undisturbed)
    jobs = study.jobs()
    partitions = {job: fields["Partition"] for job, fields in jobs.items()}
    # Supplied masks need no model, embeddings do.
    expected = {first: "main", array: "gpu", after: "gpu"}
    assert partitions == {job: expected[job.partition("_")[0]] for job in [*tasks, after]}
    assert len({event["pid"] for event in study.events() if "masks" in str(event.get("unit"))}) == ARRAY
    # Times are of the form 2026-01-31T12:00:00, and sort as text.
    assert jobs[after]["StartTime"] >= max(jobs[f"{array}_{task}"]["EndTime"] for task in range(1, ARRAY + 1))


def test_driver_that_is_told_to_stop_goes_on_in_the_same_job(new_study: NewStudy, undisturbed: Digests) -> None:
    study = new_study(slow_s=2)
    (job,) = study.submit("--cluster", "slurm", *MASKS, *sets(maximum=1))
    until(lambda: study.committed() > 0, "a unit is committed")
    scancel(study, "--signal=USR1", "--batch", job)
    until(lambda: study.slurm.restarts(job) == 1, "the job put itself back into the queue")
    assert keys_in(study.folder) == []
    before = study.committed()
    assert before < len(stage_of(undisturbed, "masks"))
    until(lambda: study.committed() > before, "the job goes on")
    requeue(study, job)
    until(lambda: study.slurm.restarts(job) == 2, "the job is put back into the queue")
    assert study.slurm.wait(job, LIMIT_S) == {job: "COMPLETED"}
    study.check(stage_of(undisturbed, "masks"))
    assert len(study.jobs()) >= 1 + 3, "each driver submits workers"


def test_cancelled_driver_takes_its_jobs_along_and_goes_on_when_it_is_requeued(
    new_study: NewStudy, undisturbed: Digests
) -> None:
    study = new_study(slow_s=2)
    asked = study.documented("submit --stage all", "cluster.cpu_jobs.maximum=1", all="masks")
    (job,) = study.sent(*asked, "--out", study.folder / "jobs")
    until(lambda: study.committed() > 0, "a unit is committed")
    scancel(study, job)
    assert study.slurm.wait(job) == {job: "CANCELLED"}
    until(lambda: not study.left(), "the workers' jobs have ended too")
    assert study.committed() < len(stage_of(undisturbed, "masks"))
    requeue(study, job)
    assert study.slurm.wait(job, LIMIT_S) == {job: "COMPLETED"}
    assert study.slurm.restarts(job) == 1
    study.check(stage_of(undisturbed, "masks"))


def test_array_under_a_batch_system_is_refused(cli: Cli, new_study: NewStudy) -> None:
    study = new_study()
    done = cli("submit", "--array", 2, "--cluster", "slurm", "--workdir", study.work, "--out", study.folder, *sets())
    assert done.code == 2
    assert "An array shares the work without a scheduler" in done.err
    assert list(study.folder.glob("*.sbatch")) == []


def test_queue_that_is_not_there_is_told_in_the_words_of_sbatch(cli: Cli, new_study: NewStudy) -> None:
    study = new_study()
    job = ("submit", "--send", "--workdir", study.work, "--out", study.folder, *MASKS, *sets(queue="nowhere"))
    done = cli(*job, env=study.environment())
    assert done.code == 4
    assert "Invalid partition name" in done.err
    assert len(done.err.splitlines()) == 2


def test_run_longer_than_its_walltime_is_finished_by_requeues_alone(
    cli: Cli, short_walltime: tuple[Study, str], ingested_18: Path, tmp_path: Path
) -> None:
    study, job = short_walltime
    assert study.slurm.wait(job, 4 * LIMIT_S) == {job: "COMPLETED"}
    assert study.slurm.restarts(job) >= 3
    shutil.copytree(ingested_18, tmp_path / "work")
    assert cli("run", *EMBEDDINGS, "--workdir", tmp_path / "work", "--cluster", "inline", *sets()).code == 0
    expected = digests(tmp_path / "work" / "phantoms")
    study.check(expected)
    units = [event["unit"] for event in study.events() if event["event"] == "committed"]
    assert len(units) == len(set(units)) == len(expected) == 36


def scancel(study: Study, *arguments: str) -> None:
    """Cancel or signal a job."""
    subprocess.run(["scancel", *arguments], check=True, env=study.slurm.environment(), timeout=60)


def requeue(study: Study, job: str) -> None:
    """Put a job back into the queue, whatever became of it."""
    subprocess.run(["scontrol", "requeue", job], check=True, env=study.slurm.environment(), timeout=60)
