"""The command line: quick help, two-line errors, exit codes as documented."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Cli

HEAVY = ("torch", "dask", "distributed", "zarr", "pandas", "sklearn", "pydantic")


def test_help_takes_half_a_second_of_a_core() -> None:
    """Not of the clock, which other processes of a busy machine hold up."""
    script = "from pipeline.cli import main; main()"
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", script, "--help"], cwd=ROOT, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    script = f"import sys; import pipeline.cli; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_plan_and_config_errors_need_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from pipeline.config import load_config; load_config(); "
        "import manifests.ingest; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "code", "what", "fix"),
    [
        (("run", "--stage", "all", "--workdir", "{tmp}/none"), 4, "holds no data set", "pipeline ingest"),
        (("run", "--nonsense"), 2, "nonsense", "--help"),
        (("run", "--part", "9/3"), 2, "--part '9/3'", "--part 3/16"),
        (("ingest", "{tmp}/absent", "--dataset", "d", "--workdir", "{tmp}"), 4, "absent", ""),
        (("ingest", "{tmp}", "--dataset", "a/b", "--workdir", "{tmp}"), 2, "'a/b'", "letters, digits"),
        (("ingest", "{tmp}", "--dataset", "d", "--columns", "label"), 2, "--columns", "label=class"),
        (("weights", "check", "sam3_huge"), 2, "sam3_huge", ""),
        (("doctor", "--set", "masks.polcy=union"), 2, "masks.polcy", "policy"),
    ],
)
def test_error_is_what_and_what_to_do(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], code: int, what: str, fix: str
) -> None:
    done = cli(*(a.replace("{tmp}", str(tmp_path)) for a in arguments))
    assert done.code == code, done.err
    lines = done.err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert len(lines) <= 2
    assert fix in done.err
    assert done.out == ""


def test_doctor_finds_this_machine_well(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", "--workdir", tmp_path, "--json")
    checks = {check["name"]: check for check in json.loads(done.out)}
    assert done.code == 0, done.out
    assert checks["rename semantics"]["detail"] == "at most one rename wins"
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_missing_weights(cli: Cli, tmp_path: Path) -> None:
    done = cli("doctor", "--workdir", tmp_path, "--preset", "paper")
    assert done.code == 2
    assert "FAIL weights sam2_hiera_large" in done.out
    assert "pipeline weights add sam2_hiera_large" in done.out
