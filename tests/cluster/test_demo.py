"""The command that the README leads with: on one machine, and in jobs of a batch system."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.cluster.studies import Study, keys_in
from tests.conftest import Cli, Finished
from tests.integration.pipelines import digests

pytestmark = pytest.mark.slow

LIMIT_S = 900.0
DATASET = "phantoms-0"
UNITS = 151


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of the demo."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(cli: Cli, work: Path) -> Finished:
    """The demo on this machine."""
    return cli("demo", "--workdir", work, timeout_s=LIMIT_S)


def test_demo_makes_phantoms_scores_and_a_report_and_does_nothing_twice(cli: Cli, demo: Finished, work: Path) -> None:
    assert demo.code == 0, demo.err
    assert f"{UNITS} of {UNITS} units" in demo.out
    for row in ("medfocus  union", "medfocus  supplied", "original", "constant"):
        assert row in demo.out
    page = Path(demo.out.split("Report: ")[1].splitlines()[0])
    assert page.is_file()
    assert "Nothing to do" in cli("demo", "--workdir", work).out


def test_demo_in_two_jobs_is_the_same(cli: Cli, slurm: Slurm, demo: Finished, work: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text(
        '[cluster]\nkind = "slurm"\n[cluster.jobs]\ninterface = "lo"\ncores = 1\nmemory = "4GB"\n'
        'walltime = "00:15:00"\nminimum = 2\nmaximum = 2\n'
    )
    study = Study(slurm, tmp_path)
    done = cli("demo", "--workdir", study.work, "--config", site, env=study.environment(), timeout_s=LIMIT_S)
    assert done.code == 0, done.err
    assert f"{UNITS} of {UNITS} units" in done.out
    assert "medfocus  union" in done.out
    jobs = study.jobs()
    assert len(jobs) == 2
    readers = {job for job, _ in study.readers()}
    assert readers == set(jobs), "only one of the two jobs computed"
    assert demo.code == 0
    assert digests(study.work / DATASET) == digests(work / DATASET)
    assert keys_in(tmp_path) == []
