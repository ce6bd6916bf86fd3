"""What a run keeps of its command line and configuration: nothing that may be secret or names a machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.runner import Runner, RunOptions, _without_secrets, recorded
from pipeline.workspace import Workspace
from tests.unit.pipeline.committed_study import SETTINGS, complete, ingested

PROLOGUE = 'cluster.jobs.prologue=["export KEY=s3cret"]'
HIDDEN = (
    PROLOGUE,
    'cluster.jobs.directives=["--comment=s3cret"]',
    'cluster.cpu_jobs.prologue=["export KEY=s3cret"]',
    'cluster.cpu_jobs.directives=["--comment=s3cret"]',
    'cluster.cpu_jobs={prologue=["export KEY=s3cret"]}',
    'cluster.jobs = {prologue=["export KEY=s3cret"]}',
    'cluster.tls={ca="s3cret.pem", cert="s3cret.pem", key="s3cret.pem"}',
    'cluster.scheduler="tls://s3cret:8786"',
    ' cluster.jobs.prologue=["export KEY=s3cret"]',
    'cluster={jobs={prologue=["export KEY=s3cret"]}}',
)
"""Overrides that the configuration takes and a record leaves out."""


@pytest.mark.parametrize("override", HIDDEN)
def test_recorded_configuration_holds_nothing_that_may_be_secret(override: str) -> None:
    config = load_config(overrides=[override])
    assert "s3cret" in config.model_dump_json()
    assert "s3cret" not in json.dumps(recorded(config))


@pytest.mark.parametrize("override", HIDDEN)
@pytest.mark.parametrize("sign", [" ", "="])
def test_recorded_command_line_holds_nothing_that_may_be_secret(override: str, sign: str) -> None:
    given = [f"--set={override}"] if sign == "=" else ["--set", override]
    argv = ["pipeline", "run", "--workdir", "w", *given, "--stage", "one"]
    kept = _without_secrets(argv)
    assert "s3cret" not in " ".join(kept)
    assert (kept[:4], kept[-2:]) == (argv[:4], argv[-2:])


@pytest.mark.parametrize("text", ["--set", "cluster.workers=3", "--set=masks.policy=union", "cluster.grace_s=9", "one"])
def test_recorded_command_line_keeps_everything_else(text: str) -> None:
    assert _without_secrets([text]) == [text]


def test_recorded_configuration_keeps_what_jobs_ask_for() -> None:
    kept = recorded(load_config(overrides=['cluster.jobs.queue="night"', PROLOGUE]))
    assert kept["cluster"]["jobs"]["queue"] == "night"
    assert kept["masks"] == load_config().model_dump(mode="json")["masks"]


@pytest.fixture(scope="module")
def finished(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A study with nothing left to do."""
    return complete(ingested(tmp_path_factory.mktemp("finished"), phantom_folder))


TABLE = """
[cluster]
scheduler = "tls://s3cret:8786"
device = "cpu"
tls = { ca = "s3cret.pem", cert = "s3cret.pem", key = "s3cret.pem" }
[cluster.jobs]
prologue = ["export KEY=s3cret"]
directives = ["--comment=s3cret"]
"""
BY_SET = [text.strip() for text in (*HIDDEN[:4], *HIDDEN[6:8], "cluster.device=cpu")]


@pytest.mark.parametrize("by_file", [True, False])
def test_run_folder_holds_no_secret_of_the_configuration(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_file: bool
) -> None:
    (tmp_path / "c.toml").write_text(TABLE)
    given = ("--config", "c.toml") if by_file else tuple(part for text in BY_SET for part in ("--set", text))
    monkeypatch.setattr(sys, "argv", ["pipeline", "run", *given])
    config = load_config(tmp_path / "c.toml" if by_file else None, (*SETTINGS, *(() if by_file else BY_SET)))
    assert "s3cret" in config.model_dump_json()
    outcome = Runner(finished.paths, config, RunOptions()).run()
    files = [file for file in finished.paths.run(outcome.run_id).rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"run.json", "events.jsonl"}
    assert [file.name for file in files if b"s3cret" in file.read_bytes()] == []


def test_private_argument_is_not_recorded():
    assert _without_secrets(["pipeline", "predict", "mueller"], {"mueller"}) == ["pipeline", "predict", "<path>"]
