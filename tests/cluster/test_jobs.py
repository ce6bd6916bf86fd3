"""`pipeline run --cluster slurm`: workers in real jobs, which come, go and are cancelled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent

import psutil
import pytest

from tests.cluster.conftest import Digests, NewStudy
from tests.cluster.studies import IMAGES, LIMIT_S, Driver, Study, keys_in, sets, stage_of
from tests.conftest import ROOT, Cli

pytestmark = pytest.mark.slow

MASKS = ("--stage", "masks")


@pytest.fixture(scope="module", autouse=True)
def short_jobs(new_study: NewStudy) -> Iterator[tuple[Study, Driver]]:
    """A run whose jobs are shorter than it; begun before the tests of this file, because it mostly waits."""
    study = new_study(slow_s=4)
    short = sets(minimum=1, maximum=1, walltime='"00:01:00"', margin_s=25)
    with study.running(*MASKS, *short) as driver:
        yield study, driver


def test_documented_run_in_jobs_is_the_same_and_closed_to_others(new_study: NewStudy, undisturbed: Digests) -> None:
    study = new_study(held=True)
    two = ("cluster.cpu_jobs.minimum=2", "cluster.cpu_jobs.maximum=2")
    with study.started(*study.documented("run --stage all --dataset busi --config site.toml", *two)) as driver:
        driver.until(lambda: len(study.readers()) >= 2, "two workers compute")
        assert len({job for job, _ in study.readers()}) == 2
        assert_listens_on_loopback_alone(driver, study)
        for key in keys_in(study.folder):
            assert key.stat().st_mode & 0o077 == key.parent.stat().st_mode & 0o077 == 0
        assert_strangers_are_refused(scheduler_of(study))
        study.gate.unlink()
        done = driver.finish()
    assert done.code == 0, done.err
    study.check(undisturbed)
    assert len({event["pid"] for event in study.events() if event["event"] == "committed"}) >= 2
    assert len(study.jobs()) == 2, "a job was given up and asked for again while there was work"


def test_cancelled_job_is_replaced_and_its_units_are_not_blamed(new_study: NewStudy, undisturbed: Digests) -> None:
    study = new_study(held=True)
    with study.running(*MASKS, *sets(minimum=2, maximum=2, cores=2, processes=2)) as driver:
        driver.until(lambda: len(study.readers()) == 4, "both processes of both jobs compute")
        first, second = study.jobs()
        study.slurm.cancel(first)
        driver.until(lambda: len({job for job, _ in study.readers()} - {first, second}) == 1, "a third job computes")
        assert study.slurm.states([first, second]) == {first: "CANCELLED", second: "RUNNING"}
        study.gate.unlink()
        done = driver.finish()
    assert done.code == 0, done.err
    study.check(stage_of(undisturbed, "masks"))
    assert len(study.jobs()) == 3
    assert done.err.count("was ended from outside; the unit is tried again") >= 2
    assert "left out" not in done.err


def test_jobs_come_with_work_up_to_the_maximum_and_go_when_they_have_none(
    new_study: NewStudy, undisturbed: Digests
) -> None:
    study = new_study(held=True)
    with study.running(*MASKS, *sets(minimum=0, maximum=2)) as driver:
        driver.until(lambda: len({job for job, _ in study.readers()}) == 2, "two jobs compute")
        last = study.gate.with_name(f"hold.{next(iter(study.reads()))}")
        last.touch()
        study.gate.unlink()
        driver.until(lambda: study.committed() == IMAGES - 1, "all units but one are committed")
        driver.until(lambda: len(study.left()) == 1, "the job that has no work is given up")
        last.unlink()
        done = driver.finish()
    assert done.code == 0, done.err
    study.check(stage_of(undisturbed, "masks"))
    assert len(study.jobs()) == 2


def test_unit_that_its_walltime_cuts_off_is_not_blamed(new_study: NewStudy, undisturbed: Digests) -> None:
    study = new_study(held=True)
    short = sets("cluster.retries=0", minimum=1, maximum=1, walltime='"00:01:00"', margin_s=25)
    with study.running(*MASKS, *short) as driver:
        driver.until(lambda: len({job for job, _ in study.readers()}) == 2, "a second job has the unit that is held")
        study.gate.unlink()
        done = driver.finish()
    assert done.code == 0, done.err
    study.check(stage_of(undisturbed, "masks"))
    assert study.reads().most_common(1)[0][1] >= 2, "no unit was cut off"
    assert "left out" not in done.err


@pytest.mark.parametrize("lacking", ["", "nic7"])
def test_interface_that_is_lacking_is_asked_for_by_name(
    cli: Cli, new_study: NewStudy, undisturbed: Digests, lacking: str
) -> None:
    study = new_study()
    run = ("run", "--cluster", "slurm", "--workdir", study.work, *MASKS, *sets(interface=lacking or '""'))
    done = cli(*run, env=study.environment())
    assert done.code == 2
    assert f"cluster.jobs.interface is {repr(lacking) if lacking else 'not given'}" in done.err
    assert "lo (127.0.0.1)" in done.err
    assert study.jobs() == {}


def test_queue_that_is_not_there_ends_the_run(cli: Cli, new_study: NewStudy) -> None:
    study = new_study()
    run = ("run", "--cluster", "slurm", "--workdir", study.work, *MASKS, *sets(queue="nowhere"))
    done = cli(*run, env=study.environment(), timeout_s=LIMIT_S)
    assert done.code == 4
    assert "Invalid partition name" in done.err
    assert "Traceback" not in done.err
    assert keys_in(study.folder) == []


def test_jobs_whose_walltime_ends_are_followed_by_others(
    short_jobs: tuple[Study, Driver], undisturbed: Digests
) -> None:
    study, driver = short_jobs
    done = driver.finish()
    assert done.code == 0, done.err
    study.check(stage_of(undisturbed, "masks"))
    assert len(study.jobs()) >= 2, "one job was enough"
    assert "TIMEOUT" not in {fields["JobState"] for fields in study.jobs().values()}
    assert "left out" not in done.err
    committed = [event for event in study.events() if event["event"].startswith("committed")]
    assert len(committed) == IMAGES
    assert study.reads().most_common(1)[0][1] == 1, "a unit at work was dropped when its job came to its end"


def assert_listens_on_loopback_alone(driver: Driver, study: Study) -> None:
    """Look at every socket of the driver, the jobs' nannies and their workers."""
    nannies = [p for p in study.slurm.processes() if scheduler_of_nanny(p) == scheduler_of(study)]
    roots = [psutil.Process(driver.process.pid), *nannies]
    family = {process for root in roots for process in (root, *root.children(recursive=True))}
    assert {pid for _, pid in study.readers()} <= {process.pid for process in family}
    found = [
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(found) == {"127.0.0.1"}
    assert len(found) >= 1 + 2 * 2, "the port of the scheduler, of a nanny or of a worker was not seen"


def scheduler_of(study: Study) -> str:
    """Address of the scheduler that a worker's own job was given."""
    nannies = [psutil.Process(pid).parent() for _, pid in study.readers()]
    (address,) = {scheduler_of_nanny(nanny) for nanny in nannies if nanny is not None}
    return address


def scheduler_of_nanny(process: psutil.Process) -> str:
    """Address after `-m distributed.cli.dask_worker` on the command line; empty for other processes."""
    try:
        line = process.cmdline()
    except psutil.NoSuchProcess:
        return ""
    module = "distributed.cli.dask_worker"
    return line[line.index(module) + 1] if module in line else ""


STRANGERS = """
    import json, sys
    from distributed import Client, Security

    answers = []
    for scheme, security in (("tcp", None), ("tls", Security.temporary())):
        try:
            Client(f"{scheme}://{sys.argv[1]}", security=security, timeout=3).close()
            answers.append("let in")
        except (OSError, TimeoutError):
            answers.append("refused")
    print(json.dumps(answers))
"""
"""One without encryption, and one with certificates of its own."""


def assert_strangers_are_refused(address: str) -> None:
    """The scheduler speaks TLS, and only to who has its certificates."""
    scheme, _, place = address.partition("://")
    assert scheme == "tls"
    done = subprocess.run(
        [sys.executable, "-c", dedent(STRANGERS), place],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["refused", "refused"]
