"""A picture of each predicted image: its mask drawn on it, and what was said of it below."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.commits import read_rows
from manifests.disk import make_private, write_atomic
from manifests.errors import ReadError
from manifests.forgetting import WITHDRAWALS
from manifests.layout import EXPORT_RECORD
from manifests.types import Chunk, ChunkArrays, ImageRow, Status
from pipeline.answers import Prediction
from pipeline.arrivals import Arrivals
from pipeline.exporting.folder import SCHEMA
from pipeline.graph import Node
from stages.images import Placement, letterbox
from stages.prediction.picture import captioned

ARRAYS = ("mask", "placement", "status")


def write_overlays(folder: Path, arrivals: Arrivals, masks: Node, predictions: Sequence[Prediction]) -> int:
    """Write `<image_id>.png` for each image with an answer whose file can still be read; return how many.

    The folder is marked as an export, so that no ingest takes its pictures for images.

    Parameters
    ----------
    folder : Path
        Created for its owner alone if absent.
    arrivals : Arrivals
        Where the images and masks are.
    masks : Node
        Node of the masks that the head saw.
    predictions : Sequence[Prediction]
        What was said of them.

    Raises
    ------
    StoreError
        If the disk is full, read-only, forbidden or failing.
    """
    withdrawals = sorted(record.withdrawal_id for record in arrivals.workspace.withdrawals)
    record = {**SCHEMA, "kind": "overlays", WITHDRAWALS: withdrawals}
    write_atomic(make_private(folder) / EXPORT_RECORD, json.dumps(record, indent=1) + "\n")
    said = {prediction.image_id: prediction for prediction in predictions if prediction.answer}
    written = 0
    for chunk, row, arrays in _shown(arrivals, masks, set(said)):
        try:
            image = arrivals.workspace.image_source(chunk.drop).read(row)
        except ReadError:
            continue
        picture = _picture(image, arrays, _lines(said[row.image_id]))
        write_atomic(folder / f"{row.image_id}.png", _png(picture))
        written += 1
    return written


def _shown(arrivals: Arrivals, masks: Node, wanted: set[str]) -> Iterator[tuple[Chunk, ImageRow, ChunkArrays]]:
    """Rows with an answer, a chunk of masks at a time."""
    start = 0
    for chunk in arrivals.chunks:
        rows = arrivals.workspace.chunk_rows(chunk)
        here = [i for i, row in enumerate(rows) if arrivals.places.get(row.image_id) == start + i]
        here = [i for i in here if rows[i].image_id in wanted]
        arrays = read_rows(arrivals.workspace.store(masks, chunk.drop), chunk, ARRAYS) if here else {}
        for i in here:
            yield chunk, rows[i], {name: np.asarray(array[i]) for name, array in arrays.items()}
        start += len(rows)


def _picture(image: NDArray[np.uint8], arrays: ChunkArrays, lines: tuple[str, ...]) -> NDArray[np.uint8]:
    mask = arrays["mask"]
    canvas, _ = letterbox(image, len(mask))
    has_mask = arrays["status"] == Status.OK and mask.any()
    return captioned(canvas, mask if has_mask else None, Placement.of(arrays["placement"]), lines)


def _lines(prediction: Prediction) -> tuple[str, ...]:
    answer = prediction.answer
    if answer is None:
        return ()
    area = "no mask" if prediction.mask_status != "ok" else f"mask {100 * (prediction.mask_area or 0):.1f} %"
    unlike = "; UNLIKE training images" if answer.unlike else ""
    return f"{answer.predicted} {100 * answer.calibrated:.0f} %", f"{area}{unlike}"


def _png(picture: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()
