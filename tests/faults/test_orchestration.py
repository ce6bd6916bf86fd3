"""Runs whose units, workers, drivers or surroundings misbehave, and ingests that are killed: results stay the same."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import dask
import pytest
from PIL import Image

from manifests import drops, pseudonyms
from manifests.commits import committed_units, content_digest, publish_chunk, read_commit, read_rows, retire
from manifests.drops import load_drops
from manifests.ingest import IngestOptions, ingest
from manifests.integrity import gc, verify
from manifests.layout import DatasetPaths
from pipeline import dask_cluster
from pipeline.cluster import Outcome, Stopping
from pipeline.config import ClusterConfig
from pipeline.dask_sites import local_cluster
from pipeline.execute import UnitReport, UnitTask
from pipeline.plan import PlannedUnit
from pipeline.runner import Runner, RunOptions
from tests.conftest import ROOT, Cli, command
from tests.faults.test_torture import die_at, killed, publish_rest
from tests.integration.pipelines import QUICK, add_row, committed, copy_source, digests, events
from tests.integration.test_run import Study
from tests.stores import chunks_of, open_store, result
from tests.unit.pipeline.committed_study import complete, ingested

pytestmark = pytest.mark.slow

WAIT_S = 60.0
"""Longest time that a test waits for a process to reach a point."""


def faulty(folder: Path, code: str) -> dict[str, str]:
    """Environment in which every Python process, workers of a run included, first runs some code."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(dedent(code))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def started(env: Mapping[str, str], *arguments: object) -> subprocess.Popen[str]:
    """A `pipeline` process that a test signals while it is at work."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command(*arguments), cwd=ROOT, env={**os.environ, **env}, stdout=pipe, stderr=pipe, text=True
    )


def wait_until_there(file: Path, process: subprocess.Popen[str]) -> None:
    """Return once a process has written a file; a process that ended without it has failed the test."""
    end = time.monotonic() + WAIT_S
    while not file.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def fresh(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of five chunks that was ingested and never run."""
    work = tmp_path_factory.mktemp("orchestration") / "work"
    study = Study(cli, work, phantom_folder)
    assert study.ingest("--chunk-items", 4).code == 0
    return study


@pytest.fixture(scope="module")
def undisturbed(fresh: Study) -> dict[str, dict[str, str]]:
    """Digests of a whole quick run of that study."""
    return fresh.undisturbed()


@pytest.fixture
def study(fresh: Study, tmp_path: Path) -> Study:
    """A copy of the study that was never run."""
    return fresh.copied(tmp_path / "work")


def of_masks(found: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Those digests that the masks stage alone makes."""
    return {unit: files for unit, files in found.items() if unit.startswith("masks/")}


def masks_of(study: Study) -> Path:
    """Store of the masks."""
    return next((study.dataset / "stages" / "masks").glob("*/drop-001"))


def attempt(task: UnitTask) -> UnitReport:
    """A unit almost without work; `source` says how it misbehaves: always, or the first time that it is tried."""
    folder = Path(task.dataset_root)
    if task.source == "raise":
        raise RuntimeError("unforeseen")
    if task.source == "hang" and first_time(folder):
        os.kill(os.getpid(), signal.SIGSTOP)
    if not task.source.startswith("publish"):
        return UnitReport(won=True, pid=os.getpid())
    store = open_store(folder / "s")
    chunk = chunks_of(store)[task.planned.position]
    won = publish_chunk(store, chunk, result(chunk, chunk.index + 1))
    if task.source == "publish and die" and first_time(folder):
        os.kill(os.getpid(), signal.SIGKILL)
    return UnitReport(won=won, pid=os.getpid())


def first_time(folder: Path) -> bool:
    """True for the first process that asks, whose id is then in the file `first`."""
    if (folder / "first").exists():
        return False
    (folder / "first").write_text(str(os.getpid()))
    return True


def task(folder: Path, number: int, kind: str = "") -> UnitTask:
    planned = PlannedUnit("masks", f"{number:06d}", "new", number)
    return UnitTask(str(folder), "{}", kind, planned, "", "cpu", ("drop-001",), "run")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers run `attempt` instead of real units."""
    monkeypatch.setattr(dask_cluster, "attempt_unit", attempt)


def outcomes(folder: Path, tasks: Sequence[UnitTask], workers: int = 1) -> dict[int, UnitReport | Exception]:
    """What became of tasks under Dask, by position."""
    with local_cluster(ClusterConfig(), workers, str(folder / "scratch")) as cluster:
        return {t.planned.position: found for t, found in cluster.run(tasks, lambda: None)}


@pytest.mark.usefixtures("attempts")
def test_exception_in_one_unit_of_a_thousand_ends_that_unit_alone(tmp_path: Path) -> None:
    found = outcomes(tmp_path, [task(tmp_path, i, "raise" if i == 617 else "") for i in range(1000)])
    assert [i for i, outcome in found.items() if not isinstance(outcome, UnitReport)] == [617]
    assert isinstance(found[617], RuntimeError)
    assert str(found[617]) == "unforeseen"
    assert len(found) == 1000


BROKEN = """
    from stages.masks.stage import Masks

    process = Masks.process

    def broken(self, rows, *more):
        if rows[0].row == 8:
            raise RuntimeError("unforeseen")
        return process(self, rows, *more)

    Masks.process = broken
"""


@pytest.mark.parametrize("cluster", ["inline", "local"])
def test_run_with_one_broken_unit_exits_3_and_the_next_run_completes_it(
    study: Study, tmp_path: Path, undisturbed: dict[str, dict[str, str]], cluster: str
) -> None:
    run = ("run", "--workdir", study.work, "--stage", "masks", "--cluster", cluster, "--workers", 2, *QUICK)
    done = study.cli(*run, "--json", env=faulty(tmp_path / "site", BROKEN))
    broken = "masks[supplied]/drop-001/000002"
    assert (done.code, done.json["exit_code"]) == (3, 3), done.err
    assert [e["unit"] for e in events(study.dataset) if e["event"] == "failed"] == [broken]
    assert done.json["failed_units"] == {broken: "RuntimeError: unforeseen"}
    assert done.json["committed"] == {"masks[supplied]": 4}
    assert committed_units(masks_of(study)) == ("000000", "000001", "000003", "000004")

    assert study.run("--stage", "masks").code == 0
    assert committed(study.dataset) == [broken]
    assert digests(study.dataset) == of_masks(undisturbed)


def test_stages_after_a_broken_unit_go_on_without_it_and_cells_wait(study: Study, tmp_path: Path) -> None:
    env = faulty(tmp_path / "site", BROKEN)
    done = study.cli("run", "--workdir", study.work, "--cluster", "inline", *QUICK, "--json", env=env)
    assert done.code == 3, done.err
    assert done.json["committed"] == {"masks[supplied]": 4, "embeddings[supplied]": 4, "texts": 1}
    assert set(done.json["waiting"]) == {"embeddings[supplied]", "fusion[supplied]", "probes[supplied]"}
    assert done.json["report"] is None


def ingest_phantoms(root: Path, source: Path) -> None:
    ingest(DatasetPaths(root), source, IngestOptions(dataset="phantoms", labels=source / "labels.csv", chunk_items=4))


def ingest_and_die(root: Path, source: Path, name: str, nth: int) -> None:
    """Ingest, and be killed instead of the nth call of a function of `manifests.drops`; a write is left half done."""
    function, calls = getattr(drops, name), []

    def deadly(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == nth:
            if name == "write_synced":
                arguments[0].write_bytes(arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        function(*arguments)

    setattr(drops, name, deadly)
    ingest_phantoms(root, source)


def ingest_and_die_at(root: Path, source: Path, step: str) -> None:
    die_at(step, 1)
    ingest_phantoms(root, source)


def recorded(root: Path) -> dict[str, object]:
    """Every file of a data set but for leftovers: bytes by path, and the fields of drop.json without time and seal."""
    found: dict[str, object] = {}
    for file in (path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root).as_posix()
        if ".incoming-" not in name and not name.endswith(".partial"):
            found[name] = json.loads(file.read_bytes()) if file.name == "drop.json" else file.read_bytes()
    return {
        name: {**fields, "created": "", "sha256": ""} if isinstance(fields, dict) else fields
        for name, fields in found.items()
    }


STEPS_BEFORE_THE_RENAME = [
    *[("write_synced", n) for n in (1, 2, 3, 4)],
    ("sync_folder", 2),
    ("sync_folder", 3),
    ("_publish", 1),
]


@pytest.mark.parametrize(("name", "nth"), STEPS_BEFORE_THE_RENAME)
def test_killed_ingest_leaves_no_drop_and_the_next_one_is_as_if_undisturbed(
    phantom_folder: Path, tmp_path: Path, name: str, nth: int
) -> None:
    killed(ingest_and_die, tmp_path / "a", phantom_folder, name, nth)
    assert load_drops(DatasetPaths(tmp_path / "a")) == ()
    assert recorded(tmp_path / "a") == {}
    assert len(list((tmp_path / "a" / "drops").glob(".incoming-*"))) == 1
    for folder in ("a", "b"):
        ingest_phantoms(tmp_path / folder, phantom_folder)
    assert recorded(tmp_path / "a") == recorded(tmp_path / "b")


def test_ingest_killed_after_its_rename_has_made_the_whole_drop(phantom_folder: Path, tmp_path: Path) -> None:
    killed(ingest_and_die, tmp_path / "a", phantom_folder, "sync_folder", 4)
    made = recorded(tmp_path / "a")
    for folder in ("a", "b"):
        ingest_phantoms(tmp_path / folder, phantom_folder)
    assert made == recorded(tmp_path / "a") == recorded(tmp_path / "b")


def test_ingest_killed_before_it_notes_renamed_files_is_completed_by_the_next(
    phantom_folder: Path, tmp_path: Path
) -> None:
    source = copy_source(phantom_folder, tmp_path / "source")
    for folder in ("a", "b"):
        ingest_phantoms(tmp_path / folder, source)
    old = source / "images" / "train" / "round" / "000.png"
    Image.open(old).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(old.with_name("new.png"))
    add_row(source, old.with_name("new.png"), "round", "train", "")
    labels = (source / "labels.csv").read_text().replace("images/train/round/000.png", "images/train/round/moved.png")
    (source / "labels.csv").write_text(labels)
    old.rename(old.with_name("moved.png"))

    killed(ingest_and_die_at, tmp_path / "a", source, "partial")
    assert not DatasetPaths(tmp_path / "a").locations.exists()
    for folder in ("a", "b"):
        ingest_phantoms(tmp_path / folder, source)
    assert recorded(tmp_path / "a") == recorded(tmp_path / "b")
    assert len(load_drops(DatasetPaths(tmp_path / "a"))) == 2


def make_salt_and_die(file: Path) -> None:
    os.environ[pseudonyms.SALT_VARIABLE] = str(file)
    Path.hardlink_to = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    pseudonyms.read_salt()


def test_kill_while_the_salt_is_made_leaves_none_and_the_next_ingest_makes_it(
    cli: Cli, phantom_folder: Path, tmp_path: Path
) -> None:
    salt = tmp_path / "salt"
    killed(make_salt_and_die, salt)
    assert not salt.exists()
    labels = phantom_folder / "labels.csv"
    arguments = ("ingest", phantom_folder, "--dataset", "phantoms", "--labels", labels, "--workdir", tmp_path / "work")
    assert cli(*arguments, env={"MEDFOCUS_SALT_FILE": str(salt)}).code == 0
    assert (len(salt.read_text().strip()), salt.stat().st_mode & 0o777) == (64, 0o600)


def test_gc_removes_what_a_killed_ingest_left_and_nothing_else(cli: Cli, phantom_folder: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "phantoms"
    killed(ingest_and_die, dataset, phantom_folder, "_publish", 1)
    ingest_phantoms(dataset, phantom_folder)
    before = recorded(dataset)
    listed = cli("gc", "--days", 0, "--workdir", tmp_path, "--json").json["leftovers"]
    assert [Path(name).parent.as_posix() for name in listed] == ["drops"]
    assert cli("gc", "--days", 7, "--delete", "--workdir", tmp_path, "--json").json["leftovers"] == []
    assert cli("gc", "--days", 0, "--delete", "--workdir", tmp_path).code == 0
    assert list(dataset.rglob(".incoming-*")) == []
    assert recorded(dataset) == before


OPEN_TO_ALL = """
    scheduler-address: tcp://0.0.0.0:8786
    distributed:
      scheduler: {host: 0.0.0.0, dashboard: {address: "0.0.0.0:0"}}
      worker: {host: 0.0.0.0, listen-address: "tcp://0.0.0.0:0", dashboard: {address: "0.0.0.0:0"}}
      nanny: {host: 0.0.0.0, listen-address: "tcp://0.0.0.0:0"}
"""
ANOTHER_CLUSTER = """
    distributed:
      scheduler: {contact-address: "tcp://0.0.0.0:8786"}
"""

LISTENERS = """
    import json, sys
    import psutil
    from pipeline.config import ClusterConfig
    from pipeline.dask_sites import local_cluster

    with local_cluster(ClusterConfig(), 2, sys.argv[1]):
        own = psutil.Process()
        found = {p.pid: [c.laddr.ip for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
                 for p in (own, *own.children(recursive=True))}
    print(json.dumps(found))
"""


@pytest.mark.parametrize("dask_yaml", ["", OPEN_TO_ALL, ANOTHER_CLUSTER], ids=["none", "open", "another cluster"])
def test_no_socket_of_the_local_cluster_can_be_reached_from_outside(tmp_path: Path, dask_yaml: str) -> None:
    (tmp_path / "dask.yaml").write_text(dedent(dask_yaml))
    env = {**os.environ, "DASK_CONFIG": str(tmp_path), "DASK_DISTRIBUTED__SCHEDULER__HOST": "0.0.0.0"}
    done = subprocess.run(
        [sys.executable, "-c", dedent(LISTENERS), str(tmp_path / "scratch")],
        capture_output=True, text=True, timeout=WAIT_S, check=False, cwd=ROOT, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    listening = [ip for ips in json.loads(done.stdout).values() for ip in ips]
    assert set(listening) == {"127.0.0.1"}
    assert len(listening) >= 5, "a scheduler, its dashboard or a port of nannies and workers was not seen"


@pytest.fixture
def undisturbed_store(tmp_path: Path) -> str:
    """Content digest of a small store that nothing happened to."""
    publish_rest(tmp_path / "undisturbed")
    return content_digest(tmp_path / "undisturbed", ["000000", "000001", "000002"])


@pytest.mark.usefixtures("attempts")
def test_unit_of_a_worker_that_hangs_is_done_by_another(tmp_path: Path) -> None:
    tasks = [task(tmp_path, i, "hang" if i == 0 else "") for i in range(6)]
    with dask.config.set({"distributed.scheduler.worker-ttl": "1s"}):
        found = outcomes(tmp_path, tasks, workers=2)
    asleep = int((tmp_path / "first").read_text())
    assert all(isinstance(outcome, UnitReport) and outcome.pid != asleep for outcome in found.values())
    assert sorted(found) == list(range(6))
    with pytest.raises(ProcessLookupError):
        os.kill(asleep, 0)


@pytest.mark.usefixtures("attempts")
def test_unit_whose_worker_dies_after_its_commit_is_tried_again_and_changes_nothing(
    tmp_path: Path, undisturbed_store: str
) -> None:
    open_store(tmp_path / "s")
    kinds = ("publish", "publish and die", "publish")
    found = outcomes(tmp_path, [task(tmp_path, i, kind) for i, kind in enumerate(kinds)])
    assert {i: o.won for i, o in found.items() if isinstance(o, UnitReport)} == {0: True, 1: False, 2: True}
    store = open_store(tmp_path / "s")
    assert content_digest(store.root, ["000000", "000001", "000002"]) == undisturbed_store
    assert [len(read_rows(store, chunk)["status"]) for chunk in chunks_of(store)] == [4, 4, 2]
    assert verify(store.root) == []


DIES_AFTER_ITS_COMMIT = """
    import os, signal
    from pathlib import Path
    from pipeline import execute

    publish, marker = execute.publish_chunk, Path(__file__).with_name("died")

    def deadly(store, chunk, *more):
        won = publish(store, chunk, *more)
        if chunk.index == 1 and not marker.exists():
            marker.write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return won

    execute.publish_chunk = deadly
"""


def test_run_whose_worker_dies_after_a_commit_counts_every_unit_once(
    study: Study, tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    run = ("run", "--workdir", study.work, "--stage", "masks", "--cluster", "local", "--workers", 2, *QUICK)
    done = study.cli(*run, "--json", env=faulty(tmp_path / "site", DIES_AFTER_ITS_COMMIT))
    assert (tmp_path / "site" / "died").exists()
    assert done.code == 0, done.err
    assert (done.json["committed"], done.json["elsewhere"]) == ({"masks[supplied]": 5}, {})
    assert done.json["images"] == {"masks[supplied]": {"ok": 18}}
    assert digests(study.dataset) == of_masks(undisturbed)


JUMPING_CLOCK = """
    import datetime, itertools, time

    now, jumps = time.time, itertools.cycle((0, 90_000, -200_000, 7, -3_000))
    time.time = lambda: now() + next(jumps)
    time.time_ns = lambda: int(time.time() * 1e9)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.fromtimestamp(time.time(), tz)

    # C code takes the size of datetime for granted, so that only our own modules can have another.
    from manifests import ingest, records, runs
    from pipeline import results

    for module in (ingest, records, runs, results):
        module.datetime = Jumping
"""


@pytest.mark.parametrize("surroundings", ["another place", "a clock that jumps"])
def test_surroundings_change_no_result(
    study: Study, phantom_folder: Path, tmp_path: Path, undisturbed: dict[str, dict[str, str]], surroundings: str
) -> None:
    env = {"TZ": "XYZ-9:30", "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    if surroundings == "a clock that jumps":
        env = faulty(tmp_path / "site", JUMPING_CLOCK)
    work, labels = tmp_path / "elsewhere", phantom_folder / "labels.csv"
    names = ("--dataset", "phantoms", "--labels", labels, "--chunk-items", 4)
    for arguments in (("ingest", phantom_folder, *names), ("run", "--cluster", "inline", *QUICK)):
        done = subprocess.run(
            command(*arguments, "--workdir", work),
            capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, env={**os.environ, **env}, umask=0o077,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert recorded(work / "phantoms" / "drops") == recorded(study.dataset / "drops")
    assert digests(work / "phantoms") == undisturbed


def test_files_from_the_future_are_harmless_and_kept_until_they_are_old(tmp_path: Path, undisturbed_store: str) -> None:
    root, tomorrow = tmp_path / "undisturbed", time.time() + 90_000
    left = root / "staging" / "000001-left"
    left.mkdir()
    for path in (root, *root.rglob("*")):
        os.utime(path, (tomorrow, tomorrow))
    assert gc(root, 0, dry_run=False) == []
    assert publish_rest(root) == []
    os.utime(left, (tomorrow - 180_000, tomorrow - 180_000))
    assert gc(root, 3600, dry_run=False) == [left]
    assert content_digest(root, ["000000", "000001", "000002"]) == undisturbed_store
    assert verify(root) == []


@pytest.mark.usefixtures("attempts")
def test_each_of_thousands_of_units_costs_a_small_part_of_a_second(tmp_path: Path) -> None:
    n = 2000
    with local_cluster(ClusterConfig(), 1, str(tmp_path / "scratch")) as cluster:
        begun, computed = time.monotonic(), time.process_time()
        assert sum(1 for _ in cluster.run([task(tmp_path, i) for i in range(n)], lambda: None)) == n
        each_s, computed_s = (time.monotonic() - begun) / n, (time.process_time() - computed) / n
    assert computed_s < 0.05, "driver and scheduler cost more than 5 % of a unit that takes a second"
    assert each_s < 0.2, "units wait for each other, and not only for a busy machine"


class Recorder:
    """A cluster that keeps the tasks that it is given and runs none."""

    workers = 1

    def __init__(self) -> None:
        self.tasks: list[UnitTask] = []

    def run(self, tasks: Sequence[UnitTask], stopping: Stopping) -> Iterator[Outcome]:
        self.tasks += tasks
        yield from ()


def test_tasks_carry_names_and_numbers_never_arrays_or_weights(
    phantom_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()

    @contextmanager
    def recording(*_: object, **__: object) -> Iterator[Recorder]:
        yield recorder

    monkeypatch.setattr("pipeline.cluster.open_cluster", recording)
    workspace = ingested(tmp_path, phantom_folder)
    Runner(workspace.paths, workspace.config, RunOptions()).run()
    complete(workspace, "masks[supplied]", "masks[none]", "embeddings[supplied]", "embeddings[none]", "texts")
    Runner(workspace.paths, workspace.config, RunOptions(stage="fusion")).run()
    assert {t.planned.node.split("[")[0] for t in recorder.tasks} == {"masks", "texts", "fusion"}
    pickled = [pickle.dumps(t) for t in recorder.tasks]
    assert max(map(len, pickled)) < 16_384
    foreign = (b"numpy.", b"multiarray", b"torch.", b"Tensor")
    assert not [data for data in pickled if any(name in data for name in foreign)]


def entries(root: Path, n_chunks: int, chunk_items: int) -> int:
    """Files and folders of a store with every chunk committed."""
    store = open_store(root, n_items=n_chunks * chunk_items, chunk_items=chunk_items)
    for chunk in chunks_of(store):
        publish_chunk(store, chunk, result(chunk, 1))
    return sum(1 for _ in root.rglob("*"))


def test_number_of_files_grows_with_chunks_and_not_with_images(tmp_path: Path) -> None:
    few, more, most = (entries(tmp_path / f"{n}", n, 4) for n in (5, 10, 20))
    assert entries(tmp_path / "larger", 10, 32) == more
    per_chunk = 4 + 2  # a shard of each array, and the folder of the commit with its record
    assert (more - few, most - more) == (5 * per_chunk, 10 * per_chunk)


SLOW = """
    import time
    from pathlib import Path
    from stages.masks.stage import Masks

    process = Masks.process

    def slow(self, rows, *more):
        if rows[0].row == 4:
            Path(__file__).with_name("begun").write_text("")
            time.sleep(3)
        return process(self, rows, *more)

    Masks.process = slow
"""


def test_signal_to_an_inline_run_lets_the_unit_in_flight_finish_and_starts_no_other(
    study: Study, tmp_path: Path, undisturbed: dict[str, dict[str, str]]
) -> None:
    run = ("run", "--workdir", study.work, "--stage", "masks", "--cluster", "inline", *QUICK)
    process = started(faulty(tmp_path / "site", SLOW), *run, "--set", "cluster.grace_s=0")
    wait_until_there(tmp_path / "site" / "begun", process)
    process.terminate()
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 75, err
    assert "Stopped by a signal after 2 units; run the same command again" in out
    # Nothing can interrupt a unit in the driver's own process: it is committed even after the grace.
    assert committed_units(masks_of(study)) == ("000000", "000001")
    assert study.cli(*run).code == 0
    assert committed(study.dataset) == [f"masks[supplied]/drop-001/{unit}" for unit in ("000002", "000003", "000004")]
    assert digests(study.dataset) == of_masks(undisturbed)


def test_each_unit_has_one_winner_between_two_drivers(study: Study, undisturbed: dict[str, dict[str, str]]) -> None:
    run = ("run", "--workdir", study.work, "--stage", "embeddings", "--cluster", "inline", *QUICK, "--json")
    told = []
    for process in [started({}, *run) for _ in "ab"]:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        told.append(json.loads(out.strip().splitlines()[-1]))
    assert sum(count for done in told for count in done["committed"].values()) == 10
    found = digests(study.dataset)
    assert len(found) == 10
    assert found.items() <= undisturbed.items()


SLEEPS = """
    import os, signal
    from pathlib import Path
    from manifests import disk

    def checkpoint(step):
        asleep = Path(__file__).with_name("asleep")
        if step == os.environ["SLEEP_AT"] and not asleep.exists():
            asleep.write_text("")
            os.kill(os.getpid(), signal.SIGSTOP)

    disk.checkpoint = checkpoint
"""


@pytest.mark.parametrize(("step", "won"), [("staged", 0), ("renamed", 1)])
def test_driver_that_wakes_after_its_unit_was_retired_and_computed_anew_harms_nothing(
    study: Study, tmp_path: Path, undisturbed: dict[str, dict[str, str]], step: str, won: int
) -> None:
    run = ("run", "--workdir", study.work, "--stage", "masks", "--cluster", "inline", *QUICK, "--json")
    sleeper = started({**faulty(tmp_path / "site", SLEEPS), "SLEEP_AT": step}, *run)
    wait_until_there(tmp_path / "site" / "asleep", sleeper)
    assert retire(masks_of(study), "000000") is bool(won)
    assert study.cli(*run).json["committed"] == {"masks[supplied]": 5}
    newer = [read_commit(masks_of(study), f"{i:06d}") for i in range(5)]
    sleeper.send_signal(signal.SIGCONT)
    out, err = sleeper.communicate(timeout=WAIT_S)
    assert sleeper.returncode == 0, err
    told = json.loads(out.strip().splitlines()[-1])
    assert (sum(told["committed"].values()), sum(told["elsewhere"].values())) == (won, 5 - won)
    assert [read_commit(masks_of(study), f"{i:06d}") for i in range(5)] == newer
    assert digests(study.dataset) == of_masks(undisturbed)
    assert verify(masks_of(study)) == []
