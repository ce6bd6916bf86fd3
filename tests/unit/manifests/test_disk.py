"""Folders and files written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from manifests import disk


def test_private_folder_is_for_its_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        made = disk.make_private(tmp_path / "workdir" / "busi")
    finally:
        os.umask(old)
    assert made.stat().st_mode & 0o777 == 0o700


def test_folder_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "busi").mkdir(mode=0o750)
    disk.make_private(tmp_path / "busi")
    assert (tmp_path / "busi").stat().st_mode & 0o777 == 0o750


def test_atomic_write_replaces_the_whole_text(tmp_path: Path) -> None:
    disk.write_atomic(tmp_path / "a.json", "old" * 1000)
    disk.write_atomic(tmp_path / "a.json", "nöw")
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "nöw"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_place_is_the_end_of_a_path_and_never_the_root() -> None:
    assert disk.place(Path("/tmp/out")) == "tmp/out"
    assert disk.place(Path("/a/b/c/d")) == "b/c/d"
