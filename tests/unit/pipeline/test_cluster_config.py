"""The `[cluster]` table, and which GPU a worker takes for its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError
from pipeline.cluster_config import QUEUES, ClusterConfig, JobSettings, TlsSettings
from pipeline.config import load_config
from pipeline.worker import own_gpu


@pytest.mark.parametrize(
    ("walltime", "seconds"), [("00:30:00", 1800), ("4:00:00", 14_400), ("04:00:01", 14_401), ("168:00:00", 604_800)]
)
def test_walltime_is_hours_minutes_and_seconds(walltime: str, seconds: int) -> None:
    assert JobSettings(walltime=walltime).walltime_s == seconds


@pytest.mark.parametrize(
    "walltime", ["", "4", "04:00", "1-04:00:00", "04:60:00", "04:00:60", "-1:00:00", "04:0:00", "4h"]
)
def test_walltime_of_another_form_is_refused_with_the_form(walltime: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.jobs\.walltime.*HH:MM:SS"):
        load_config(overrides=[f'cluster.jobs.walltime="{walltime}"'])


def test_worker_ends_a_margin_before_its_walltime() -> None:
    assert JobSettings(walltime="01:00:00", margin_s=600, stagger_s=0).lifetime_s == 3000


@pytest.mark.parametrize("margin_s", [0, 9.9, 10])
def test_margin_in_which_a_worker_could_not_close_is_refused(margin_s: float) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.jobs\.margin_s.*greater than 10"):
        load_config(overrides=[f"cluster.jobs.margin_s={margin_s}"])


def test_short_walltime_is_taken_because_not_every_job_holds_workers_of_dask() -> None:
    assert JobSettings(walltime="00:01:00").walltime_s == 60


@pytest.mark.parametrize(
    ("memory", "mb"),
    [
        ("16GB", 15_259),
        ("16GiB", 16_384),
        ("16 GiB", 16_384),
        ("1.5GiB", 1536),
        ("1TB", 953_675),
        ("2TiB", 2_097_152),
        ("500MB", 477),
        ("512MiB", 512),
        ("1KB", 1),
    ],
)
def test_memory_is_counted_in_mebibytes_rounded_up(memory: str, mb: int) -> None:
    assert JobSettings(memory=memory).memory_mb == mb


@pytest.mark.parametrize("memory", ["", "16", "16G", "16gb", "GB", "-1GB", "1,5GB", "16 GB more"])
def test_memory_without_a_known_unit_is_refused(memory: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.jobs\.memory"):
        load_config(overrides=[f'cluster.jobs.memory="{memory}"'])


def test_fewer_jobs_at_most_than_at_least_are_refused() -> None:
    assert JobSettings(minimum=2, maximum=2).minimum == 2
    with pytest.raises(ValueError, match="minimum 3 is above maximum 2"):
        JobSettings(minimum=3, maximum=2)


def test_job_holds_one_worker_a_gpu_or_as_many_as_it_is_told() -> None:
    assert JobSettings().workers == 1
    assert JobSettings(processes=3).workers == 3
    assert JobSettings(gpus=4, processes=3).workers == 4


@pytest.mark.parametrize("names", [("ca",), ("cert",), ("key",), ("ca", "cert"), ("cert", "key"), ("ca", "key")])
def test_certificates_are_given_all_or_not_at_all(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"ca, cert and key go together; only {', '.join(names)} is given"):
        TlsSettings(**{name: Path(f"{name}.pem") for name in names})


def test_certificates_are_given_once_all_three_are_named() -> None:
    assert not TlsSettings().given
    assert TlsSettings(ca=Path("ca.pem"), cert=Path("cert.pem"), key=Path("key.pem")).given


def test_two_standing_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="name two clusters; give one"):
        ClusterConfig(scheduler="tls://a:1", scheduler_file=Path("f"))


@pytest.mark.parametrize("kind", ["inline", "local", *QUEUES])
@pytest.mark.parametrize("named", [{"scheduler": "tls://a:8786"}, {"scheduler_file": Path("f")}])
def test_cluster_to_start_and_one_that_stands_are_refused_together(kind: Any, named: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="starts a cluster, but one is named that stands already"):
        ClusterConfig(kind=kind, **named)


@pytest.mark.parametrize("address", ["host:8786", "http://host:8786", "tls://host", "tcp://:8786", "tls://a b:1", "x"])
def test_address_of_a_scheduler_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="tcp://HOST:PORT or tls://HOST:PORT"):
        ClusterConfig(scheduler=address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "tls://node-7.example.org:8786", "tls://[2001:db8::1]:1"])
def test_address_of_a_scheduler_is_taken_as_it_is(address: str) -> None:
    config = ClusterConfig(scheduler=address)
    assert (config.scheduler, config.stands, config.is_queue) == (address, True, False)


def test_only_batch_systems_are_queues() -> None:
    kinds: tuple[Any, ...] = ("auto", "inline", "local", "slurm", "pbs", "lsf", "sge")
    assert [kind for kind in kinds if ClusterConfig(kind=kind).is_queue] == ["slurm", "pbs", "lsf", "sge"]
    assert not any(ClusterConfig(kind=kind).stands for kind in kinds)


def test_jobs_without_gpus_serve_every_stage() -> None:
    config = ClusterConfig(jobs=JobSettings(queue="main"), cpu_jobs=JobSettings(queue="other"))
    assert config.jobs_of(gpu=True).queue == config.jobs_of(gpu=False).queue == "main"


def test_stages_without_a_gpu_get_the_same_jobs_without_gpus() -> None:
    config = ClusterConfig(jobs=JobSettings(queue="main", gpus=2, cores=8))
    assert config.jobs_of(gpu=True) == config.jobs
    assert config.jobs_of(gpu=False) == JobSettings(queue="main", gpus=0, cores=8)


def test_stages_without_a_gpu_get_jobs_of_their_own_where_they_are_given() -> None:
    own = JobSettings(queue="cpu", cores=32, processes=16)
    config = ClusterConfig(jobs=JobSettings(queue="gpu", gpus=2), cpu_jobs=own)
    assert config.jobs_of(gpu=True).queue == "gpu"
    assert config.jobs_of(gpu=False) is own


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("0", "a"), ("1", "b"), ("4", "b"), ("node-7-2", "c"), ("SLURMCluster-12-1", "b"), ("host.example.org-0", "a")],
)
def test_worker_takes_the_gpu_of_the_number_that_its_name_ends_in(name: str, gpu: str) -> None:
    assert own_gpu(name, ("a", "b", "c")) == gpu


@pytest.mark.parametrize("name", ["tcp://127.0.0.1:40001", "tls://10.0.0.3:40001", "alice", "", "node-7-b"])
def test_worker_whose_name_does_not_say_its_gpu_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"sees 2 GPUs and its name does not say which is its own\..*--name NAME"):
        own_gpu(name, ("a", "b"))
