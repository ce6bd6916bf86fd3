"""The folder of pictures of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from manifests.errors import InventoryError
from manifests.inventory import scan
from pipeline.overlays import write_overlays


class Nothing:
    """Arrivals of a study without images, one of which was withdrawn."""

    chunks = ()

    @property
    def workspace(self) -> Any:
        return type("Workspace", (), {"withdrawals": (type("Withdrawal", (), {"withdrawal_id": "w1"}),)})


def test_folder_of_overlays_is_marked_as_an_export_that_no_ingest_takes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_overlays(tmp_path / "a", cast("Any", Nothing()), cast("Any", None), ())
    (tmp_path / "a" / "1.png").touch()
    with pytest.raises(InventoryError, match="is an export of MedFocus"):
        scan(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "export.json").read_text())["withdrawals"] == ["w1"]
