"""Ten thousand images, tiny ones, through ingest and the map stages; tests/benchmarks/many_images measures the cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.overview import status_rows
from tests.benchmarks.many_images import MANY, go_through

pytestmark = pytest.mark.slow


def test_ten_thousand_images_go_through_ingest_and_map_stages(tmp_path: Path) -> None:
    workspace = go_through(tmp_path, MANY)[0]
    maps = [row for row in status_rows(workspace) if row["drop"]]
    assert [(row["committed"], row["pending"], row["images"]) for row in maps] == [(157, 0, {"ok": MANY})] * 2
