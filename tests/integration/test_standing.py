"""Runs on a Dask cluster that stands already: same results, left standing, and closed to strangers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from tests.conftest import ROOT, Cli
from tests.documented import command
from tests.faults.test_orchestration import faulty, started
from tests.integration.pipelines import QUICK, digests, events
from tests.integration.standing import WAIT_S, Certificates, StandingCluster, kill_group
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

Digests = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of the cluster."""
    return Certificates.make(tmp_path_factory.mktemp("tls") / "own")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates of somebody else."""
    return Certificates.make(tmp_path_factory.mktemp("tls") / "foreign")


@pytest.fixture(scope="module")
def cluster(tls: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandingCluster]:
    """A scheduler and two workers that no test of this module ends."""
    with StandingCluster(tmp_path_factory.mktemp("standing"), tls).start() as standing:
        yield standing


@pytest.fixture(scope="module")
def fresh(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of five chunks that was ingested and never run."""
    study = Study(cli, tmp_path_factory.mktemp("fresh") / "work", phantom_folder)
    assert study.ingest("--chunk-items", 4).code == 0
    return study


@pytest.fixture(scope="module")
def undisturbed(fresh: Study) -> Digests:
    """Digests of a whole quick run inline of that study."""
    return fresh.undisturbed()


@pytest.fixture
def study(fresh: Study, tmp_path: Path) -> Study:
    """A copy of the study that was never run."""
    return fresh.copied(tmp_path / "work")


@pytest.fixture
def config(tls: Certificates, tmp_path: Path) -> Path:
    """A configuration that names the cluster's certificates."""
    return tls.config(tmp_path / "config.toml")


def on(cluster: StandingCluster, study: Study, *more: object) -> tuple[object, ...]:
    """Arguments of a quick run on a standing cluster."""
    return ("run", "--workdir", study.work, "--scheduler-file", cluster.file, *QUICK, *more)


def of_masks(found: Digests) -> Digests:
    """Those digests that the masks stage alone makes."""
    return {unit: files for unit, files in found.items() if unit.startswith("masks/")}


def pids(study: Study) -> set[object]:
    """Processes that committed a unit of the newest run."""
    return {event["pid"] for event in events(study.dataset) if event["event"] == "committed"}


def test_standing_workers_share_a_run_and_give_the_results_of_one_process(
    cluster: StandingCluster, study: Study, config: Path, undisturbed: Digests
) -> None:
    named = {"busi": "phantoms", "shared/dask.json": cluster.file, "tls.toml": config}
    done = study.cli(*command("pipeline", "--scheduler-file", named), "--workdir", study.work, *QUICK)
    assert done.code == 0, done.err
    assert digests(study.dataset) == undisturbed
    assert len(pids(study)) == 2
    assert os.getpid() not in pids(study)


def test_cluster_stands_after_a_run_and_serves_the_next_with_the_same_processes(
    cluster: StandingCluster, fresh: Study, config: Path, tmp_path: Path, undisturbed: Digests
) -> None:
    served = []
    for name in ("first", "second"):
        study = fresh.copied(tmp_path / name)
        done = study.cli(*on(cluster, study, "--config", config, "--stage", "masks"))
        assert done.code == 0, done.err
        assert digests(study.dataset) == of_masks(undisturbed)
        served.append(pids(study))
    assert cluster.stands()
    assert served[0] == served[1]


def test_run_with_foreign_certificates_is_refused(
    cluster: StandingCluster, study: Study, foreign: Certificates, tmp_path: Path
) -> None:
    done = study.cli(*on(cluster, study, "--config", foreign.config(tmp_path / "foreign.toml")))
    assert done.code == 4
    assert "The scheduler at tls://127.0.0.1:" in done.err
    assert "cannot be used" in done.err
    assert "are the certificates of [cluster.tls] its own?" in done.err
    assert "Traceback" not in done.err
    assert digests(study.dataset) == {}


def test_run_without_certificates_is_refused(cluster: StandingCluster, study: Study) -> None:
    done = study.cli(*on(cluster, study))
    assert done.code == 2
    assert "wants certificates" in done.err
    assert "Give [cluster.tls] ca, cert and key." in done.err


STRANGER = """
    import sys
    from distributed import Client, Security

    address, *files = sys.argv[1:]
    parts = dict(zip(("tls_ca_file", "tls_client_cert", "tls_client_key"), files))
    security = Security(require_encryption=True, **parts) if files else None
    try:
        Client(address, security=security, timeout=5)
    except (OSError, TypeError) as error:
        sys.exit(f"refused: {error}")
"""
"""A client of Dask that is not ours."""


@pytest.mark.parametrize("kind", ["foreign", "unencrypted", "own"])
def test_strange_client_is_refused(
    cluster: StandingCluster, tls: Certificates, foreign: Certificates, kind: str
) -> None:
    shown = {"foreign": foreign, "own": tls}.get(kind)
    address = cluster.said("scheduler").split("Scheduler at:")[1].split()[0]
    files = [shown.ca, shown.cert, shown.key] if shown else []
    done = subprocess.run(
        [sys.executable, "-c", dedent(STRANGER), address if shown else address.replace("tls", "tcp"), *map(str, files)],
        capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, "refused" in done.stderr) == ((0, False) if kind == "own" else (1, True)), done.stderr
    assert cluster.stands()


def test_worker_with_foreign_certificates_never_joins(tls: Certificates, foreign: Certificates, tmp_path: Path) -> None:
    with StandingCluster(tmp_path / "standing", tls).start_scheduler() as cluster:
        stranger = cluster.start_worker("stranger", "--death-timeout", "8", certificates=foreign)
        assert stranger.wait(WAIT_S) != 0
        del cluster.processes["stranger"]
        assert "Registered to" not in cluster.said("stranger")
        assert "Register worker" not in cluster.said("scheduler")
        own = cluster.start_worker("own")
        cluster.wait_until(lambda: "Register worker" in cluster.said("scheduler"))
        assert own.poll() is None


def test_private_key_stands_in_no_file_of_the_work_folder_and_in_no_message(
    cluster: StandingCluster, study: Study, tls: Certificates, config: Path
) -> None:
    done = study.cli(*on(cluster, study, "--config", config, "--stage", "masks", "--verbose"))
    assert done.code == 0, done.err
    secrets = [tls.key.name.encode(), *tls.key.read_bytes().splitlines()[1:-1]]
    assert len(secrets) > 2
    files = [path for path in study.work.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if any(secret in path.read_bytes() for secret in secrets)] == []
    assert not any(secret.decode() in done.err + done.out for secret in secrets)


def test_key_that_others_may_read_is_refused(
    cluster: StandingCluster, study: Study, tmp_path: Path, tls: Certificates
) -> None:
    shutil.copytree(tls.key.parent, tmp_path / "open")
    files = Certificates(*(tmp_path / "open" / file.name for file in (tls.ca, tls.cert, tls.key)))
    files.key.chmod(0o640)
    done = study.cli(*on(cluster, study, "--config", files.config(tmp_path / "open.toml")))
    assert done.code == 2
    assert "Others may read the private key" in done.err
    assert f"chmod 600 {files.key}" in done.err


SLOW = """
    import os, time
    from pathlib import Path
    from stages.masks.stage import Masks

    process = Masks.process

    def slow(self, rows, *more):
        with Path(__file__).with_name(f"begun-{os.getppid()}").open("a") as told:
            told.write(f"{os.getpid()}\\n")
        time.sleep(2)
        return process(self, rows, *more)

    Masks.process = slow
"""
"""Units of the masks take two seconds, and say who computes them: the nanny in a file's name, the worker in it."""


IMPATIENT = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
"""The scheduler tells the driver of the first death of a unit's worker, as the one of a local cluster does."""


def computing(site: Path, nanny: int) -> Callable[[], bool]:
    """Whether the worker of a nanny computes a unit."""
    return (site / f"begun-{nanny}").exists


@pytest.mark.parametrize(
    ("end", "patience"),
    [(signal.SIGKILL, IMPATIENT), (signal.SIGKILL, {}), (signal.SIGTERM, IMPATIENT)],
    ids=["killed", "killed and not told", "terminated"],
)
def test_worker_that_is_ended_from_outside_costs_no_unit_and_changes_no_result(
    study: Study,
    tls: Certificates,
    config: Path,
    tmp_path: Path,
    undisturbed: Digests,
    end: signal.Signals,
    patience: dict[str, str],
) -> None:
    site = tmp_path / "site"
    with StandingCluster(tmp_path / "standing", tls).start({**faulty(site, SLOW), **patience}) as cluster:
        nanny = cluster.processes["one"]
        run = started({}, *on(cluster, study, "--config", config, "--stage", "masks", "--set", "cluster.retries=0"))
        cluster.wait_until(computing(site, nanny.pid))
        kill_group(nanny) if end == signal.SIGKILL else nanny.send_signal(end)
        _, err = run.communicate(timeout=WAIT_S)
        assert run.returncode == 0, err
        nanny.wait(WAIT_S)
    assert ("its worker was ended from outside; the unit is tried again" in err) == bool(patience)
    assert [event for event in events(study.dataset) if event["event"] == "failed"] == []
    assert digests(study.dataset) == of_masks(undisturbed)


def test_worker_that_dies_while_its_nanny_lives_counts_against_its_unit(
    study: Study, tls: Certificates, config: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    env = faulty(site, SLOW.replace("time.sleep(2)", "if rows[0].row == 4: os.kill(os.getpid(), 9)"))
    with StandingCluster(tmp_path / "standing", tls).start({**env, **IMPATIENT}) as cluster:
        done = study.cli(
            *on(cluster, study, "--config", config, "--stage", "masks", "--set", "cluster.retries=0", "--json")
        )
        assert cluster.stands()
    assert done.code == 3, done.err
    ((unit, cause),) = done.json["failed_units"].items()
    assert unit == "masks[supplied]/drop-001/000001"
    assert "Its worker process died" in cause
    assert done.json["committed"] == {"masks[supplied]": 4}


def test_scheduler_that_is_killed_ends_the_run_in_two_lines_and_what_was_committed_stands(
    study: Study, tls: Certificates, config: Path, tmp_path: Path, undisturbed: Digests
) -> None:
    with StandingCluster(tmp_path / "standing", tls).start(faulty(tmp_path / "site", SLOW)) as cluster:
        run = started({}, *on(cluster, study, "--config", config, "--stage", "masks"))
        cluster.wait_until(
            lambda: any('"committed"' in log.read_text() for log in study.dataset.glob("runs/*/*.jsonl"))
        )
        kill_group(cluster.processes["scheduler"])
        _, err = run.communicate(timeout=WAIT_S)
    assert run.returncode == 4, err
    assert [line for line in err.splitlines() if " INFO " not in line] == [
        "error: The Dask scheduler is gone.",
        "what to do: What was committed stands: run the same command again.",
    ]
    assert digests(study.dataset).items() <= of_masks(undisturbed).items()


def test_two_drivers_use_one_cluster_at_the_same_time(
    cluster: StandingCluster, fresh: Study, config: Path, tmp_path: Path, undisturbed: Digests
) -> None:
    studies = [fresh.copied(tmp_path / name) for name in ("first", "second")]
    runs = [started({}, *on(cluster, study, "--config", config, "--stage", "masks")) for study in studies]
    said = [run.communicate(timeout=WAIT_S)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert [digests(study.dataset) for study in studies] == 2 * [of_masks(undisturbed)]
    assert cluster.stands()
