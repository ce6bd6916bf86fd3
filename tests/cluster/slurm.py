"""A real Slurm of one node, with its own munge, in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from tests.cluster.slurm_conf import NODE, write_configuration

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel", "sinfo")
START_S = 30.0
STOP_S = 5.0
POLL_S = 0.1
LONGEST_SOCKET = 107
"""A UNIX socket's path in bytes; slurmd's longest is `spool/node_<job>.<step>`."""

FINISHED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
)
"""The states from which a job goes nowhere by itself."""

OWN_VARIABLES = ("SLURM", "SBATCH_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_")
"""How the variables begin that a surrounding Slurm may have set, and that would change what a command does here."""


class SlurmError(Exception):
    """Slurm did not do what a test asked; the message holds the end of the controller's log."""


class SlurmMissingError(SlurmError):
    """Slurm cannot be started on this machine; the message says why and what to do."""


def missing_programs() -> list[str]:
    """What of Slurm and munge is not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]


def search_path() -> str:
    """PATH with the folders of daemons, which only root has there."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


class Slurm:
    """One controller and one node of 16 pretended CPUs and 4 pretended GPUs; partitions `main` and `gpu`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start munge, the controller and the node, and return when the node takes jobs.

        Raises
        ------
        SlurmMissingError
            Where they cannot run here, after ending what did start.
        """
        try:
            self._prepare()
            # --force: the folder is closed to other users, and munged wants its socket open to all.
            own = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed")]
            self._daemon("munged", "--force", "--foreground", f"--socket={self.folder}/munge.socket", *own)
            self._until(lambda: (self.folder / "munge.socket").exists())
            self._daemon("slurmctld", "-D", "-f", self.conf)
            self._daemon("slurmd", "-D", "-f", self.conf, "-N", NODE)
            self._until(lambda: self._run("sinfo", "-h", "-o", "%T", "-p", "main").stdout.strip() == "idle")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process that was started here, jobs and what they started too."""
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(STOP_S)
            daemon.kill()
            daemon.wait()
        self._daemons.clear()
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, STOP_S)

    def environment(self) -> dict[str, str]:
        """The variables of this process, with Slurm's own replaced by the one that leads here."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
        return {**kept, "PATH": search_path(), "SLURM_CONF": str(self.conf)}

    def sbatch(self, script: Path, *arguments: object) -> str:
        """Submit a script, with the options of sbatch before it, and return the job's id."""
        return self._ask("sbatch", "--parsable", *arguments, script).strip().split(";")[0]

    def jobs(self) -> list[tuple[str, str, str]]:
        """Id (`12`, or `12_0` of an array's task), name and state of every job that Slurm remembers."""
        listed = self._ask("squeue", "--noheader", "--states=all", "--array", "--format=%i|%T|%j")
        rows = (line.split("|", 2) for line in listed.splitlines())
        found = [(job, name, state) for job, state, name in rows]
        return sorted(found, key=lambda row: [int(part) for part in row[0].split("_")])

    def states(self, job_ids: Iterable[str]) -> dict[str, str]:
        """State of every job, an array's id standing for its tasks."""
        wanted = set(job_ids)
        found = {job: state for job, _, state in self.jobs() if job in wanted or job.split("_")[0] in wanted}
        if unknown := wanted - set(found) - {job.split("_")[0] for job in found}:
            raise SlurmError(self._with_log(f"Slurm knows no job {', '.join(sorted(unknown))}"))
        return found

    def state(self, job_id: str) -> str:
        """The job's state; of an array whose tasks differ, their states with a comma between."""
        return ",".join(sorted(set(self.states([job_id]).values())))

    def restarts(self, job_id: str) -> int:
        """How often the job was put back into the queue."""
        shown = self._ask("scontrol", "--oneliner", "show", "job", job_id)
        return int(shown.split("Restarts=", 1)[1].split()[0])

    def cancel(self, job_id: str) -> None:
        """Cancel the job, an array with all its tasks."""
        self._ask("scancel", job_id)

    def wait(
        self, job_ids: str | Iterable[str], timeout_s: float = 60.0, states: Iterable[str] = FINISHED
    ) -> dict[str, str]:
        """Return the states once every job has one of those named.

        Raises
        ------
        SlurmError
            After `timeout_s`, with the states and the end of the controller's log.
        """
        wanted = frozenset(states)
        asked = [job_ids] if isinstance(job_ids, str) else list(job_ids)
        until = time.monotonic() + timeout_s
        while not wanted.issuperset((found := self.states(asked)).values()):
            if time.monotonic() > until:
                reasons = self._ask("squeue", "--noheader", "--states=all", "--array", "--format=%i %T %r")
                raise SlurmError(self._with_log(f"after {timeout_s:g} s {found}, not {sorted(wanted)}:\n{reasons}"))
            time.sleep(POLL_S)
        return found

    def _prepare(self) -> None:
        if missing := missing_programs():
            raise SlurmMissingError(f"install slurm-wlm and munge: {', '.join(missing)} not found")
        if len(os.fsencode(self.folder / "spool" / f"{NODE}_99999999.4294967291")) > LONGEST_SOCKET:
            raise SlurmMissingError(f"{self.folder} is too long a path for UNIX sockets: give a shorter --basetemp")
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError as error:
            raise SlurmMissingError(f"Slurm runs no jobs of a user without a name: {error}") from error
        write_configuration(self.folder, user)

    def _daemon(self, name: str, *arguments: object) -> None:
        with self._output(name).open("wb") as out:
            self._daemons[name] = subprocess.Popen(
                [str(shutil.which(name, path=search_path())), *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )

    def _output(self, name: str) -> Path:
        return self.folder / f"{name}.out"

    def _until(self, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + START_S
        while not ready():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > until:
                why = f"{dead[0]} ended" if dead else f"not ready after {START_S:g} s"
                output = "\n".join(tail(self._output(name), 10) for name in dead or self._daemons)
                raise SlurmMissingError(f"Slurm does not start here: {why}\n{output}")
            time.sleep(POLL_S)

    def processes(self) -> list[psutil.Process]:
        """What was started here and still runs: daemons, slurmstepd, jobs and their children."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and self._belongs(process):
                    found.update((process, *process.children(recursive=True)))
        return list(found)

    def _belongs(self, process: psutil.Process) -> bool:
        """Whether it has the variable of jobs or, as slurmstepd, which overwrites its variables, the log open."""
        if process.environ().get("SLURM_CONF") == str(self.conf):
            return True
        return any(Path(file.path).is_relative_to(self.folder) for file in process.open_files())

    def _run(self, *command: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, timeout=60, env=self.environment()
        )

    def _ask(self, *command: object) -> str:
        done = self._run(*command)
        if done.returncode:
            raise SlurmError(self._with_log(f"{' '.join(map(str, command))}: {done.stderr.strip()}"))
        return done.stdout

    def _with_log(self, message: str) -> str:
        return f"{message}\n{tail(self.folder / 'slurmctld.log')}"


def tail(path: Path, lines: int = 30) -> str:
    """The last lines of a log, nothing where there is none."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
