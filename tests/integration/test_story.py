"""One data set's life, step by step; after each step the store holds, digest by digest, what it must.

docs/reliability.md tells the same story in commands.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from manifests.drops import load_drops, load_rows
from manifests.layout import DatasetPaths
from manifests.types import Split
from pipeline.phantoms import make_phantoms
from tests.conftest import ROOT, Cli, command
from tests.integration.pipelines import QUICK, committed, digests
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

Digests = dict[str, dict[str, str]]
OTHER_POLICY = (*QUICK, "--set", "masks.policy=none")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second delivery: three images a class."""
    folder = tmp_path_factory.mktemp("more")
    make_phantoms(folder, {"train": 2, "test": 1}, seed=99)
    return folder


def add(study: Study, source: Path) -> None:
    labels = source / "labels.csv"
    done = study.cli(
        *("ingest", source, "--dataset", "phantoms", "--labels", labels, "--chunk-items", 4, "--workdir", study.work)
    )
    assert done.code == 0, done.err


def call(study: Study, name: str, *arguments: object) -> tuple[int, str]:
    done = study.cli(name, "--workdir", study.work, *arguments)
    return done.code, done.out + done.err


def a_test_image(study: Study) -> str:
    """image_id of a test image of the first drop that shares its chunk with others."""
    paths = DatasetPaths(study.dataset)
    rows = load_rows(paths, load_drops(paths)[0])
    return next(row.image_id for row in rows if row.split is Split.TEST and row.row < 16)


def reference(cli: Cli, work: Path, sources: tuple[Path, ...], withdrawn: str = "") -> Digests:
    """Digests of a data set that got all this before its first and only run."""
    study = Study(cli, work, sources[0])
    for source in sources:
        add(study, source)
    if withdrawn:
        assert call(study, "withdraw", "--image", withdrawn, "--reason", "consent revoked")[0] == 0
    assert study.run().code == 0
    return digests(study.dataset)


def killed_in_the_middle(study: Study) -> None:
    """Start a run and kill its whole process group once a chunk of embeddings is committed."""
    words = command("run", "--workdir", study.work, "--cluster", "local", "--workers", 2, *QUICK)
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while process.poll() is None and not list(study.dataset.glob("stages/embeddings/*/*/commits/*")):
        time.sleep(0.02)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_data_set_lives_through_all_of_it(cli: Cli, phantom_folder: Path, more: Path, tmp_path: Path) -> None:
    study = Study(cli, tmp_path / "work", phantom_folder)
    undisturbed = reference(cli, tmp_path / "one", (phantom_folder,))

    # Ingest, run, kill, resume.
    add(study, phantom_folder)
    killed_in_the_middle(study)
    partial = digests(study.dataset)
    assert 0 < len(partial) < len(undisturbed)
    assert partial.items() <= undisturbed.items(), "what a killed run committed is right already"
    assert study.run().code == 0
    assert digests(study.dataset) == undisturbed

    # A new drop: its own chunks alone are computed; cells are fitted anew beside the old ones.
    add(study, more)
    assert study.run().code == 0
    assert {unit.split("/")[1] for unit in committed(study.dataset) if unit.startswith(("masks", "embed"))} == {
        "drop-002"
    }
    both = reference(cli, tmp_path / "two", (phantom_folder, more))
    assert digests(study.dataset) == undisturbed | both

    # Another policy, and back: nothing old is touched, nothing is computed twice.
    assert study.run(settings=OTHER_POLICY).code == 0
    assert (undisturbed | both).items() <= digests(study.dataset).items()
    whole = digests(study.dataset)
    assert study.run().code == 0
    assert committed(study.dataset) == []

    # A flipped bit: verify names the shard, repair and a run bring back the very same bytes.
    shard = max((study.dataset / "stages" / "masks").glob("*/drop-001/data.zarr/masked_image/c.1.*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    code, said = call(study, "verify")
    assert (code, shard.relative_to(study.dataset).as_posix().split("/", 4)[4] in said) == (4, True)
    assert call(study, "repair", *QUICK)[0] == 0
    # The shard can be of either policy: each configuration computes its own.
    assert study.run().code == 0
    assert study.run(settings=OTHER_POLICY).code == 0
    assert call(study, "verify")[0] == 0
    assert digests(study.dataset) == whole

    # A withdrawal: afterwards the store is that of a data set which had withdrawn the image before its first run.
    gone = a_test_image(study)
    assert call(study, "withdraw", "--image", gone, "--reason", "consent revoked")[0] == 0
    assert digests(study.dataset) == whole, "a withdrawal alone deletes nothing"
    assert call(study, "gc", "--delete")[0] == 0
    assert study.run().code == 0
    assert study.run(settings=OTHER_POLICY).code == 0
    without = reference(cli, tmp_path / "three", (phantom_folder, more), withdrawn=gone)
    left = digests(study.dataset)
    assert without.items() <= left.items()
    assert not [f for f in study.dataset.rglob("*.csv") if "drops" not in f.parts and gone in f.read_text()]
    assert call(study, "verify")[0] == 0
