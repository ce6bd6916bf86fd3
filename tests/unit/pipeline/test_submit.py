"""Batch scripts as text, and as shells that pass signals on, are put back into the queue, or end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.errors import ConfigError, RefusedError
from pipeline.cluster_config import ClusterConfig, JobSettings
from pipeline.config import RunConfig, load_config
from pipeline.submit import Job, check_name, plan_jobs, send, write_scripts

WAIT_S = 60.0
SETTINGS = JobSettings(
    queue="gpu",
    account="lab7",
    walltime="08:00:00",
    cores=6,
    memory="20GiB",
    gpus=2,
    directives=("--constraint=a100", "--exclude=node13"),
    prologue=("module load cuda", "export A='b c'"),
)


def run_config(**cluster: object) -> RunConfig:
    """A configuration whose `[cluster]` is this one."""
    return RunConfig(cluster=ClusterConfig.model_validate(cluster))


def job(folder: Path, *arguments: str, parts: int = 1, settings: JobSettings = SETTINGS) -> Job:
    return Job("study-masks", ("--stage", "masks", *arguments), settings, folder, parts)


def directives(script: str) -> list[str]:
    """What sbatch reads of a script."""
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def check_syntax(script: str) -> None:
    """Let bash parse a script."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), script


def test_script_asks_for_what_is_configured(tmp_path: Path) -> None:
    script = job(tmp_path).script()
    check_syntax(script)
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    assert directives(script) == [
        "--job-name=study-masks",
        f'--output="{tmp_path}/%x-%j.out"',
        "--partition=gpu",
        "--account=lab7",
        "--time=08:00:00",
        "--cpus-per-task=6",
        "--mem=20480M",
        "--gres=gpu:2",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@300",
        "--constraint=a100",
        "--exclude=node13",
    ]


def test_directives_stand_before_the_first_command(tmp_path: Path) -> None:
    lines = job(tmp_path, parts=3).script().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]
    assert lines[first : first + 2] == ["module load cuda", "export A='b c'"]


def test_site_defaults_are_left_to_the_site(tmp_path: Path) -> None:
    asked = directives(job(tmp_path, settings=JobSettings()).script())
    assert not [line for line in asked if re.match(r"--(partition|account|gres|array)", line)]


def test_array_gives_each_task_its_part(tmp_path: Path) -> None:
    script = job(tmp_path, parts=16).script()
    check_syntax(script)
    assert "--array=1-16" in directives(script)
    assert f'--output="{tmp_path}/%x-%A_%a.out"' in directives(script)
    assert '--part "$SLURM_ARRAY_TASK_ID/16" &' in script


@pytest.mark.parametrize(
    ("walltime", "margin_s", "signal_s"),
    [("08:00:00", 300, 300), ("08:00:00", 1200.5, 1201), ("00:12:00", 300, 120), ("00:07:00", 30, 30)],
)
def test_signal_comes_early_enough_for_units_in_flight(
    tmp_path: Path, walltime: str, margin_s: float, signal_s: int
) -> None:
    script = job(tmp_path, settings=JobSettings(walltime=walltime, margin_s=margin_s, stagger_s=0)).script()
    assert f"--signal=B:USR1@{signal_s}" in directives(script)
    assert f"cluster.grace_s={3 * signal_s // 4}" in script


def test_every_stage_is_a_job_and_only_those_of_chunks_are_arrays(tmp_path: Path) -> None:
    jobs = plan_jobs(("proposals", "one", "fusion", "two"), ("--workdir", "w"), run_config(), 4, tmp_path / "night")
    assert [(j.name, j.parts) for j in jobs] == [
        ("night-proposals", 4),
        ("night-one", 4),
        ("night-fusion", 1),
        ("night-two", 1),
    ]
    assert [j.arguments[:2] for j in jobs] == [("--stage", j.name.removeprefix("night-")) for j in jobs]


def test_job_without_gpus_has_a_worker_a_core_unless_told_otherwise(tmp_path: Path) -> None:
    cores, told, gpus = (
        plan_jobs(("proposals",), (), run_config(jobs=jobs, workers=workers), 1, tmp_path / "n")[0].arguments
        for jobs, workers in ((JobSettings(cores=6), 0), (JobSettings(cores=6), 2), (JobSettings(gpus=1), 0))
    )
    assert cores == ("--stage", "proposals", "--workers", "6")
    assert told == gpus == ("--stage", "proposals")


def test_job_that_drives_a_batch_system_asks_for_no_gpu(tmp_path: Path) -> None:
    config = run_config(kind="slurm", jobs=JobSettings(gpus=4, queue="gpu"), cpu_jobs=JobSettings(queue="cpu"))
    (driver,) = plan_jobs(("masks",), (), config, 1, tmp_path / "n")
    assert (driver.settings.queue, driver.settings.gpus) == ("cpu", 0)
    assert "--workers" not in driver.arguments


@pytest.mark.parametrize(
    ("stage", "policy", "queue"),
    [
        *((stage, "union", "gpu") for stage in ("proposals", "one", "embeddings", "two", "all", "baselines")),
        *((stage, "union", "cpu") for stage in ("masks", "texts", "fusion", "probes")),
        ("masks", "clip-rank", "gpu"),
    ],
)
def test_stage_without_a_model_gets_a_job_of_the_cpu(tmp_path: Path, stage: str, policy: str, queue: str) -> None:
    cluster = ClusterConfig(jobs=JobSettings(gpus=1, queue="gpu"), cpu_jobs=JobSettings(queue="cpu", cores=6))
    config = load_config(overrides=[f"masks.policy={policy}"]).model_copy(update={"cluster": cluster})
    (planned,) = plan_jobs((stage,), ("--dataset", "d"), config, 1, tmp_path / "n")
    assert (planned.settings.queue, planned.settings.gpus) == (queue, int(queue == "gpu"))
    on_cpu = ("--workers", "6", "--set", "cluster.device=cpu") if queue == "cpu" else ()
    assert planned.arguments == ("--stage", stage, "--dataset", "d", *on_cpu)


def test_scripts_which_may_hold_secrets_are_their_owner_s_alone(tmp_path: Path) -> None:
    (script,) = write_scripts([job(tmp_path / "new" / "jobs")])
    assert [path.stat().st_mode & 0o777 for path in (script.parent, script)] == [0o700, 0o600]


@pytest.mark.parametrize("config", [run_config(kind="slurm"), run_config(scheduler="tls://a:1")])
def test_array_that_drives_a_cluster_is_refused(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="shares the work without a scheduler"):
        plan_jobs(("masks",), (), config, 4, tmp_path / "n")


def test_job_too_short_for_workers_of_dask_may_run_the_pipeline_itself(tmp_path: Path) -> None:
    config = run_config(jobs=JobSettings(walltime="00:05:00"))
    (short,) = plan_jobs(("masks",), (), config, 1, tmp_path / "n")
    assert "--time=00:05:00" in directives(short.script())


@pytest.mark.parametrize("stages", [("nonsense",), ("one", "nonsense"), ("masks", "masks"), ("one", "two", "one")])
def test_stage_that_is_unknown_or_comes_twice_is_refused_with_those_there_are(
    tmp_path: Path, stages: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=rf"--stage {', '.join(stages)}: .*Stages: proposals, masks, .*two, all\."):
        plan_jobs(stages, (), run_config(), 1, tmp_path / "n")


@pytest.mark.parametrize("name", ["a b", "a;b", "$(x)", "a\nb", "", "a/b", "ä", "x" * 61])
def test_name_that_slurm_or_a_shell_reads_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a job's name"):
        check_name(name)


PIPELINE = """\
#!{python} -I
import os, signal, sys, time
from pathlib import Path

here = Path(__file__).parent
heard = []
def hear(number, _frame):
    heard.append(number)
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, hear)
(here / "arguments").write_text("\\0".join(sys.argv[1:]))
(here / "begun").write_text(str(os.getpid()))
end = time.monotonic() + {patience_s}
while {wait_for} > len(heard) and time.monotonic() < end:
    time.sleep(0.02)
time.sleep({after_s})
(here / "heard").write_text(" ".join(signal.Signals(n).name for n in heard))
sys.exit({code})
"""
"""Stands for the interpreter that runs the pipeline: waits for signals, takes a while, and ends."""
REQUEUE = """\
#!/bin/sh
echo "$@" >> "{folder}/requeued"
"""


class Shell:
    """A job's script, run by bash as slurmd would, with a `pipeline` and a `scontrol` that are not the real ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = self.program("python", "")
        self.program("scontrol", REQUEUE.format(folder=folder))
        self.env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}

    def program(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)
        return self.folder / name

    def pipeline(self, code: int, wait_for: int = 0, after_s: float = 0.0) -> None:
        """Let the pipeline end with a code, some time after it has heard so many signals."""
        fields = {"code": code, "wait_for": wait_for, "after_s": after_s, "patience_s": WAIT_S / 2}
        self.program("python", PIPELINE.format(python=sys.executable, **fields))

    def start(self, told: Job) -> subprocess.Popen[str]:
        script = self.folder / "job.sbatch"
        script.write_text(told.script(str(self.python)))
        pipe = subprocess.PIPE
        return subprocess.Popen(["bash", str(script)], env=self.env, stdout=pipe, stderr=pipe, text=True)

    def started(self, told: Job) -> subprocess.Popen[str]:
        """As `start`; returns once the pipeline is at work."""
        process, end = self.start(told), time.monotonic() + WAIT_S
        while not (self.folder / "begun").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        return process

    def read(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    folder = tmp_path / "a folder"
    folder.mkdir()
    return Shell(folder)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a job."""
    out, err = process.communicate(timeout=WAIT_S)
    assert err == ""
    return process.returncode, out


PLAIN = replace(job(Path("/jobs")), settings=JobSettings())


def test_arguments_reach_the_pipeline_as_they_were_given(shell: Shell) -> None:
    odd = """/data/it's "here" $HOME `x` \\ *; & é"""
    shell.pipeline(0)
    assert ended(shell.start(replace(PLAIN, arguments=("--workdir", odd, "--set", 'masks.compare=["box"]')))) == (0, "")
    given = shell.read("arguments").split("\0")
    expected = ["-m", "pipeline", "run", "--workdir", odd, "--set", 'masks.compare=["box"]']
    assert given == [*expected, "--set", "cluster.grace_s=225"]


def test_task_of_an_array_tells_the_pipeline_its_part(shell: Shell) -> None:
    shell.pipeline(0)
    shell.env["SLURM_ARRAY_TASK_ID"] = "3"
    assert ended(shell.start(replace(PLAIN, parts=7))) == (0, "")
    assert shell.read("arguments").split("\0")[-2:] == ["--part", "3/7"]


def test_prologue_runs_before_the_pipeline_and_in_its_surroundings(shell: Shell) -> None:
    shell.program("python", f'#!/bin/sh\necho "$SITE" > {shlex.quote(str(shell.folder / "said"))}\n')
    settings = JobSettings(prologue=("SITE='two  words'", "export SITE"))
    assert ended(shell.start(replace(PLAIN, settings=settings))) == (0, "")
    assert shell.read("said") == "two  words\n"


@pytest.mark.parametrize("code", [0, 1, 2, 4, 137])
def test_job_ends_with_the_code_of_the_pipeline(shell: Shell, code: int) -> None:
    shell.pipeline(code)
    assert ended(shell.start(PLAIN)) == (code, "")
    assert shell.read("requeued") == ""


def test_images_without_a_result_do_not_keep_the_next_stage_from_its_start(shell: Shell) -> None:
    shell.pipeline(3)
    assert ended(shell.start(PLAIN)) == (0, "Some images or units have no result; see: pipeline status\n")


def test_run_that_its_walltime_interrupts_is_put_back_into_the_queue(shell: Shell) -> None:
    shell.pipeline(75, wait_for=1)
    process = shell.started(PLAIN)
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == (0, "")
    assert shell.read("requeued") == "requeue 4711\n"


@pytest.mark.parametrize("wait_for", [0, 1])
def test_run_that_is_cancelled_or_stops_by_itself_is_left_to_slurm(shell: Shell, wait_for: int) -> None:
    shell.pipeline(75, wait_for=wait_for)
    process = shell.started(PLAIN)
    if wait_for:
        process.send_signal(signal.SIGTERM)
    assert ended(process) == (75, "")
    assert shell.read("requeued") == ""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_signal_to_the_shell_reaches_the_pipeline_which_may_take_its_time(shell: Shell, number: signal.Signals) -> None:
    shell.pipeline(0, wait_for=1, after_s=2)
    process = shell.started(PLAIN)
    process.send_signal(number)
    time.sleep(1)
    assert process.poll() is None, "the shell waits for units in flight"
    assert ended(process) == (0, "")
    assert shell.read("heard") == number.name
    assert shell.read("requeued") == ""


@pytest.mark.parametrize("code", [0, 1, 4])
def test_code_after_a_signal_is_that_of_the_pipeline_and_not_of_the_signal(shell: Shell, code: int) -> None:
    shell.pipeline(code, wait_for=1, after_s=0.3)
    process = shell.started(PLAIN)
    process.send_signal(signal.SIGUSR1)
    assert ended(process) == (code, "")
    assert shell.read("requeued") == ""


@pytest.mark.parametrize("second", [signal.SIGUSR1, signal.SIGTERM])
def test_signals_that_come_twice_are_passed_on_twice(shell: Shell, second: signal.Signals) -> None:
    shell.pipeline(4, wait_for=2, after_s=1)
    process = shell.started(PLAIN)
    for number in (signal.SIGUSR1, second):
        process.send_signal(number)
        time.sleep(0.5)
    assert ended(process) == (4, "")
    assert shell.read("heard") == f"SIGUSR1 {second.name}"
    assert shell.read("requeued") == ""


def test_job_that_is_told_of_its_walltime_twice_is_put_back_once(shell: Shell) -> None:
    shell.pipeline(75, wait_for=2)
    process = shell.started(PLAIN)
    for _ in "ab":
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
    assert ended(process) == (0, "")
    assert shell.read("requeued") == "requeue 4711\n"


def test_pipeline_that_is_killed_fails_the_job(shell: Shell) -> None:
    shell.pipeline(0, wait_for=1)
    process = shell.started(PLAIN)
    os.kill(int(shell.read("begun")), signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 137
    assert shell.read("requeued") == ""


SBATCH = """\
#!/bin/sh
echo "$@" >> "{folder}/asked"
n=$(wc -l < "{folder}/asked")
if [ "$n" -gt {taken} ]; then echo "sbatch: error: invalid partition" >&2; exit 1; fi
echo "$((100 + n)){suffix}"
"""


def submitted(shell: Shell, monkeypatch: pytest.MonkeyPatch, taken: int, suffix: str = "") -> Sequence[str]:
    """Ids of three jobs, of which sbatch takes some."""
    shell.program("sbatch", SBATCH.format(folder=shell.folder, taken=taken, suffix=suffix))
    monkeypatch.setenv("PATH", shell.env["PATH"])
    jobs = plan_jobs(("masks", "embeddings", "two"), (), run_config(), 1, shell.folder / "jobs" / "night")
    return send(list(write_scripts(jobs)))


@pytest.mark.parametrize("suffix", ["", ";cluster2"])
def test_each_job_waits_for_the_success_of_the_one_before(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    assert submitted(shell, monkeypatch, taken=3, suffix=suffix) == ["101", "102", "103"]
    scripts = [str(shell.folder / "jobs" / f"night-{stage}.sbatch") for stage in ("masks", "embeddings", "two")]
    after = [f"--dependency=afterok:{n} --kill-on-invalid-dep=yes " for n in (101, 102)]
    asked = shell.read("asked").splitlines()
    assert asked == [f"--parsable {a}{script}" for a, script in zip(("", *after), scripts, strict=True)]
    for script in scripts:
        check_syntax(Path(script).read_text())


def test_job_that_is_not_taken_ends_the_submission_and_names_those_that_were(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RefusedError, match=r"night-two\.sbatch: .*invalid partition.*Submitted before: 101, 102\."):
        submitted(shell, monkeypatch, taken=2)


def test_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RefusedError, match="no sbatch here"):
        send([tmp_path / "x.sbatch"])
