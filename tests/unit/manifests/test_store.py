"""Creating, opening and checking a map stage's store."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from manifests import disk
from manifests.errors import StoreError
from manifests.shards import items_together
from manifests.store import StageStore
from manifests.types import ArraySpec, Chunk
from tests.stores import SPECS, chunks_of, open_store

ATTRIBUTES = {"drop": "first", "fingerprint": "ab" * 32}


def test_new_store_is_a_complete_zarr_group(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    group = zarr.open_group(tmp_path / "s" / "data.zarr", mode="r")
    mask, score = group["mask"], group["score"]
    assert sorted(group.array_keys()) == ["mask", "masked_image", "score", "status"]
    assert (mask.shape, mask.chunks, mask.shards) == ((10, 16, 16), (4, 16, 16), (4, 16, 16))
    assert (score.shape, score.chunks, score.shards) == ((10,), (4,), None)


@pytest.mark.parametrize(("chunk_items", "expected"), [(64, 8), (20, 5), (12, 6), (13, 1), (1, 1), (4, 4)])
def test_inner_chunks_are_a_few_whole_rows(chunk_items: int, expected: int) -> None:
    assert items_together(chunk_items) == expected


def test_every_array_has_named_axes_and_checksummed_zstd(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    group = zarr.open_group(tmp_path / "s" / "data.zarr", mode="r")
    for _, array in group.arrays():
        assert array.metadata.dimension_names[0] == "image"
        assert array.compressors[0].to_dict()["configuration"] == {"level": 3, "checksum": True}
    assert group["masked_image"].metadata.dimension_names == ("image", "y", "x", "channel")


def test_rows_that_were_not_computed_hold_the_fill_value(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    group = zarr.open_group(tmp_path / "s" / "data.zarr", mode="r")
    assert np.isnan(group["score"][:]).all()
    assert not group["status"][:].any()


def test_protocol_folders_stand_from_the_start(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["commits", "data.zarr", "retired", "staging"]
    assert not list((tmp_path / "s" / "staging").iterdir())


def test_store_opens_again_as_it_was_made(tmp_path: Path) -> None:
    made = open_store(tmp_path / "s")
    for again in (open_store(tmp_path / "s"), StageStore.load(tmp_path / "s")):
        assert (again.n_items, again.chunk_items, again.metadata) == (10, 4, made.metadata)
        assert repr(again.specs) == repr(SPECS)
        assert again.attributes == ATTRIBUTES


def test_store_survives_the_way_to_a_worker(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    there = pickle.loads(pickle.dumps(store))
    assert (repr(there), there.metadata) == (repr(store), store.metadata)


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ({"n_items": 11}, "n_items = 10, this run has 11"),
        ({"chunk_items": 5}, "chunk_items = 4, this run has 5"),
        ({"specs": SPECS[:3]}, "made with specs = .*this run has"),
        (
            {"specs": (*SPECS[:3], replace(SPECS[3], dtype="int16"))},
            r'specs\[3\]\.dtype = "uint8", this run has "int16"',
        ),
        ({"attributes": {**ATTRIBUTES, "drop": "second"}}, 'drop = "first", this run has "second"'),
        ({"attributes": {**ATTRIBUTES, "card": {"sha256": "1"}}}, 'card = nothing, this run has {"sha256": "1"}'),
        ({"attributes": {**ATTRIBUTES, "fingerprint": "x"}}, 'fingerprint = "abab.*this run has "x"'),
        ({"attributes": {"drop": "first"}}, "fingerprint = .*this run has nothing"),
    ],
)
def test_store_made_from_other_arguments_is_refused(tmp_path: Path, changed: dict[str, Any], first: str) -> None:
    open_store(tmp_path / "s")
    given = {"specs": SPECS, "n_items": 10, "chunk_items": 4, "attributes": ATTRIBUTES, **changed}
    with pytest.raises(StoreError, match=first):
        StageStore.open(tmp_path / "s", **given)


def test_long_values_are_cut_in_the_message(tmp_path: Path) -> None:
    StageStore.open(tmp_path / "s", SPECS, 1, 1, {"card": "x" * 5000})
    with pytest.raises(StoreError, match=r"xx\.\.\. \(sha256 ") as caught:
        StageStore.open(tmp_path / "s", SPECS, 1, 1, {"card": "x" * 5001})
    assert len(caught.value.what) < 700


def test_message_names_no_absolute_path(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path / "s", n_items=11)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("specs", "problem"),
    [
        ((), "distinct names"),
        ((SPECS[0], SPECS[0]), "distinct names"),
        ((ArraySpec("../mask", (), "bool"),), "ASCII identifier"),
        ((ArraySpec("mask", (), "object"),), "bool, int, uint or float, got object"),
        ((ArraySpec("mask", (0, 4), "bool"),), "positive"),
        ((ArraySpec("mask", (4, 4), "bool", ("y",)),), "2 axes, but item_dims"),
    ],
)
def test_specs_that_cannot_be_stored_are_refused(tmp_path: Path, specs: tuple[ArraySpec, ...], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        StageStore.open(tmp_path / "s", specs, 10, 4, {})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("n_items", "chunk_items"), [(0, 4), (4, 0), (-1, 4)])
def test_store_without_rows_is_refused(tmp_path: Path, n_items: int, chunk_items: int) -> None:
    with pytest.raises(ValueError, match="rows"):
        StageStore.open(tmp_path / "s", SPECS, n_items, chunk_items, {})


def test_attributes_of_the_store_itself_cannot_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="belong to the store"):
        StageStore.open(tmp_path / "s", SPECS, 10, 4, {"schema_version": 2})


def test_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"data\.zarr/zarr\.json is missing"):
        StageStore.load(tmp_path)


def test_store_of_another_schema_version_is_refused_by_both_versions(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    file = tmp_path / "s" / "data.zarr" / "zarr.json"
    file.write_text(file.read_text().replace('"schema_version": 1', '"schema_version": 7'))
    with pytest.raises(StoreError, match=r"map-store 7; this version reads medfocus\.map-store 1"):
        open_store(tmp_path / "s")


def test_zarr_v2_group_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "s" / "data.zarr", zarr_format=2)
    with pytest.raises(StoreError, match="Zarr v2"):
        open_store(tmp_path / "s")


def test_foreign_zarr_group_is_refused(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "s" / "data.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="no attributes of a store"):
        open_store(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"attributes": 3}'])
def test_group_metadata_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    open_store(tmp_path / "s")
    (tmp_path / "s" / "data.zarr" / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=r"data\.zarr/zarr\.json is damaged"):
        StageStore.load(tmp_path / "s")


def test_flipped_attribute_is_found(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    file = tmp_path / "s" / "data.zarr" / "zarr.json"
    file.write_text(file.read_text().replace("abab", "abac", 1))
    with pytest.raises(StoreError, match="do not match their digest"):
        StageStore.load(tmp_path / "s")


@pytest.mark.parametrize(("damage", "problem"), [(None, "missing"), ("{}", "damaged")])
def test_damaged_array_metadata_is_named(tmp_path: Path, damage: str | None, problem: str) -> None:
    open_store(tmp_path / "s")
    file = tmp_path / "s" / "data.zarr" / "score" / "zarr.json"
    file.write_text(damage) if damage else file.unlink()
    with pytest.raises(StoreError, match=rf"data\.zarr/score/zarr\.json is {problem}"):
        open_store(tmp_path / "s")


def test_processes_that_create_at_once_agree_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(4, timeout=20)
    monkeypatch.setattr(disk, "checkpoint", lambda _: barrier.wait())
    stores: list[StageStore] = []
    threads = [threading.Thread(target=lambda: stores.append(open_store(tmp_path / "s"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert all(store.metadata == stores[0].metadata for store in stores)
    assert not list((tmp_path / "s" / "staging").iterdir())


def test_nfs_that_reports_failure_for_a_rename_it_did_is_believed_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def lie(self: Path, target: Path) -> Path:
        rename(self, target)
        raise FileNotFoundError(2, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "rename", lie)
    assert open_store(tmp_path / "s").n_items == 10


def test_crash_during_creation_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "checkpoint", die)
        with pytest.raises(KeyboardInterrupt):
            open_store(tmp_path / "s")
    assert not (tmp_path / "s" / "data.zarr").exists()
    assert open_store(tmp_path / "s").n_items == 10


def test_chunk_off_the_grid_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    for chunk in (
        Chunk("first", 0, 0, 3),
        Chunk("first", 1, 3, 7),
        Chunk("first", 3, 12, 16),
        Chunk("first", -1, -4, 0),
    ):
        with pytest.raises(ValueError, match="the grid of 10 rows by 4"):
            store.check_chunk(chunk)


def test_chunk_of_another_drop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'second', the store to 'first'"):
        open_store(tmp_path / "s").check_chunk(Chunk("second", 0, 0, 4))


def test_shard_path_is_relative_and_flat(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    assert store.shard_path("mask", chunks_of(store)[2]).as_posix() == "data.zarr/mask/c.2.0.0"
    with pytest.raises(KeyError, match="not 'depth'"):
        store.shard_path("depth", chunks_of(store)[0])


def test_opening_a_store_imports_no_zarr(tmp_path: Path) -> None:
    open_store(tmp_path / "s")
    code = (
        "import sys; from pathlib import Path; import manifests.commits; from manifests.store import StageStore\n"
        "StageStore.load(Path(sys.argv[1])); print([m for m in ('zarr', 'torch', 'dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "s")], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
