"""Every path under the work folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from manifests.errors import InventoryError, UsageError
from manifests.layout import DatasetPaths, UnitPaths, Workdir, check_name

FINGERPRINT = "0123456789abcdef" * 4


def test_map_store_lies_under_stage_fingerprint_and_drop() -> None:
    paths = DatasetPaths(Path("w/busi"))
    assert paths.map_store("masks", FINGERPRINT, "first") == Path("w/busi/stages/masks/0123456789ab/first")
    assert paths.stage_identity("masks", FINGERPRINT) == Path("w/busi/stages/masks/0123456789ab/stage.json")


def test_drops_runs_and_reports_have_folders_of_their_own() -> None:
    paths = DatasetPaths(Path("w/busi"))
    found = (paths.drop("a"), paths.run("r1"), paths.report(FINGERPRINT), paths.locations)
    assert [p.relative_to("w/busi").as_posix() for p in found] == [
        "drops/a",
        "runs/r1",
        "reports/0123456789ab",
        "drops/locations.json",
    ]
    assert paths.name == "busi"


def test_protocol_folders_lie_side_by_side() -> None:
    paths = UnitPaths(Path("s"))
    assert paths.record("000001") == Path("s/commits/000001/commit.json")
    assert {paths.data, paths.staging, paths.retired} == {Path("s/data.zarr"), Path("s/staging"), Path("s/retired")}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-rf", ".hidden", "ä", "x" * 65, "a b", "a\n"])
def test_names_that_are_no_safe_folder_name_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a folder name"):
        check_name("Drop", name)


def test_data_sets_are_those_with_drops(tmp_path: Path) -> None:
    (tmp_path / "b" / "drops").mkdir(parents=True)
    (tmp_path / "a" / "drops").mkdir(parents=True)
    (tmp_path / "stray").mkdir()
    assert Workdir(tmp_path).datasets() == ("a", "b")
    assert Workdir(tmp_path).dataset("a").root == tmp_path / "a"


def test_only_data_set_is_found(tmp_path: Path) -> None:
    (tmp_path / "busi" / "drops").mkdir(parents=True)
    assert Workdir(tmp_path).only_dataset() == "busi"


def test_missing_work_folder_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="pipeline ingest"):
        Workdir(tmp_path / "none").only_dataset()


def test_several_data_sets_ask_for_a_choice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "drops").mkdir(parents=True)
    with pytest.raises(UsageError, match="a, b"):
        Workdir(tmp_path).only_dataset()
