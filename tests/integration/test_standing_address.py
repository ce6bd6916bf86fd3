"""What a cluster that is started as documented listens on, and a run that names its scheduler by the address."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from distributed import LocalCluster

from pipeline.cluster_config import ClusterConfig, TlsSettings
from pipeline.dask_sites import look_at_standing
from tests.conftest import Cli
from tests.integration.pipelines import QUICK, digests, events
from tests.integration.standing import Certificates, StandingCluster
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

MASKS = ("--stage", "masks")


def test_documented_commands_listen_on_their_interface_alone(tmp_path: Path) -> None:
    tls = Certificates.make(tmp_path / "tls")
    with StandingCluster(tmp_path / "standing", tls).start_scheduler() as cluster:
        cluster.start_worker("cpu")
        cluster.start_gpu_workers(2)
        cluster.wait_until(lambda: cluster.said("scheduler").count("Starting worker compute stream") == 3)
        assert set(cluster.listens_on()) == {"127.0.0.1"}
        assert len(cluster.listens_on()) >= 1 + 3 * 2, "the port of the scheduler, a nanny or a worker was not seen"
        files = TlsSettings(ca=tls.ca, cert=tls.cert, key=tls.key)
        standing = look_at_standing(ClusterConfig(scheduler_file=cluster.file, tls=files))
    assert (standing.workers, standing.gpus) == (3, True)


@pytest.fixture
def study(cli: Cli, phantom_folder: Path, tmp_path: Path) -> Study:
    """A study of five chunks that was never run."""
    study = Study(cli, tmp_path / "work", phantom_folder)
    assert study.ingest("--chunk-items", 4).code == 0
    return study


def test_scheduler_that_is_named_by_its_address_is_used(study: Study, tmp_path: Path) -> None:
    alone = study.copied(tmp_path / "alone")
    assert alone.run(*MASKS).code == 0
    at = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=2, threads_per_worker=1, **at) as standing:
        assert standing.scheduler_address.startswith("tcp://127.0.0.1:")
        done = study.cli("run", "--workdir", study.work, "--scheduler", standing.scheduler_address, *QUICK, *MASKS)
    assert done.code == 0, done.err
    assert digests(study.dataset) == digests(alone.dataset)
    pids = {event["pid"] for event in events(study.dataset) if event["event"] == "committed"}
    assert len(pids) == 2


@pytest.mark.parametrize("address", ["tcp://192.0.2.1:8786", "tcp://10.0.0.5:8786", "tcp://[2001:db8::1]:8786"])
def test_unencrypted_scheduler_on_another_machine_is_refused_before_it_is_spoken_to(study: Study, address: str) -> None:
    done = study.cli("run", "--workdir", study.work, "--scheduler", address, *QUICK)
    assert done.code == 2
    assert "not encrypted: whoever reaches it can run code as you" in done.err
    assert "--insecure" in done.err
    assert "cannot be used" not in done.err, "nobody answers there: it was spoken to"
