"""Small studies for the jobs of these tests: a copy each, run as processes, slowed down or held at known points."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import documented
from tests.cluster.slurm import FINISHED, Slurm
from tests.conftest import ROOT, Finished, command
from tests.integration.pipelines import digests, stores

LIMIT_S = 300.0
"""Far above what anything here takes."""
IMAGES = 9
"""Images of the study, each a chunk of its own."""
QUICKEST = ("masks.policy=supplied", "study.fractions=[1.0]", "study.seeds=[0]", "fusion.epochs=5")
JOBS = {
    "interface": "lo",
    "cores": "1",
    "memory": "2GB",
    "walltime": '"00:10:00"',
    "margin_s": "60",
    "stagger_s": "2",
}
"""Of `[cluster.jobs]`: as little as a worker takes."""
SMALL = {
    '"ib0"': '"lo"',
    'queue = "cpu"': 'queue = "main"',
    "cores = 8": "cores = 1",
    "processes = 8": "processes = 1",
    '"64GB"': '"2GB"',
    '"32GB"': '"2GB"',
}
"""What the documented configuration of a site has otherwise here."""

PRELUDE = """
import os, pathlib, time
from manifests.readers import ImageSource
read = ImageSource.read
def slow(self, row):
    folder = pathlib.Path(os.environ["HOLD"])
    (folder / f"{os.environ.get('SLURM_JOB_ID', 'none')}-{os.getpid()}").touch()
    with (folder / "reads").open("a") as stream:
        stream.write(row.image_id + "\\n")
    while (folder / "hold").exists() or (folder / f"hold.{row.image_id}").exists():
        time.sleep(0.05)
    time.sleep(float(os.environ["SLOW_S"]))
    return read(self, row)
ImageSource.read = slow
"""
"""Run at the start of every process that sees its folder on PYTHONPATH: says who reads, and waits."""


def sets(*settings: str, **jobs: object) -> tuple[str, ...]:
    """Options for the quickest study, further settings, and jobs that differ from `JOBS`."""
    asked = (f"cluster.jobs.{name}={value}" for name, value in {**JOBS, **jobs}.items())
    return options(*QUICKEST, *asked, *settings)


def options(*settings: str) -> tuple[str, ...]:
    """Options that override keys."""
    return tuple(part for setting in settings for part in ("--set", setting))


def until(ready: Callable[[], object], what: str, timeout_s: float = LIMIT_S) -> None:
    """Return once it is so; `what` says what was waited for in vain."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Study:
    """A work folder of its own, of which all jobs print into the folder above it."""

    slurm: Slurm
    folder: Path
    slow_s: float = 0.0
    """Every image takes so much longer to read."""

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def dataset(self) -> Path:
        return self.work / "phantoms"

    @property
    def gate(self) -> Path:
        """While this file is there, no image is read."""
        return self.folder / "held" / "hold"

    def environment(self) -> dict[str, str]:
        """Variables that lead to the Slurm here and load the prelude."""
        site = self.folder / "site"
        site.mkdir(exist_ok=True)
        self.gate.parent.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(PRELUDE)
        own = {"PYTHONPATH": f"{site}:{ROOT}", "HOLD": str(self.gate.parent), "SLOW_S": str(self.slow_s)}
        return {**self.slurm.environment(), **own}

    def documented(self, having: str, *settings: str, **replaced: object) -> list[str]:
        """The words after `pipeline` of a command of docs/cluster.md, on this study, on the CPU and with small jobs."""
        site = self.folder / "site.toml"
        site.write_text(documented.configuration('kind = "slurm"', SMALL))
        words = documented.command("pipeline", having, {"busi": "phantoms", "site.toml": site, **replaced})
        return [*words, "--workdir", str(self.work), *options(*QUICKEST, "cluster.device=cpu", *settings)]

    def running(self, *arguments: object) -> AbstractContextManager[Driver]:
        """`pipeline run --cluster slurm` as a process, which does not outlive the block."""
        return self.started("run", "--cluster", "slurm", "--workdir", self.work, *arguments)

    @contextmanager
    def started(self, *words: object) -> Iterator[Driver]:
        """`pipeline` as a process, which does not outlive the block."""
        out, err = self.folder / "stdout", self.folder / "stderr"
        line = command(*words)
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(line, stdout=stdout, stderr=stderr, cwd=ROOT, env=self.environment())
        try:
            yield Driver(process, out, err)
        finally:
            process.kill()
            process.wait()

    def submit(self, *arguments: object) -> list[str]:
        """`pipeline submit --send`; ids of the jobs in order."""
        return self.sent("submit", "--send", "--workdir", self.work, "--out", self.folder / "jobs", *arguments)

    def sent(self, *words: object) -> list[str]:
        """Run `pipeline`, which submits jobs; their ids in order."""
        done = subprocess.run(
            command(*words),
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
            cwd=ROOT,
            env=self.environment(),
        )
        assert done.returncode == 0, done.stderr
        return re.findall(r"^Submitted \S+ as job (\d+)$", done.stdout, re.MULTILINE)

    def readers(self) -> set[tuple[str, int]]:
        """Job and process of everyone who has begun to read an image."""
        names = (path.name.split("-") for path in self.gate.parent.glob("*-*"))
        return {(job, int(pid)) for job, pid in names if job != "none"}

    def reads(self) -> Counter[str]:
        """How often each image was begun to be read, by its id."""
        return Counter((self.gate.parent / "reads").read_text().split())

    def jobs(self) -> dict[str, Mapping[str, str]]:
        """What Slurm knows of each job of this study, by its id (`12`, `12_1`), in order of submission."""
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "jobs"],
            capture_output=True, text=True, timeout=60, check=True, env=self.slurm.environment(),
        ).stdout  # fmt: skip
        found = {}
        for line in shown.splitlines():
            fields = dict(re.findall(r"(\w+)=(\S*)", line))
            if Path(fields.get("StdOut", "/")).is_relative_to(self.folder):
                task = f"{fields['ArrayJobId']}_{fields['ArrayTaskId']}" if "ArrayJobId" in fields else ""
                found[task or fields["JobId"]] = fields
        return dict(sorted(found.items(), key=lambda item: int(item[1]["JobId"])))

    def left(self) -> list[str]:
        """Jobs that have not ended."""
        return [job for job, fields in self.jobs().items() if fields["JobState"] not in FINISHED]

    def end(self) -> None:
        """Cancel what has not ended."""
        for job in self.left():
            self.slurm.cancel(job)

    def committed(self) -> int:
        """Units that are committed so far."""
        return sum(map(len, stores(self.dataset).values()))

    def events(self) -> list[dict[str, Any]]:
        """Events of all runs, in order."""
        files = sorted((self.dataset / "runs").glob("*/events.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def check(self, expected: Mapping[str, Mapping[str, str]]) -> None:
        """Fail unless every file is as expected, no unit was blamed, no job is left and no key either."""
        assert digests(self.dataset) == expected
        assert [event for event in self.events() if event["event"] == "failed"] == []
        until(lambda: not self.left(), "all jobs have ended")
        assert keys_in(self.folder) == []


@dataclass(frozen=True)
class Driver:
    """A `pipeline run` that goes on."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    def until(self, ready: Callable[[], object], what: str) -> None:
        """Return once it is so, while the driver runs."""
        until(lambda: ready() or self.process.poll() is not None, what)
        assert self.process.poll() is None, f"{what}: ended before\n{self.err.read_text()}"

    def finish(self) -> Finished:
        """Wait for its end; no unit was blamed by name."""
        code = self.process.wait(LIMIT_S)
        return Finished(code, self.out.read_text(), self.err.read_text())


def keys_in(folder: Path) -> list[Path]:
    """Files below a folder that hold a private key."""
    found = []
    for parent, _, names in os.walk(folder):
        found += [path for name in names if b"PRIVATE KEY" in read(path := Path(parent, name))]
    return found


def read(path: Path) -> bytes:
    """What a file holds; nothing if it is gone meanwhile."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def stage_of(found: Mapping[str, dict[str, str]], stage: str) -> dict[str, dict[str, str]]:
    """The digests of one stage."""
    return {unit: files for unit, files in found.items() if unit.split("/")[0] == stage}
