"""What batch systems are asked for: the scripts that dask-jobqueue submits, taken by programs that stand for theirs."""

from __future__ import annotations

import asyncio
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import psutil
import pytest

from manifests.errors import ConfigError, RefusedError
from pipeline import dask_jobs
from pipeline.cluster_config import ClusterConfig, JobSettings, TlsSettings
from pipeline.dask_jobs import Jobs, WholeJobs, job_cluster, job_of
from pipeline.worker import STARTED
from tests.integration.standing import Certificates

WAIT_S = 120.0
KINDS = ("slurm", "pbs", "lsf", "sge")
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}
CANCEL = {"slurm": "scancel", "pbs": "qdel", "lsf": "bkill", "sge": "qdel"}
TAKEN = """\
#!/bin/sh
n=$(mktemp -u job-XXXXXX -p {folder})
if [ -f "$1" ]; then cat "$1" > "$n.part"; else cat > "$n.part"; fi
mv "$n.part" "$n"
echo "Submitted job <$(ls {folder} | grep -c job-)>"
"""
ENDED = """\
#!/bin/sh
echo "$@" >> {folder}/cancelled
"""


def wait_until(ready: Callable[[], bool]) -> None:
    """Return once something is so."""
    end = time.monotonic() + WAIT_S
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


class Queue:
    """The programs of a batch system, which keep what they are given and start nothing."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        folder.mkdir()
        for name, text in ((SUBMIT[kind], TAKEN), (CANCEL[kind], ENDED)):
            (folder / name).write_text(text.format(folder=shlex.quote(str(folder))))
            (folder / name).chmod(0o755)

    def scripts(self, n: int = 1) -> list[str]:
        """The scripts of at least `n` jobs, as soon as they are submitted."""
        wait_until(lambda: len(list(self.folder.glob("job-??????"))) >= n)
        return [file.read_text() for file in self.folder.glob("job-??????")]

    def cancelled(self) -> int:
        """Jobs that were cancelled."""
        file = self.folder / "cancelled"
        return len(file.read_text().split()) if file.exists() else 0


@pytest.fixture
def queue(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """The batch system that a test names, before everything else on PATH."""
    queue = Queue(tmp_path / "queue", getattr(request, "param", "slurm"))
    monkeypatch.setenv("PATH", f"{queue.folder}:/usr/bin:/bin")
    return queue


@pytest.fixture
def tls(tmp_path: Path) -> TlsSettings:
    files = Certificates.make(tmp_path / "tls")
    return TlsSettings(ca=files.ca, cert=files.cert, key=files.key)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """Open clusters, with jobs on the loopback interface, and close them after the test."""
    with ExitStack() as stack:

        def open_cluster(kind: Any, jobs: dict[str, Any], *, gpu: bool = False, **more: Any) -> Any:
            config = ClusterConfig(kind=kind, jobs=JobSettings(**{"interface": "lo", "maximum": 1, **jobs}), **more)
            return stack.enter_context(job_cluster(config, tmp_path / "logs", gpu=gpu))

        yield open_cluster


FULL = {
    "queue": "night",
    "account": "lab7",
    "walltime": "06:30:00",
    "cores": 8,
    "memory": "32GiB",
    "directives": ("--site-directive=1",),
    "prologue": ("module load cuda",),
    "local_directory": "/local/scratch",
}
HEADERS = {
    "slurm": ["-p night", "-A lab7", "-t 06:30:00", "--cpus-per-task=8", "--mem=32G", "--site-directive=1"],
    "pbs": ["-q night", "-A lab7", "-l walltime=06:30:00", "-l select=1:ncpus=8:mem=32GB", "--site-directive=1"],
    "lsf": ["-q night", '-P "lab7"', "-W 06:30", "-n 8", "-M 34359739", "--site-directive=1"],
    "sge": ["-q night", "-P lab7", "-l h_rt=06:30:00", "--site-directive=1"],
}
MARK = {"slurm": "#SBATCH ", "pbs": "#PBS ", "lsf": "#BSUB ", "sge": "#$ "}
GPUS = {
    "slurm": "--gres=gpu:2",
    "pbs": "-l select=1:ncpus=8:ngpus=2:mem=32gib",
    "lsf": '-gpu "num=2"',
    "sge": "-l gpu=2",
}


def header(script: str, kind: str) -> list[str]:
    """What the batch system reads of a script."""
    return [line.removeprefix(MARK[kind]).strip() for line in script.splitlines() if line.startswith(MARK[kind])]


def worker(script: str) -> dict[str, str]:
    """Options of the worker's command, by name."""
    (line,) = [line for line in script.splitlines() if "dask_worker" in line]
    return {name: value for name, value in pairwise(shlex.split(line)) if name.startswith("--")}


@pytest.mark.parametrize(("queue", "kind"), [(k, k) for k in KINDS], indirect=["queue"])
def test_job_is_asked_for_as_configured(queue: Queue, opened: Any, kind: str) -> None:
    opened(kind, FULL, insecure=True)
    (script,) = queue.scripts()
    asked = header(script, kind)
    assert [line for line in HEADERS[kind] if line not in asked] == [], script
    assert "gpu" not in script
    assert script.index("export OMP_NUM_THREADS=1") < script.index("module load cuda") < script.index("dask_worker")
    options = worker(script)
    assert (options["--nthreads"], options["--local-directory"]) == ("1", "/local/scratch")
    assert options["--interface"] == "lo"


@pytest.mark.parametrize(("queue", "kind"), [(k, k) for k in KINDS], indirect=["queue"])
def test_gpus_are_asked_for_in_the_words_of_each_batch_system(queue: Queue, opened: Any, kind: str) -> None:
    opened(kind, {**FULL, "gpus": 2}, gpu=True, insecure=True)
    (script,) = queue.scripts()
    assert GPUS[kind] in header(script, kind), script
    options = worker(script)
    assert (options["--resources"], options["--nworkers"], options["--nthreads"]) == ("GPU=1", "2", "2")


def test_stages_without_a_model_ask_for_no_gpu(queue: Queue, opened: Any) -> None:
    opened("slurm", {**FULL, "gpus": 2}, insecure=True)
    (script,) = queue.scripts()
    assert "gpu" not in script
    assert worker(script)["--nthreads"] == "1"


def test_worker_knows_when_its_job_began(queue: Queue, opened: Any) -> None:
    opened("slurm", {"walltime": "01:00:00", "margin_s": 600, "stagger_s": 30}, insecure=True)
    (script,) = queue.scripts()
    assert f"export {STARTED}=$(date +%s)" in script.splitlines()
    assert "--lifetime" not in worker(script), "Dask would drop the unit at work"


@pytest.mark.parametrize(("queue", "kind"), [(k, k) for k in KINDS], indirect=["queue"])
def test_workers_show_the_certificates_that_are_configured(
    queue: Queue, opened: Any, tls: TlsSettings, kind: str
) -> None:
    opened(kind, {}, tls=tls)
    (script,) = queue.scripts()
    options = worker(script)
    shown = [options[name] for name in ("--tls-ca-file", "--tls-cert", "--tls-key")]
    assert shown == [str(tls.ca), str(tls.cert), str(tls.key)]
    assert "tls://127.0.0.1:" in script


def test_without_certificates_each_run_makes_its_own_and_nobody_else_may_read_the_key(
    queue: Queue, opened: Any, tmp_path: Path
) -> None:
    opened("slurm", {})
    (script,) = queue.scripts()
    options, key_body = worker(script), "PRIVATE KEY"
    assert "tls://127.0.0.1:" in script
    assert key_body not in script
    key = Path(options["--tls-key"])
    assert key_body in key.read_text()
    assert key.parent == tmp_path / "logs"
    assert (key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_certificates_of_a_run_are_gone_after_it_and_its_jobs_are_cancelled(queue: Queue, tmp_path: Path) -> None:
    config = ClusterConfig(kind="slurm", jobs=JobSettings(interface="lo", minimum=2, maximum=2))
    with job_cluster(config, tmp_path / "logs", gpu=False):
        keys = {worker(script)["--tls-key"] for script in queue.scripts(2)}
    assert queue.cancelled() == 2
    assert [key for key in keys if Path(key).exists()] == []
    assert list((tmp_path / "logs").iterdir()) == []


def test_what_is_left_out_comes_from_the_sites_own_configuration(queue: Queue, opened: Any) -> None:
    site = {"queue": "site-queue", "account": "site-account", "local-directory": "/site/scratch"}
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in site.items()}):
        opened("slurm", {}, insecure=True)
        (script,) = queue.scripts()
    assert {"-p site-queue", "-A site-account"} <= set(header(script, "slurm"))
    assert worker(script)["--local-directory"] == "/site/scratch"


def test_no_more_jobs_than_the_workers_asked_for(queue: Queue, opened: Any) -> None:
    jobs = {"minimum": 4, "maximum": 4, "processes": 2}
    cluster = opened("slurm", jobs, workers=3, insecure=True)
    queue.scripts(2)
    time.sleep(1.5)
    assert (cluster.workers, len(queue.scripts())) == (4, 2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_looking_after_jobs_gives_up_none_that_still_wait_in_the_queue(
    queue: Queue, opened: Any, processes: int
) -> None:
    cluster = opened("slurm", {"minimum": 3, "maximum": 3, "processes": processes, "cores": 4}, insecure=True)
    queue.scripts(3)
    workforce = cluster._workforce
    assert isinstance(workforce, Jobs)
    workforce.look_after()
    time.sleep(1)
    assert (len(workforce._cluster.worker_spec), queue.cancelled()) == (3, 0)


@pytest.mark.parametrize(("name", "words"), [("", "is not given"), ("nowhere0", "'nowhere0', which is not here")])
def test_interface_that_is_not_named_or_not_here_is_refused_with_those_that_are(
    tmp_path: Path, name: str, words: str
) -> None:
    config = ClusterConfig(kind="slurm", jobs=JobSettings(interface=name))
    with pytest.raises(ConfigError, match=rf"{words}.*of this machine:.*lo \(127\.0\.0\.1\)"):
        job_cluster(config, tmp_path / "logs", gpu=False).__enter__()


@pytest.mark.parametrize("folder", ["a folder", "it's", 'say "x"', "a;b", "$HOME"])
def test_work_folder_that_a_script_cannot_hold_is_refused_by_name(queue: Queue, tmp_path: Path, folder: str) -> None:
    config = ClusterConfig(kind="slurm", jobs=JobSettings(interface="lo"), insecure=True)
    with pytest.raises(ConfigError, match="which a job's script cannot hold") as caught:
        job_cluster(config, tmp_path / folder / "logs", gpu=False).__enter__()
    assert repr(str(tmp_path / folder / "logs")) in str(caught.value)
    assert queue.cancelled() == 0


@pytest.mark.parametrize("folder", ["/local/a folder", "/local/it's", '/local/"x"'])
def test_folder_on_the_node_that_a_script_cannot_hold_is_refused_by_name(opened: Any, folder: str) -> None:
    with pytest.raises(ConfigError, match="which a job's script cannot hold") as caught:
        opened("slurm", {"local_directory": folder}, insecure=True)
    assert repr(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
@pytest.mark.parametrize("folder", ["a folder", "it's", 'say "x"'])
def test_certificate_whose_path_a_script_cannot_hold_is_refused_by_name(
    opened: Any, tls: TlsSettings, tmp_path: Path, name: str, folder: str
) -> None:
    moved = tmp_path / folder / "file.pem"
    moved.parent.mkdir()
    getattr(tls, name).rename(moved)
    with pytest.raises(ConfigError, match="which a job's script cannot hold") as caught:
        opened("slurm", {}, tls=tls.model_copy(update={name: moved}))
    assert repr(str(moved)) in str(caught.value)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_certificate_that_is_none_is_an_error_of_the_configuration_in_two_lines(
    queue: Queue, opened: Any, tls: TlsSettings, name: str
) -> None:
    getattr(tls, name).write_text("no certificate\n")
    with pytest.raises(ConfigError, match="The scheduler for the jobs cannot be started: ") as caught:
        opened("slurm", {}, tls=tls)
    assert "\n" not in caught.value.what
    assert caught.value.fix == "Check [cluster.tls] and [cluster.jobs]."
    assert list(queue.folder.glob("job-*")) == []


@pytest.mark.parametrize(("margin_s", "stagger_s"), [(3600, 0), (4000, 0), (3540, 60), (300, 3300)])
def test_walltime_that_leaves_workers_no_time_is_refused(opened: Any, margin_s: float, stagger_s: float) -> None:
    jobs = {"walltime": "01:00:00", "margin_s": margin_s, "stagger_s": stagger_s}
    said = rf"walltime = '01:00:00' leaves nothing before margin_s = {margin_s} and stagger_s = {stagger_s}\."
    with pytest.raises(ConfigError, match=said):
        opened("slurm", jobs, insecure=True)


@pytest.mark.parametrize("words", ["sbatch: error: invalid account or partition", ""])
def test_batch_system_that_takes_no_job_ends_the_run_with_its_own_words(queue: Queue, opened: Any, words: str) -> None:
    asked = queue.folder / "asked"
    (queue.folder / "sbatch").write_text(f"#!/bin/sh\necho '{words}' >&2\ntouch '{asked}'\nexit 1\n")
    workforce = opened("slurm", {}, insecure=True)._workforce
    wait_until(lambda: asked.exists() and len(workforce._cluster.workers) == 1)
    with pytest.raises(RefusedError, match=f"does not take the workers' jobs: .*{words}"):
        workforce.look_after()


def test_refused_job_is_asked_for_again_where_others_were_taken(queue: Queue, opened: Any) -> None:
    first = "if mkdir {folder}/full 2>/dev/null; then echo 'sbatch: error: try again' >&2; exit 1; fi"
    text = TAKEN.replace("#!/bin/sh", f"#!/bin/sh\n{first}")
    (queue.folder / "sbatch").write_text(text.format(folder=shlex.quote(str(queue.folder))))
    workforce = opened("slurm", {"minimum": 2, "maximum": 2}, insecure=True)._workforce
    queue.scripts(1)
    wait_until(lambda: len(workforce._cluster.workers) == 2)
    assert "Last refused: sbatch: error: try again." in workforce.hint
    workforce.look_after()
    assert len(queue.scripts(2)) == 2


@contextmanager
def begun(script: Path, log: Path) -> Iterator[psutil.Process]:
    """Run the script of a job as its node would; end its processes after the test."""
    with log.open("wb") as out, subprocess.Popen(["/bin/sh", script], stdout=out, stderr=out) as job:
        process = psutil.Process(job.pid)
        try:
            yield process
        finally:
            for child in [*process.children(recursive=True), process]:
                with suppress(psutil.Error):
                    child.kill()


def processes_of(job: psutil.Process, word: str) -> list[psutil.Process]:
    """Processes of a job with a word in their command line."""
    found = []
    for process in job.children(recursive=True):
        with suppress(psutil.Error):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def nanny_status(dask_worker: Any) -> str:
    return str(dask_worker.status.name)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["nanny gone", "hopeless"])
def test_job_whose_worker_starts_anew_is_kept_until_its_nanny_is_gone_or_it_takes_too_long(
    queue: Queue, opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """No time is left to a job here: what keeps it is its nanny alone."""
    monkeypatch.setattr(dask_jobs, "LOST_S", 0.0)
    cluster = opened("slurm", {"minimum": 1}, insecure=True)
    workforce = cluster._workforce

    def connected() -> set[str]:
        return set(workforce._cluster.scheduler_info["workers"])

    queue.scripts()
    (script,) = queue.folder.glob("job-??????")
    with begun(script, tmp_path / "job.log") as job:
        wait_until(lambda: len(connected()) == 1)
        workforce.look_after()
        # Until its nanny knows that it has come up, a worker's death ends both.
        wait_until(lambda: list(cluster._client.run(nanny_status, nanny=True).values()) == ["running"])
        first = connected()
        (worker,) = processes_of(job, "spawn_main")
        worker.kill()
        wait_until(lambda: not connected())
        if end == "hopeless":
            monkeypatch.setattr(dask_jobs, "HOPELESS_S", 0.0)
        else:
            workforce.look_after()
            assert (len(queue.scripts()), queue.cancelled()) == (1, 0)
            wait_until(lambda: len(connected() - first) == 1)
            for process in processes_of(job, "python"):
                process.kill()
            wait_until(lambda: not connected())
            workforce.look_after()
            assert (len(queue.scripts()), queue.cancelled()) == (1, 0), "one look is not enough"
        workforce.look_after()
        assert (len(queue.scripts(2)), queue.cancelled()) == (2, 1)


PAIRS = {"C-0": {"group": ["-0", "-1"]}, "C-1": {"group": ["-0", "-1"]}}
SINGLES: dict[str, dict[str, list[str]]] = {"C-0": {}, "C-1": {}}


@pytest.mark.parametrize(
    ("jobs", "idle", "ended"),
    [
        (PAIRS, {"C-0-0", "C-0-1"}, ["C-0-0", "C-0-1"]),
        (PAIRS, {"C-0-0", "C-1-0", "C-1-1"}, ["C-1-0", "C-1-1"]),
        (PAIRS, {"C-0-0", "C-1-1"}, []),
        (PAIRS, {"C-0-0", "C-0-1", "C-1-0", "C-1-1"}, ["C-0-0", "C-0-1", "C-1-0", "C-1-1"]),
        (SINGLES, {"C-1"}, ["C-1"]),
        (SINGLES, {"C-0", "C-1"}, ["C-0", "C-1"]),
        (SINGLES, set(), []),
    ],
)
def test_job_is_given_up_only_if_all_its_workers_are_idle(
    jobs: dict[str, Any], idle: set[str], ended: list[str]
) -> None:
    retired: list[str] = []
    closed: list[str] = []

    async def retire(names: list[str], **_: object) -> None:
        retired.extend(names)

    scheduler = SimpleNamespace(retire_workers=retire)
    cluster = SimpleNamespace(worker_spec=jobs, scheduler_comm=scheduler, scale_down=closed.extend)
    asyncio.run(WholeJobs(cluster, interval=0).scale_down(idle))
    assert (sorted(retired), sorted(closed)) == (ended, ended)


@pytest.mark.parametrize(
    ("worker_name", "shared", "job"),
    [("C-0-1", True, "C-0"), ("C-12-0", True, "C-12"), ("C-0", False, "C-0"), ("C-12", False, "C-12")],
)
def test_job_of_a_worker_is_known_by_its_name(worker_name: str, shared: bool, job: str) -> None:
    assert job_of(SimpleNamespace(name=worker_name), shared=shared) == job
