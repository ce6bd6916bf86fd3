"""Arrays to shard bytes and back: the only module that speaks Zarr.

Shards are encoded and decoded in memory, with the store's own metadata, so that the caller can write, hash and check
exactly these bytes, and no reader ever mixes parts of two shard files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manifests.types import ArraySpec

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

MOST_TOGETHER = 8
"""Rows of an inner chunk at most: every inner chunk costs Zarr about a millisecond, and a single row is read with its
neighbours."""
KINDS = "biuf"
"""NumPy kinds that may be stored: bool, int, uint, float; never objects."""


def shard_key(spec: ArraySpec, chunk_index: int) -> str:
    """Zarr's key of one unit's shard inside the array, such as `c.3.0.0`."""
    return ".".join(["c", str(chunk_index), *["0"] * len(spec.item_shape)])


def check_specs(specs: Sequence[ArraySpec]) -> None:
    """Check what a stage declares.

    Raises
    ------
    ValueError
        If there is none, a name occurs twice or is no identifier, a dtype cannot be stored, a length is not positive,
        or `item_dims` names another number of axes.
    """
    names = [spec.name for spec in specs]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"a store needs arrays of distinct names, got {names}")
    for spec in specs:
        if not spec.name.isidentifier() or not spec.name.isascii():
            raise ValueError(f"{spec.name!r}: an array's name is an ASCII identifier")
        if np.dtype(spec.dtype).kind not in KINDS:
            raise ValueError(f"{spec.name}: expected a dtype of bool, int, uint or float, got {spec.dtype}")
        if any(length < 1 for length in spec.item_shape):
            raise ValueError(f"{spec.name}: every length must be positive, got {spec.item_shape}")
        if spec.item_dims and len(spec.item_dims) != len(spec.item_shape):
            raise ValueError(f"{spec.name}: {len(spec.item_shape)} axes, but item_dims is {spec.item_dims}")


def array_metadata(specs: Sequence[ArraySpec], n_items: int, chunk_items: int) -> dict[str, bytes]:
    """Write the zarr.json of every array.

    Parameters
    ----------
    specs : Sequence[ArraySpec]
        What the arrays hold.
    n_items : int
        Length of the first axis, N.
    chunk_items : int
        Rows of a unit, B; a shard, or an unsharded chunk, holds exactly these.

    Returns
    -------
    dict[str, bytes]
        Zarr v3 metadata by array name.
    """
    from zarr import create_array
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    files = _buffers({})
    for spec in specs:
        axes = spec.item_dims or tuple(f"{spec.name}_{axis}" for axis in range(len(spec.item_shape)))
        rows = (chunk_items, *spec.item_shape)
        create_array(
            MemoryStore(files),
            name=spec.name,
            shape=(n_items, *spec.item_shape),
            dtype=spec.dtype,
            chunks=(items_together(chunk_items), *spec.item_shape) if spec.per_item else rows,
            shards=rows if spec.per_item else None,
            compressors=ZstdCodec(level=3, checksum=True),
            fill_value=np.dtype(spec.dtype).type(spec.fill),
            dimension_names=("image", *axes),
            # One flat folder an array: no folders to create, sync and count for every shard.
            chunk_key_encoding={"name": "default", "separator": "."},
        )
    return {spec.name: files[f"{spec.name}/zarr.json"].to_bytes() for spec in specs}


def items_together(chunk_items: int) -> int:
    """Rows of an inner chunk: the largest divisor of `chunk_items` up to `MOST_TOGETHER`."""
    return max(n for n in range(1, MOST_TOGETHER + 1) if chunk_items % n == 0)


def encode_shard(spec: ArraySpec, metadata: bytes, chunk_index: int, rows: slice, array: NDArray[Any]) -> bytes:
    """Encode one unit's rows of one array, all-fill rows too.

    Parameters
    ----------
    spec : ArraySpec
        The array.
    metadata : bytes
        Its zarr.json in the store.
    chunk_index : int
        Position of the unit in the chunk grid.
    rows : slice
        Rows of the unit.
    array : ndarray, (len(rows), *spec.item_shape), spec.dtype
        What they hold.

    Returns
    -------
    bytes
        The shard file.

    Raises
    ------
    ValueError
        If Zarr did not write exactly this unit's shard.
    """
    from zarr import open_array
    from zarr.storage import MemoryStore

    files = _buffers({f"{spec.name}/zarr.json": metadata})
    # Zarr skips chunks that equal the fill value, so an empty mask would leave an older full one in place.
    # Set on the array, not in zarr.config: that is shared by all threads of a worker.
    target = open_array(MemoryStore(files), path=spec.name, mode="r+").with_config({"write_empty_chunks": True})
    target[rows] = array
    key = f"{spec.name}/{shard_key(spec, chunk_index)}"
    if set(files) != {key, f"{spec.name}/zarr.json"}:
        raise ValueError(f"expected Zarr to write the shard {key} alone, got {sorted(files)}")
    return files[key].to_bytes()


def decode_shard(spec: ArraySpec, metadata: bytes, chunk_index: int, rows: slice, data: bytes) -> NDArray[Any]:
    """Decode one unit's rows of one array from the bytes of its shard, which the caller has checked.

    Parameters
    ----------
    spec : ArraySpec
        The array.
    metadata : bytes
        Its zarr.json in the store.
    chunk_index : int
        Position of the unit in the chunk grid.
    rows : slice
        Rows of the unit.
    data : bytes
        The shard file.

    Returns
    -------
    ndarray, (len(rows), *spec.item_shape), spec.dtype
        What they hold.
    """
    from zarr import open_array
    from zarr.storage import MemoryStore

    files = {f"{spec.name}/zarr.json": metadata, f"{spec.name}/{shard_key(spec, chunk_index)}": data}
    return np.asarray(open_array(MemoryStore(_buffers(files)), path=spec.name, mode="r")[rows])


def _buffers(files: Mapping[str, bytes]) -> dict[str, Buffer]:
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer
    return {key: buffer.from_bytes(data) for key, data in files.items()}
