"""Exports by the command line: killed with -9 and resumed, refused, and without a private word."""

from __future__ import annotations

import getpass
import json
import platform
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli, Finished
from tests.integration.pipelines import QUICK, copy_source
from tests.integration.test_run import Study

pytestmark = pytest.mark.slow

PRELUDE = """
import os, signal
from manifests import commits, disk
place, _, passes = os.environ["KILL_AT"].partition(":")
seen = 0
def pass_by(name):
    global seen
    seen += name == place
    if seen == int(passes):
        os.kill(os.getpid(), signal.SIGKILL)
disk.checkpoint = pass_by
read = commits.read_rows
def read_rows(*arguments):
    pass_by("read")
    return read(*arguments)
commits.read_rows = read_rows
"""
"""Run at the start of a process: kill it when a file is whole and has no name, or a chunk is read, the n-th time."""


@pytest.fixture(scope="module")
def study(cli: Cli, phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Masks and embeddings of files whose folder bears a name, nothing after them."""
    root = tmp_path_factory.mktemp("exports")
    study = Study(cli, root / "work", copy_source(phantom_folder, root / "DOE^JANE scans"))
    assert study.ingest("--chunk-items", 4).code == 0
    done = study.run("--stage", "embeddings")
    assert done.code == 0, done.err
    return study


def export(study: Study, *arguments: object, env: Mapping[str, str] | None = None) -> Finished:
    return study.cli("export", *arguments, "--workdir", study.work, *QUICK, env=env)


def files_of(folder: Path) -> dict[str, bytes]:
    """Files at their final names: a name that begins with a dot, or is below one that does, is none."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {p.as_posix(): (folder / p).read_bytes() for p in found if not any(part[0] == "." for part in p.parts)}


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("png", ("partial:1", "partial:3", "read:4", "partial:8")),
        ("coco", ("read:1", "partial:2", "read:3", "partial:3")),
        ("parquet", ("read:3", "read:5", "partial:2")),
    ],
)
def test_killed_export_goes_on_and_no_name_ever_holds_half_a_file(
    study: Study, tmp_path: Path, kind: str, kills: tuple[str, ...]
) -> None:
    assert export(study, kind, tmp_path / "whole").code == 0
    whole = files_of(tmp_path / "whole")
    (tmp_path / "sitecustomize.py").write_text(PRELUDE)
    path = f"{tmp_path}:{ROOT}"
    for kill in kills:
        done = export(study, kind, tmp_path / "killed", env={"PYTHONPATH": path, "KILL_AT": kill})
        assert done.code == -signal.SIGKILL, (kill, done.out, done.err)
        half = files_of(tmp_path / "killed")
        begun = half.pop("export.json", b'{"finished": false}')
        assert json.loads(begun)["finished"] is False
        assert half == {name: whole[name] for name in half}
    assert export(study, kind, tmp_path / "killed").code == 0
    assert files_of(tmp_path / "killed") == whole
    assert not list((tmp_path / "killed").glob(".*"))


def test_export_without_a_folder_is_found_again_and_told_as_json(study: Study) -> None:
    first, second = (export(study, "png", "--split", "test", "--json") for _ in range(2))
    assert first.json == second.json
    assert first.json["counts"] == {"ok": 6}
    assert Path(first.json["folder"]).parent == study.dataset / "exports"


def test_refusals_have_their_exit_codes_and_say_what_to_do(study: Study, tmp_path: Path) -> None:
    assert export(study, "coco", tmp_path / "out").code == 0
    other = export(study, "coco", tmp_path / "out", "--split", "test")
    assert (other.code, "holds another export" in other.err, "delete that one" in other.err) == (4, True, True)
    lacking = export(study, "png", tmp_path / "new", "--set", "masks.compositing=crop")
    assert (lacking.code, "pipeline run --stage masks" in lacking.err) == (4, True)
    assert export(study, "avi").code == 2
    assert export(study, "png", "--stage", "fusion").code == 2
    assert not (tmp_path / "new").exists()


def test_no_name_path_host_or_user_is_in_an_export(study: Study, tmp_path: Path) -> None:
    private = ["DOE^JANE", str(study.work), str(study.source), platform.node(), f"/home/{getpass.getuser()}", "/tmp/"]
    words = [word for word in private if len(word) > 3]  # a shorter host's name is in any numbers by chance
    paths = [line.split(",")[0] for line in (study.source / "labels.csv").read_text().splitlines()[1:]]
    for kind in ("coco", "png", "parquet"):
        assert export(study, kind, tmp_path / kind).code == 0
        for name, data in files_of(tmp_path / kind).items():
            assert not [word for word in (*words, *paths) if word.encode() in data], (kind, name)
