"""`pipeline doctor` where a batch system is configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.conftest import Cli

pytestmark = pytest.mark.slow

DOCTOR = ("doctor", "--set", "cluster.kind=slurm", "--set", "cluster.device=cpu", "--json")


def test_doctor_finds_the_controller(slurm: Slurm, cli: Cli, tmp_path: Path) -> None:
    done = cli(*DOCTOR, "--workdir", tmp_path, env=slurm.environment())
    (check,) = [check for check in done.json if check["name"] == "slurm"]
    assert check["ok"], check
    assert "UP" in check["detail"]
    assert done.code == 0


def test_doctor_says_that_a_controller_is_missing(slurm: Slurm, cli: Cli, tmp_path: Path) -> None:
    done = cli(*DOCTOR, "--workdir", tmp_path, env={**slurm.environment(), "SLURM_CONF": str(tmp_path / "none.conf")})
    (check,) = [check for check in done.json if check["name"] == "slurm"]
    assert not check["ok"]
    assert "scontrol ping" in check["detail"], "what it said, or that it said nothing"
    assert done.code == 2
