"""The command that the README leads with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli

pytestmark = pytest.mark.slow


def test_demo_makes_phantoms_scores_and_a_report_and_does_nothing_twice(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--workdir", tmp_path, timeout_s=900)
    assert done.code == 0, done.err
    assert "151 of 151 units" in done.out
    for row in ("medfocus  union", "medfocus  supplied", "original", "constant"):
        assert row in done.out
    page = Path(done.out.split("Report: ")[1].splitlines()[0])
    assert page.is_file()
    assert "Nothing to do" in cli("demo", "--workdir", tmp_path).out
