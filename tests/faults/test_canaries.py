"""Workers whose model makes something else of the canary: they are sent away, and nothing of theirs is committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.faults.test_orchestration import faulty
from tests.integration.pipelines import QUICK, committed, digests, events
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

Digests = dict[str, dict[str, str]]
ODD = """
    import os
    from pathlib import Path
    from pipeline import canary
    from stages.embeddings.stage import Embeddings

    see, name, site = Embeddings.canary, canary.device_name, Path(__file__).parent

    def is_odd():
        '''Whether this is the one odd process; `who` says which one that is: the first, the second, or all of them.'''
        who = (site / "who").read_text()
        try:
            (site / "first").touch(exist_ok=False)
            (site / "first").write_text(str(os.getpid()))
        except FileExistsError:
            pass
        is_first = (site / "first").read_text() in ("", str(os.getpid()))
        return who == "all" or is_first == (who == "first")

    def perturbed(self):
        vector = see(self)
        return 1.05 * vector if is_odd() else vector

    Embeddings.canary = perturbed
    canary.device_name = lambda device: "odd processor" if is_odd() else "sound processor"
"""
"""Some processes see the canary otherwise, and say that their processor is another."""


def odd(folder: Path, who: str) -> dict[str, str]:
    """Environment in which some processes are odd."""
    env = faulty(folder, ODD)
    (folder / "who").write_text(who)
    return env


@pytest.fixture(scope="module")
def fresh(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study of nine chunks whose masks are committed."""
    study = Study(cli, tmp_path_factory.mktemp("canaries") / "work", phantom_folder)
    assert study.ingest("--chunk-items", 2).code == 0
    assert study.run("--stage", "masks").code == 0
    return study


@pytest.fixture(scope="module")
def undisturbed(fresh: Study) -> Digests:
    """Digests of all embeddings, by sound processes."""
    return fresh.undisturbed("--stage", "embeddings")


@pytest.fixture
def study(fresh: Study, tmp_path: Path) -> Study:
    """A copy of the study with its masks."""
    return fresh.copied(tmp_path / "work")


def on_two_workers(study: Study) -> tuple[object, ...]:
    return (
        "run", "--workdir", study.work, "--stage", "embeddings", "--cluster", "local", "--workers", 2, *QUICK,
        "--set", "cluster.retries=0", "--json",
    )  # fmt: skip


@pytest.mark.parametrize("who", ["first", "second"])
def test_worker_that_sees_the_canary_otherwise_is_refused_and_the_other_does_its_units(
    study: Study, tmp_path: Path, undisturbed: Digests, who: str
) -> None:
    done = study.cli(*on_two_workers(study), env=odd(tmp_path / "site", who))
    assert done.code == 0, done.err
    assert done.json["failed_units"] == {}
    assert "a worker is refused: embeddings on " in done.err
    assert "odd processor" in done.err
    assert "sound processor" in done.err
    assert digests(study.dataset) == undisturbed
    pids = {event["pid"] for event in events(study.dataset) if event["event"] == "committed"}
    assert len(pids) == 1


@pytest.mark.parametrize("cluster", ["local", "inline"])
def test_run_whose_workers_all_see_another_canary_is_refused_and_commits_nothing(
    study: Study, tmp_path: Path, cluster: str
) -> None:
    assert study.run("--stage", "embeddings", "--limit", 1).code == 0
    assert committed(study.dataset) == ["embeddings[supplied]/drop-001/000000"]
    before = digests(study.dataset)
    arguments = [cluster if argument == "local" else argument for argument in on_two_workers(study)]
    done = study.cli(*arguments, env=odd(tmp_path / "site", "all"))
    assert done.code == 4, done.err
    assert "embeddings on odd processor sees the canary image otherwise than " in done.err
    assert "what to do: Use machines and versions that agree, or another work folder" in done.err
    assert "Traceback" not in done.err
    assert digests(study.dataset) == before
    assert committed(study.dataset) == []


def test_run_goes_on_where_the_refused_one_stopped(study: Study, tmp_path: Path, undisturbed: Digests) -> None:
    assert study.run("--stage", "embeddings", "--limit", 1).code == 0
    assert study.cli(*on_two_workers(study), env=odd(tmp_path / "site", "all")).code == 4
    done = study.cli(*on_two_workers(study))
    assert (done.code, done.json["committed"]) == (0, {"embeddings[supplied]": 8}), done.err
    assert digests(study.dataset) == undisturbed
