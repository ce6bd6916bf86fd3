"""Rows of committed chunks: a reader takes only bytes whose digest the commit record holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manifests import disk
from manifests.errors import DamagedError, StoreError
from manifests.fingerprint import digest_bytes
from manifests.records import REPAIR
from manifests.shards import decode_shard
from manifests.store import StageStore
from manifests.types import Chunk
from manifests.units import TRIES, listing, read_commit


def read_rows(store: StageStore, chunk: Chunk, names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read a committed chunk: all arrays of one attempt, each byte as that attempt wrote it.

    Parameters
    ----------
    store : StageStore
        The open store.
    chunk : Chunk
        One step of its grid.
    names : Sequence[str], optional
        Arrays to read; all by default.

    Returns
    -------
    dict[str, ndarray]
        Arrays by name, of shape (len(chunk), *item_shape).

    Raises
    ------
    StoreError
        If the chunk is not committed, or a shard is missing or not what was committed.
    """
    store.check_chunk(chunk)
    specs = store.specs if names is None else tuple(store.spec(name) for name in names)
    paths = {spec.name: store.shard_path(spec.name, chunk) for spec in specs}
    seen = ""
    for _ in range(TRIES):
        commit = read_commit(store.root, chunk.unit)
        if commit is None:
            raise StoreError(f"{disk.place(store.root)}/{chunk.unit} is not committed.", "Run: pipeline run")
        shards = {name: _shard_bytes(store.root / path) for name, path in paths.items()}
        rows = slice(chunk.start, chunk.stop)
        wrong = [p for n, p in paths.items() if digest_bytes(shards[n]) != commit.digests.get(p.as_posix())]
        if not wrong:
            return {s.name: decode_shard(s, store.metadata[s.name], chunk.index, rows, shards[s.name]) for s in specs}
        # Another attempt may have replaced the shards meanwhile; if the same one still stands, they are damaged.
        if seen == commit.attempt:
            break
        seen = commit.attempt
    raise DamagedError(f"{disk.place(store.root)}/{wrong[0].as_posix()} is missing or not what was committed.", REPAIR)


def _shard_bytes(path: Path) -> bytes:
    """Contents of a shard; empty if it is missing, which no digest of a shard fits."""
    with disk.disk_errors(f"read {disk.place(path)}", path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            # Opening the folder makes an NFS client look for new entries before the next try.
            listing(path.parent)
            return b""
