"""A report whose code was mended gets another fingerprint, so that an old page does not stand in its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.report_sources import report_sources
from stages.report.page import layout_digest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code, which is digested in its place."""
    for package, reader in (("pipeline", "pipeline.report_sources"), ("stages", "stages.report.page")):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "data"))
        monkeypatch.setattr(f"{reader}.files", tmp_path.joinpath)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("stages/report/page.html", "stages/report/page.js", "stages/report/published.csv", "stages/report/tables.py"),
        *("stages/attention/relevance.py", "stages/models/rollout.py", "stages/images.py"),
        *("pipeline/gallery.py", "pipeline/attention.py", "pipeline/attention_maps.py", "pipeline/attention_heads.py"),
        *("pipeline/mask_facts.py", "pipeline/map_points.py", "pipeline/results.py", "pipeline/committed.py"),
        *("pipeline/supplied_masks.py", "pipeline/fit_tables.py"),
    ],
)
def test_mended_code_changes_the_digest_of_the_layout(code: Path, name: str) -> None:
    before = layout_digest(report_sources())
    (code / name).write_text((code / name).read_text("utf-8") + "\n", "utf-8")
    assert layout_digest(report_sources()) != before


def test_code_that_no_report_shows_does_not_change_it(code: Path) -> None:
    before = layout_digest(report_sources())
    (code / "pipeline/submit.py").write_text("", "utf-8")
    assert layout_digest(report_sources()) == before
