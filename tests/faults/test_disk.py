"""Full, read-only and forbidden disks, for real; and files damaged behind the program's back."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from manifests.commits import committed_units, content_digest, pending, publish_cell, publish_chunk, read_rows, retire
from manifests.disk import write_atomic
from manifests.errors import StoreError
from manifests.events import EventLog, read_events
from manifests.integrity import Damage, gc, restore_metadata, verify
from manifests.store import StageStore
from tests.stores import SPECS, chunks_of, open_store, result

PAGE = 4096
UNITS = ["000000", "000001", "000002"]


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def publish(root: Path, indices: tuple[int, ...] = (0, 1, 2)) -> StageStore:
    store = open_store(root)
    for chunk in chunks_of(store):
        if chunk.index in indices and pending(root, [chunk.unit]):
            publish_chunk(store, chunk, result(chunk, chunk.index + 1))
    return store


def fill(disk: Path, pages_left: int) -> Path:
    """Fill a file system but for some pages."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(b"x" * PAGE)
        except OSError:
            pass
    os.truncate(ballast, max(0, ballast.stat().st_size - pages_left * PAGE))
    return ballast


@pytest.mark.parametrize("pages_left", range(9))
def test_full_disk_harms_nothing_and_resume_works(small_disk: Path, tmp_path: Path, pages_left: int) -> None:
    store = publish(small_disk / "s", (0,))
    ballast = fill(small_disk, pages_left)
    with pytest.raises(StoreError, match=r"No space left on device.*Free space"):
        publish(small_disk / "s")
    assert not list((store.root / "staging").iterdir())
    assert verify(store.root) == []
    assert read_rows(store, chunks_of(store)[0])["score"].tolist() == [1] * 4
    ballast.unlink()
    publish(small_disk / "s")
    assert content_digest(store.root, UNITS) == content_digest(publish(tmp_path / "t").root, UNITS)


def test_full_disk_while_a_store_is_made_leaves_none(small_disk: Path) -> None:
    ballast = fill(small_disk, 2)
    with pytest.raises(StoreError, match=r"Cannot create disk/s: No space|Cannot create .*No space"):
        open_store(small_disk / "s")
    assert not (small_disk / "s" / "data.zarr").exists()
    ballast.unlink()
    assert verify(publish(small_disk / "s").root) == []


@pytest.mark.parametrize("pages_left", range(4))
def test_full_disk_while_a_cell_is_written_leaves_none(small_disk: Path, pages_left: int) -> None:
    def fit(out: Path) -> dict[str, Any]:
        (out / "weights").write_bytes(os.urandom(PAGE * 3))
        return {}

    publish_cell(small_disk / "s", "masked-5-0", fit)
    fill(small_disk, pages_left)
    with pytest.raises(StoreError, match="No space left"):
        publish_cell(small_disk / "s", "masked-5-1", fit)
    assert committed_units(small_disk / "s") == ("masked-5-0",)
    assert verify(small_disk / "s") == []
    assert not list((small_disk / "s" / "staging").iterdir())


def test_full_disk_keeps_the_old_text(small_disk: Path) -> None:
    write_atomic(small_disk / "run.json", "old")
    fill(small_disk, 0)
    with pytest.raises(StoreError, match="No space left"):
        write_atomic(small_disk / "run.json", "new" * PAGE)
    assert (small_disk / "run.json").read_text() == "old"
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "run.json"]


def test_event_log_goes_on_after_a_full_disk(small_disk: Path) -> None:
    with EventLog(small_disk / "events.jsonl") as log:
        log.write("first")
        ballast = fill(small_disk, 0)
        with pytest.raises(StoreError, match="No space left"):
            log.write("torn", text="x" * 2 * PAGE)
        ballast.unlink()
        log.write("last")
    assert [e["event"] for e in read_events(small_disk / "events.jsonl")] == ["first", "last"]


def test_read_only_disk_can_be_read_and_verified_but_not_written(small_disk: Path) -> None:
    store = publish(small_disk / "s", (0, 1))
    (store.root / "staging" / "left").mkdir()
    remount(small_disk, "ro")
    assert read_rows(open_store(store.root), chunks_of(store)[1])["score"].tolist() == [2] * 4
    assert (verify(store.root), pending(store.root, UNITS)) == ([], {"000002": "new"})
    attempts: list[Callable[[], Any]] = [
        lambda: publish(store.root),
        lambda: retire(store.root, "000000"),
        lambda: gc(store.root, -1, dry_run=False),
        lambda: open_store(small_disk / "new"),
        lambda: write_atomic(small_disk / "a.json", "text"),
        lambda: EventLog(small_disk / "events.jsonl"),
    ]
    for attempt in attempts:
        with pytest.raises(StoreError, match=r"Read-only file system.*Mount"):
            attempt()


@contextmanager
def nobody() -> Iterator[None]:
    """Act as a user without rights, if the tests run as root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def open_to_all(path: Path) -> None:
    for folder in (path, *path.parents):
        if folder.stat().st_uid == os.getuid() and folder.name.startswith(("pytest-", "popen-gw", "test_")):
            folder.chmod(0o755)


def test_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    store = publish(tmp_path / "s", (0,))
    open_to_all(tmp_path)
    for folder in (p for p in (tmp_path / "s").rglob("*") if p.is_dir()):
        folder.chmod(0o555)
    with nobody(), pytest.raises(StoreError, match=r"Cannot write .*Permission denied.*right to read and write"):
        publish_chunk(store, chunks_of(store)[1], result(chunks_of(store)[1], 2))
    assert verify(store.root) == []


def test_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    store = publish(tmp_path / "s", (0,))
    open_to_all(tmp_path)
    (tmp_path / "s" / "commits").chmod(0)
    actions: list[Callable[[], Any]] = [
        lambda: read_rows(store, chunks_of(store)[0]),
        lambda: pending(store.root, UNITS),
        lambda: open_store(tmp_path / "s" / "commits" / "x"),
    ]
    with nobody():
        for action in actions:
            with pytest.raises(StoreError, match="Permission denied"):
                action()
    (tmp_path / "s" / "commits").chmod(0o755)


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def zero_tail(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-20] + bytes(20))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "torn": lambda f: os.truncate(f, f.stat().st_size // 2),
    "zero length": lambda f: os.truncate(f, 0),
    "bit flip": flip_bit,
    "tail of zeros": zero_tail,
    "missing": Path.unlink,
    "of another chunk": lambda f: shutil.copy(f.with_name(f.name.replace("c.1", "c.2")), f),
    "a folder": lambda f: (f.unlink(), f.mkdir()),
}


@pytest.mark.parametrize("name", [spec.name for spec in SPECS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_named_never_read_and_computed_anew(tmp_path: Path, damage: str, name: str) -> None:
    store = publish(tmp_path / "s")
    chunk = chunks_of(store)[1]
    path = store.shard_path(name, chunk)
    before = content_digest(store.root, UNITS)
    DAMAGES[damage](store.root / path)
    assert [(d.unit, d.path) for d in verify(store.root)] == [("000001", path.as_posix())]
    with pytest.raises(StoreError, match=rf"{path.as_posix()} is missing or not what was committed.*pipeline verify"):
        read_rows(store, chunk)
    if damage == "a folder":
        (store.root / path).rmdir()
    assert retire(store.root, chunk.unit)
    publish(store.root)
    assert (verify(store.root), content_digest(store.root, UNITS)) == ([], before)


def test_several_damages_are_all_named(tmp_path: Path) -> None:
    store = publish(tmp_path / "s")
    chunks = chunks_of(store)
    (store.root / store.shard_path("mask", chunks[0])).unlink()
    score = store.root / store.shard_path("score", chunks[2])
    size = score.stat().st_size
    os.truncate(score, 3)
    assert verify(store.root) == [
        Damage("000000", "data.zarr/mask/c.0.0.0", "missing"),
        Damage("000002", "data.zarr/score/c.2", f"of 3 bytes instead of {size}"),
    ]


METADATA = ["data.zarr/zarr.json", "data.zarr/mask/zarr.json", "data.zarr/status/zarr.json"]


@pytest.mark.parametrize("damage", ["torn", "zero length", "bit flip", "tail of zeros", "missing"])
@pytest.mark.parametrize("path", METADATA)
def test_damaged_metadata_is_named_and_restored(tmp_path: Path, path: str, damage: str) -> None:
    store = publish(tmp_path / "s")
    good = (store.root / path).read_bytes()
    DAMAGES[damage](store.root / path)
    assert [(d.unit, d.path) for d in verify(store.root)] == [("", path)]
    with pytest.raises(StoreError, match=rf"{path} is (damaged|missing)"):
        open_store(store.root)
    arguments = (SPECS, store.n_items, store.chunk_items, store.attributes)
    assert restore_metadata(store.root, *arguments) == [path]
    assert (verify(store.root), (store.root / path).read_bytes()) == ([], good)


def test_metadata_is_restored_with_the_folder_of_an_array(tmp_path: Path) -> None:
    store = publish(tmp_path / "s")
    shutil.rmtree(store.root / "data.zarr" / "mask")
    restore_metadata(store.root, SPECS, store.n_items, store.chunk_items, store.attributes)
    assert [(d.unit, d.path) for d in verify(store.root)] == [(u, f"data.zarr/mask/c.{int(u)}.0.0") for u in UNITS]


@pytest.mark.parametrize("damaged", ["zarr.json", "mask/zarr.json"])
def test_metadata_is_not_restored_from_other_settings(tmp_path: Path, damaged: str) -> None:
    store = publish(tmp_path / "s")
    (store.root / "data.zarr" / damaged).write_text("{")
    with pytest.raises(StoreError, match="intact, but not as these settings"):
        restore_metadata(store.root, SPECS, store.n_items + 1, store.chunk_items, store.attributes)


def test_metadata_of_another_version_is_not_overwritten(tmp_path: Path) -> None:
    store = publish(tmp_path / "s")
    file = store.root / "data.zarr" / "zarr.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match=r"map-store 2.*Use the version"):
        restore_metadata(store.root, SPECS, store.n_items, store.chunk_items, store.attributes)


def test_intact_metadata_is_left_alone(tmp_path: Path) -> None:
    store = publish(tmp_path / "s")
    assert restore_metadata(store.root, SPECS, store.n_items, store.chunk_items, store.attributes) == []
