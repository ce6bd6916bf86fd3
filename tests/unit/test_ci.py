"""What `.ci/run` cannot install fails its tests there, and skips them elsewhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, unavailable

PROGRAMS = {
    "id": "echo {user}",
    "apt-get": "echo apt-get >> {log}; exit 100",
    "make": "echo $1 $MEDFOCUS_REQUIRED >> {log}",
}


def made(folder: Path, user: int, *lacking: str) -> list[str]:
    """What `.ci/run` calls on a machine with these programs alone, each with the variable that it sees."""
    programs, log = folder / "bin", folder / "log"
    programs.mkdir()
    for name, line in PROGRAMS.items():
        if name not in lacking:
            (programs / name).write_text(f"#!/bin/sh\n{line.format(user=user, log=log)}\n")
            (programs / name).chmod(0o755)
    for name in ("bash", "sh", "dirname"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    env = {"PATH": str(programs), "HOME": str(folder)}
    done = subprocess.run([folder / ".ci" / "run"], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines()


def test_machine_that_can_install_programs_requires_them_though_that_failed(tmp_path: Path) -> None:
    assert made(tmp_path, 0) == ["apt-get", "lint 1", "test 1"]


@pytest.mark.parametrize(("user", "lacking"), [(1000, ()), (0, ("apt-get",))])
def test_machine_that_cannot_install_programs_requires_none(
    tmp_path: Path, user: int, lacking: tuple[str, ...]
) -> None:
    assert made(tmp_path, user, *lacking) == ["lint", "test"]


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_program_that_is_lacking_fails_or_skips(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("MEDFOCUS_REQUIRED", required)
    with pytest.raises(outcome, match="munge is not installed"):
        unavailable("munge is not installed")


@pytest.mark.parametrize("folder", ["browser", "cluster"])
def test_fixtures_of_programs_skip_by_that_rule_alone(folder: str) -> None:
    text = (ROOT / "tests" / folder / "conftest.py").read_text("utf-8")
    assert "unavailable(" in text
    assert "pytest.skip" not in text
    assert "importorskip" not in text
