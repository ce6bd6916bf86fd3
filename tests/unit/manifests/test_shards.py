"""Arrays to shard bytes and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from manifests.shards import decode_shard, encode_shard
from manifests.store import StageStore
from manifests.types import ArraySpec
from tests.stores import chunks_of, open_store


@pytest.mark.parametrize("index", range(4))
def test_shard_of_fill_values_is_written_all_the_same(tmp_path: Path, index: int) -> None:
    store = open_store(tmp_path / "s")
    spec = store.specs[index]
    rows = np.full((4, *spec.item_shape), spec.fill, spec.dtype)
    data = encode_shard(spec, store.metadata[spec.name], 1, slice(4, 8), rows)
    assert data
    np.testing.assert_array_equal(decode_shard(spec, store.metadata[spec.name], 1, slice(4, 8), data), rows)


def test_shards_are_those_that_zarr_itself_reads(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    spec = store.specs[1]
    rows = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), np.uint8)
    data = encode_shard(spec, store.metadata[spec.name], 2, slice(8, 10), rows)
    (store.root / store.shard_path(spec.name, chunks_of(store)[2])).write_bytes(data)
    np.testing.assert_array_equal(zarr.open_array(store.root / "data.zarr" / "masked_image", mode="r")[8:], rows)


def test_rows_that_cross_the_grid_are_not_encoded(tmp_path: Path) -> None:
    store = open_store(tmp_path / "s")
    spec = store.specs[3]
    with pytest.raises(ValueError, match="alone"):
        encode_shard(spec, store.metadata[spec.name], 0, slice(2, 6), np.ones(4, np.uint8))


def test_axes_without_names_are_numbered(tmp_path: Path) -> None:
    StageStore.open(tmp_path / "s", (ArraySpec("vector", (3,), "float16"),), 2, 2, {})
    metadata = json.loads((tmp_path / "s" / "data.zarr" / "vector" / "zarr.json").read_text())
    assert metadata["dimension_names"] == ["image", "vector_0"]
