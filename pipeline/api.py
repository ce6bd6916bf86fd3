"""A study in Python: rows as pandas, masks as dask, embeddings as numpy, each byte checked against its commit.

But for `predict`, nothing is computed or written; what a killed run left halfway is completed by whoever looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.errors import UsageError
from manifests.store import StageStore
from manifests.types import Chunk, Split, Status
from pipeline.commands import open_workspace
from pipeline.opened import OpenedStudy
from stages.images import Placement, unletterbox

if TYPE_CHECKING:
    import dask.array

__all__ = ["Embeddings", "OpenedStudy", "embeddings", "images", "masks", "native_masks", "open_store", "predict"]

COLUMNS = ("image_id", "label", "split", "group_id", "width", "height", "frame", "duplicate_of")
"""What `images` shows of a row, beside its drop and number; no path and no file name."""


class Embeddings(NamedTuple):
    """Vectors of one view and the images that they are of, in the same order."""

    vectors: NDArray[np.float32]
    """(N, D), unit length; NaN where the image failed."""
    rows: pd.DataFrame
    """N rows, as `images` gives them."""


def open_store(
    workdir: str | Path,
    dataset: str | None = None,
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    preset: str | None = None,
) -> OpenedStudy:
    """Open a data set under the configuration of the runs that are to be read.

    Parameters
    ----------
    workdir : str or Path
        The work folder.
    dataset : str, optional
        Name of the data set; needed where there are several.
    config : str or Path, optional
        TOML file, as for `pipeline run --config`.
    overrides : Sequence[str]
        `section.key=value`, as for `pipeline run --set`.
    preset : str, optional
        `embedded` or `paper`.

    Raises
    ------
    InventoryError
        If there is no such data set, or it has no drop.
    ConfigError
        If the configuration is wrong.
    """
    file = Path(config) if config is not None else None
    return OpenedStudy(open_workspace(Path(workdir), dataset, (file, overrides, preset)))


def images(study: OpenedStudy, *, split: str | None = None) -> pd.DataFrame:
    """One row an image, without withdrawn ones, and what became of it in every map stage.

    Parameters
    ----------
    study : OpenedStudy
        From `open_store`.
    split : str, optional
        Only images of `train`, `val`, `test` or `none`.

    Returns
    -------
    DataFrame
        `drop`, `row`, `COLUMNS`, and a column a map stage (`masks[union]`): ok, fallback, failed, or absent.

    Raises
    ------
    UsageError
        If there is no such split.
    """
    places = study.places(split)
    told: dict[str, list[Any]] = {"drop": [p.drop.drop_id for p in places], "row": [p.row.row for p in places]}
    told |= {
        name: [str(v) if isinstance(v, Split) else v for v in (getattr(p.row, name) for p in places)]
        for name in COLUMNS
    }
    for node in study.workspace.nodes.values():
        if node.is_map:
            became = study.outcomes(node)
            told[node.key] = [became.get((p.drop.drop_id, p.row.row), Status.ABSENT).name.lower() for p in places]
    return pd.DataFrame(told)


def masks(study: OpenedStudy, *, policy: str | None = None, split: str | None = None) -> dask.array.Array:
    """Masks on the canvas, read when they are computed, a chunk of the store at a time.

    Parameters
    ----------
    study : OpenedStudy
        From `open_store`.
    policy : str, optional
        Mask policy; the main one by default.
    split : str, optional
        Only images of this split.

    Returns
    -------
    dask.array.Array of bool, (N, S, S)
        In the order of `images(study, split=split)`; all False where the image failed. Where a mask was useless, which
        `images` tells as `fallback`, it is that of the whole image.

    Raises
    ------
    UsageError
        If there is no such policy or split.
    StoreError
        If chunks are not committed; on computing, if one no longer is, or is damaged.
    """
    import dask.array
    from dask import delayed

    node = study.node("masks", policy)
    study.require_complete(node)
    blocks, read = [], delayed(_read_masks, pure=False)
    for drop in study.workspace.drops:
        store = StageStore.load(study.workspace.root(node, drop.drop_id))
        spec = store.spec("mask")
        for chunk in drop.chunks():
            shape = (len(chunk), *spec.item_shape)
            blocks.append(dask.array.from_delayed(read(store, chunk), shape, np.dtype(spec.dtype)))
    whole = dask.array.concatenate(blocks)
    wanted = [place.position for place in study.places(split)]
    return whole if wanted == list(range(len(whole))) else whole[wanted]


def native_masks(
    study: OpenedStudy, *, policy: str | None = None, split: str | None = None
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Masks in the images' own pixels, one after another; images that failed are left out.

    Parameters
    ----------
    study : OpenedStudy
        From `open_store`.
    policy : str, optional
        Mask policy; the main one by default.
    split : str, optional
        Only images of this split.

    Yields
    ------
    tuple[str, ndarray of bool, (height, width)]
        image_id and mask, in the order of `images(study, split=split)`.

    Raises
    ------
    UsageError
        If there is no such policy or split.
    StoreError
        If chunks are not committed or damaged.
    """
    node = study.node("masks", policy)
    study.require_complete(node)
    wanted = {(place.drop.drop_id, place.row.row) for place in study.places(split)}
    for drop, chunk in study.chunks():
        rows = [r for r in study.workspace.chunk_rows(chunk) if (drop.drop_id, r.row) in wanted]
        store = StageStore.load(study.workspace.root(node, drop.drop_id))
        arrays = read_rows(store, chunk, ("mask", "placement", "status")) if rows else {}
        for row in rows:
            at = row.row - chunk.start
            if arrays["status"][at] != Status.FAILED:
                placement = Placement.of(arrays["placement"][at])
                yield row.image_id, unletterbox(arrays["mask"][at], placement, row.height, row.width)


def embeddings(
    study: OpenedStudy, view: str = "original", *, policy: str | None = None, split: str | None = None
) -> Embeddings:
    """Vectors of one view of every image.

    Parameters
    ----------
    study : OpenedStudy
        From `open_store`.
    view : str
        One of `study.views()`.
    policy : str, optional
        Mask policy; the main one by default.
    split : str, optional
        Only images of this split.

    Raises
    ------
    UsageError
        If there is no such view, policy or split.
    StoreError
        If chunks are not committed or damaged.
    """
    node, views = study.node("embeddings", policy), study.views(policy)
    if view not in views:
        raise UsageError(
            f"{node.key} has no view {view!r}; it has: {', '.join(views)}.",
            "Name one of these, or add it to embeddings.views and run.",
        )
    study.require_complete(node)
    parts = []
    for drop, chunk in study.chunks():
        store = StageStore.load(study.workspace.root(node, drop.drop_id))
        parts.append(read_rows(store, chunk, ("image",))["image"][:, views.index(view)])
    vectors: NDArray[np.float32] = np.concatenate(parts)
    return Embeddings(vectors[[p.position for p in study.places(split)]], images(study, split=split))


def predict(study: OpenedStudy, source: str | Path, cell: str | None = None, *, names: bool = False) -> pd.DataFrame:
    """Ask a fitted head about images without a label, as `pipeline predict` does; writes no table and no picture.

    Parameters
    ----------
    study : OpenedStudy
        From `open_store`.
    source : str or Path
        Folder of images, which are ingested beside the study and go through its stages.
    cell : str, optional
        `medfocus-100-0`, or `probes[box]/medfocus-100-0`; by default as in `pipeline.head.load_head`.
    names : bool
        One row a file, with its path in the source, which may name a patient; else one row an image.

    Returns
    -------
    DataFrame
        Columns are the keys of a line of `predictions.jsonl`; see docs/predict.md.

    Raises
    ------
    UsageError
        If there is no such cell, or its method cannot be asked about one image.
    InventoryError
        If the cell is not committed, or the source cannot be used.
    """
    from pipeline.predict import PredictOptions, ask
    from pipeline.prediction_files import record_of

    asked = ask(study.workspace, PredictOptions(Path(source), cell, names=names))
    return pd.DataFrame([record_of(prediction, asked.about, names=names) for prediction in asked.predictions])


def _read_masks(store: StageStore, chunk: Chunk) -> NDArray[Any]:
    return read_rows(store, chunk, ("mask",))["mask"]
