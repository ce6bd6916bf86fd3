"""Embeddings as a Parquet file: one row an image, one column of float32 vectors a view, the model's card beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from manifests.fingerprint import canonical_json
from pipeline.exporting.folder import ExportFolder
from pipeline.exporting.selection import Selection, Unit, count_statuses

if TYPE_CHECKING:
    import pyarrow as pa

FILE = "embeddings.parquet"
METADATA: Final = b"medfocus"
"""Key of the schema's metadata whose value is JSON: where the vectors come from."""
TOLD: Final = ("views", "card", "features", "resize", "fingerprint", "stage", "upstream")
"""Attributes of the store that say what its vectors are."""


def write_parquet(selection: Selection, folder: ExportFolder) -> dict[str, int]:
    """Write embeddings.parquet, a row group a unit; the vectors of an image that failed are null.

    Returns
    -------
    dict[str, int]
        Images by status.
    """
    import pyarrow.parquet as pq

    if not folder.has(FILE):
        writer: Any = None
        with folder.replacing(FILE) as partial:
            try:
                for unit in selection.units():
                    if writer is None:
                        writer = pq.ParquetWriter(partial, _schema(selection, unit))
                    if unit.chosen:
                        writer.write_table(_table(unit, writer.schema))
            finally:
                if writer is not None:
                    writer.close()
    return count_statuses(selection)


def _schema(selection: Selection, unit: Unit) -> pa.Schema:
    import pyarrow as pa

    store, words = unit.store, pa.string()
    told = {name: store.attributes[name] for name in TOLD}
    told |= {"dataset": selection.workspace.paths.name, "node": selection.node.key}
    vector = pa.list_(pa.float32(), store.spec("image").item_shape[1])
    return pa.schema(
        [
            ("image_id", words),
            ("drop", words),
            ("row", pa.int64()),
            ("label", words),
            ("split", words),
            ("group_id", words),
            ("status", words),
            *((view, vector) for view in store.attributes["views"]),
        ],
        metadata={METADATA: canonical_json(told)},
    )


def _table(unit: Unit, schema: pa.Schema) -> pa.Table:
    """One unit's chosen images."""
    import pyarrow as pa

    rows = [row for _, row in unit.chosen]
    positions = [index for index, _ in unit.chosen]
    statuses = list(unit.statuses().values())
    vectors = unit.read("image")["image"][positions]
    failed = np.array([status == "failed" for status in statuses])
    columns: list[Any] = [
        [row.image_id for row in rows],
        [unit.drop.drop_id] * len(rows),
        [row.row for row in rows],
        [row.label for row in rows],
        [row.split.value for row in rows],
        [row.group_id for row in rows],
        statuses,
    ]
    for view in range(vectors.shape[1]):
        values = pa.array(np.ascontiguousarray(vectors[:, view]).reshape(-1))
        columns.append(pa.FixedSizeListArray.from_arrays(values, vectors.shape[2], mask=pa.array(failed)))
    arrays = [pa.array(c, type=f.type) if isinstance(c, list) else c for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
