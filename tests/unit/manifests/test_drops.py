"""Drops on disk: whole or absent, never changed, read back exactly."""

from __future__ import annotations

import errno
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from manifests.audit import check
from manifests.drops import (
    Drop,
    audit_digest,
    dataset_classes,
    load_audit,
    load_drops,
    load_locations,
    load_rows,
    save_locations,
    verify_drops,
    write_drop,
)
from manifests.errors import InventoryError, StoreError
from manifests.fingerprint import digest_bytes
from manifests.inventory_file import format_rows
from manifests.layout import DatasetPaths, Workdir
from manifests.looks import no_looks
from manifests.types import ImageRow
from tests.unit.manifests.pictures import row


@pytest.fixture
def paths(tmp_path: Path) -> DatasetPaths:
    return Workdir(tmp_path / "work").dataset("set")


def rows_of(count: int, seed: str = "") -> list[ImageRow]:
    return [row(f"a/{seed}{n}.png", row=n, label="a") for n in range(count)]


def drop_of(rows: list[ImageRow], drop_id: str = "drop-001", **fields: Any) -> Drop:
    values = {
        "drop_id": drop_id,
        "dataset": "set",
        "source_root": "/source",
        "n_items": len(rows),
        "chunk_items": 2,
        "classes": ("a",),
        "inventory_sha256": digest_bytes(format_rows(rows)),
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Drop(**{**values, **fields})


def write(paths: DatasetPaths, drop_id: str = "drop-001", count: int = 3, **fields: Any) -> Drop:
    rows = rows_of(count, drop_id)
    drop = drop_of(rows, drop_id, **fields)
    write_drop(paths, drop, rows, check(rows), no_looks(len(rows)))
    return drop


@pytest.mark.parametrize(("n_items", "sizes"), [(1, [1]), (2, [2]), (5, [2, 2, 1])])
def test_chunks_cover_every_row_once(n_items, sizes):
    chunks = drop_of(rows_of(n_items)).chunks()
    assert [len(chunk) for chunk in chunks] == sizes
    assert [i for c in chunks for i in range(c.start, c.stop)] == list(range(n_items))
    assert [chunk.unit for chunk in chunks] == [f"{i:06d}" for i in range(len(sizes))]


@pytest.mark.parametrize("wrong", [{"n_items": 0}, {"chunk_items": 0}, {"other": 1}, {"schema_version": 1}])
def test_drop_refuses_what_it_does_not_know(wrong):
    with pytest.raises(ValidationError):
        drop_of(rows_of(1), **wrong)


def test_written_drop_reads_back_exactly(paths):
    drop = write(paths)
    assert load_drops(paths) == (drop,)
    assert load_rows(paths, drop) == tuple(rows_of(3, "drop-001"))


def test_drop_is_for_its_owner_only(paths):
    write(paths)
    folder = paths.drop("drop-001")
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert files == dict.fromkeys(("drop.json", "inventory.csv", "audit.json", "looks.npz"), 0o600)
    assert {stat.S_IMODE(f.stat().st_mode) for f in (folder, paths.drops, paths.root)} == {0o700}


def test_no_drop_before_the_first_ingest(paths):
    assert load_drops(paths) == ()
    assert dataset_classes(()) == ()


def test_existing_drop_is_never_overwritten(paths):
    drop = write(paths)
    with pytest.raises(InventoryError, match=r"'drop-001' exists.*--drop"):
        write(paths, count=2)
    assert load_drops(paths) == (drop,)


def test_one_of_two_concurrent_writers_wins(paths):
    def attempt(count: int) -> int:
        try:
            return write(paths, count=count).n_items
        except InventoryError:
            return 0

    for _ in range(5):
        with ThreadPoolExecutor(2) as pool:
            won = [n for n in pool.map(attempt, (3, 4)) if n]
        (drop,) = load_drops(paths)
        assert won == [drop.n_items] == [len(load_rows(paths, drop))]
        assert [f.name for f in paths.drops.iterdir()] == ["drop-001"]
        paths.drop("drop-001").rename(paths.root / f"lost-{drop.n_items}-{len(list(paths.root.iterdir()))}")


def test_rename_onto_a_drop_that_came_last_moment_is_refused(paths, monkeypatch):
    write(paths)
    monkeypatch.setattr(Path, "exists", lambda self: "incoming" in self.name)
    monkeypatch.setattr("manifests.drops.load_drops", lambda _: ())
    with pytest.raises(InventoryError, match="exists already"):
        write(paths, count=2)


def test_rename_that_reports_failure_though_it_won_is_a_success(paths, monkeypatch):
    rename = Path.rename

    def lying(self: Path, target: Path) -> None:
        rename(self, target)
        raise OSError(errno.EIO, "server did not answer")

    monkeypatch.setattr(Path, "rename", lying)
    drop = write(paths)
    assert load_drops(paths) == (drop,)


def test_full_disk_leaves_nothing_behind(paths, monkeypatch):
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(StoreError, match="Free space"):
        write(paths)
    assert list(paths.drops.iterdir()) == []


def test_rows_of_another_drop_are_refused(paths):
    with pytest.raises(InventoryError, match="not those of drop"):
        write_drop(paths, drop_of(rows_of(2)), rows_of(3), check(rows_of(3)), no_looks(3))


def test_drop_made_before_another_arrived_is_refused(paths):
    write(paths)
    with pytest.raises(InventoryError, match="Another drop arrived"):
        write(paths, "late")


def test_drops_come_in_order_of_arrival_not_of_name(paths):
    write(paths, "z")
    write(paths, "a", previous=("z",))
    write(paths, "m", previous=("z", "a"), classes=("a", "c", "b"))
    drops = load_drops(paths)
    assert [drop.drop_id for drop in drops] == ["z", "a", "m"]
    assert dataset_classes(drops) == ("a", "c", "b")


def test_missing_drop_of_the_chain_is_refused(paths):
    write(paths)
    write(paths, "second", previous=("drop-001",))
    paths.drop("drop-001").rename(paths.root / "elsewhere")
    with pytest.raises(InventoryError, match=r"'second' follows \['drop-001'\].*restore it"):
        load_drops(paths)


def test_altered_inventory_is_refused(paths):
    drop = write(paths)
    file = paths.drop("drop-001") / "inventory.csv"
    file.write_bytes(file.read_bytes().replace(b'"a"', b'"b"', 1))
    with pytest.raises(InventoryError, match="altered or removed"):
        load_rows(paths, drop)
    file.unlink()
    with pytest.raises(InventoryError, match="altered or removed"):
        load_rows(paths, drop)


@pytest.mark.parametrize(
    ("content", "message"), [('{"drop_id": 1}', "damaged"), ("{", "damaged"), (None, "is missing")]
)
def test_damaged_drop_file_is_refused_by_name(paths, content, message):
    write(paths)
    file = paths.drop("drop-001") / "drop.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InventoryError, match=rf"drop\.json of drop 'drop-001' .*{message}"):
        load_drops(paths)


@pytest.mark.parametrize("version", [1, 5])
def test_drop_of_another_version_is_refused_not_called_damaged(paths, version):
    write(paths)
    file = paths.drop("drop-001") / "drop.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": version}))
    with pytest.raises(InventoryError, match="has a schema_version of another version"):
        load_drops(paths)


def test_renamed_drop_folder_is_refused(paths):
    write(paths)
    paths.drop("drop-001").rename(paths.drop("mine"))
    with pytest.raises(InventoryError, match="is named 'mine'"):
        load_drops(paths)


def test_locations_are_replaced_whole_and_private(paths):
    write(paths)
    save_locations(paths, {"id": "a/ü\n.png"})
    assert load_locations(paths) == {"id": "a/ü\n.png"}
    assert stat.S_IMODE(paths.locations.stat().st_mode) == 0o600
    assert sorted(f.name for f in paths.drops.iterdir()) == ["drop-001", "locations.json"]


def test_damaged_locations_are_refused(paths):
    write(paths)
    paths.locations.write_text("{")
    with pytest.raises(InventoryError, match="damaged"):
        load_locations(paths)


def test_altered_audit_is_refused_because_it_decides_what_scores_flag(paths):
    rows = rows_of(2, "drop-001")
    drop = drop_of(rows, "drop-001", audit_sha256=audit_digest(check(rows)))
    write_drop(paths, drop, rows, check(rows), no_looks(2))
    assert load_audit(paths, drop) == check(rows)
    assert verify_drops(paths) == []
    file = paths.drop("drop-001") / "audit.json"
    file.write_text(file.read_text().replace('"leaks": []', '"leaks": ["0"]'))
    with pytest.raises(InventoryError, match="altered"):
        load_audit(paths, drop)
    (told,) = verify_drops(paths)
    assert "drop-001" in told
    with pytest.raises(InventoryError, match="audit is not that"):
        write_drop(paths, drop_of(rows, "drop-002", audit_sha256="0" * 64), rows, check(rows), no_looks(2))
