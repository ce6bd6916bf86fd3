"""One real Slurm for all tests of this folder, and one study that they copy."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.phantoms import make_phantoms
from tests.cluster.slurm import Slurm, SlurmMissingError
from tests.cluster.studies import Study, sets
from tests.conftest import Cli, unavailable
from tests.integration.pipelines import digests

Digests = dict[str, dict[str, str]]
NewStudy = Callable[..., Study]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of one node, started once; skips with a word where it cannot be, or fails if it must."""
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
    except SlurmMissingError as error:
        unavailable(str(error))
    try:
        yield cluster
    finally:
        cluster.stop()


def ingest(cli: Cli, root: Path, images_per_class: dict[str, int]) -> Path:
    """A new work folder that knows phantoms of three classes, in chunks of one."""
    make_phantoms(root / "source", images_per_class, seed=7)
    labels = ("--labels", root / "source" / "labels.csv", "--chunk-items", 1)
    done = cli("ingest", root / "source", "--dataset", "phantoms", "--workdir", root / "work", *labels)
    assert done.code == 0, done.err
    return root / "work"


@pytest.fixture(scope="session")
def ingested(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder that knows nine phantoms, in chunks of one, and has computed nothing; never written to."""
    return ingest(cli, tmp_path_factory.mktemp("ingested"), {"train": 2, "test": 1})


@pytest.fixture(scope="session")
def undisturbed(cli: Cli, ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Digests:
    """Digests of the whole study, run in one process."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    shutil.copytree(ingested, work)
    done = cli("run", "--workdir", work, "--cluster", "inline", *sets())
    assert done.code == 0, done.err
    return digests(work / "phantoms")


@pytest.fixture(scope="session")
def new_study(slurm: Slurm, ingested: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewStudy]:
    """Make a study that only one test works on; its jobs do not outlive the tests."""
    made: list[Study] = []

    def make(slow_s: float = 0.0, *, held: bool = False, work: Path | None = None) -> Study:
        study = Study(slurm, tmp_path_factory.mktemp("study"), slow_s)
        made.append(study)
        shutil.copytree(work or ingested, study.work)
        study.gate.parent.mkdir()
        if held:
            study.gate.touch()
        return study

    yield make
    for study in made:
        study.end()
