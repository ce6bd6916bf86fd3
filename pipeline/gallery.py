"""Pictures for the report's gallery, from the committed masks and, where they can still be read, the source files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.drops import Drop
from manifests.errors import ReadError
from manifests.readers import ImageSource
from manifests.store import StageStore
from manifests.types import ImageRow, Split, Status
from pipeline.committed import Committed, predictions
from pipeline.graph import Node
from pipeline.workspace import Workspace
from stages.images import letterbox
from stages.report.data import GalleryItem

MOST_PER_CLASS = 4
"""Test images of one class under one policy."""
MOST = 240
"""Pictures of a page in all, unless there are more pairs of class and policy; about 20 kB each."""
ARRAYS = ("mask", "masked_image", "status")


@dataclass(frozen=True, slots=True)
class Pictures:
    """The gallery, and what could not be shown in it."""

    items: Sequence[GalleryItem]
    unreadable: Mapping[str, int]
    """Pictures whose source file could not be read, by reason."""


def take_pictures(workspace: Workspace, nodes: Sequence[Node], committed: Committed) -> Pictures:
    """A few test images of every class under every policy, with what the largest probe said of them.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    nodes : Sequence[Node]
        Masks nodes whose every chunk is committed.
    committed : Committed
        Where predictions are.

    Returns
    -------
    Pictures
        An image whose source file cannot be read is shown as the image encoder saw it, without the original.
    """
    items: list[GalleryItem] = []
    unreadable: Counter[str] = Counter()
    most = max(1, min(MOST_PER_CLASS, MOST // max(1, len(nodes) * len(workspace.classes))))
    for node in nodes:
        predicted = predictions(workspace, committed, node.policy)
        for drop, row, arrays in _chosen(workspace, node, most):
            original = _original(workspace.image_source(drop.drop_id), row, arrays["mask"].shape[-1], unreadable)
            items.append(
                GalleryItem(
                    image=original,
                    mask=arrays["mask"],
                    masked=arrays["masked_image"],
                    label=row.label,
                    predicted=predicted.get(row.image_id, ""),
                    status=Status(int(arrays["status"])).name.lower(),
                    caption=row.image_id,
                    policy=node.policy,
                )
            )
    return Pictures(tuple(items), dict(sorted(unreadable.items())))


def _chosen(workspace: Workspace, node: Node, most: int) -> Iterator[tuple[Drop, ImageRow, dict[str, Any]]]:
    """The first test images of every class that did not fail: the same ones under every policy."""
    taken: Counter[str] = Counter()
    for drop in workspace.drops:
        store = StageStore.load(workspace.root(node, drop.drop_id))
        for chunk in drop.chunks():
            rows = workspace.chunk_rows(chunk)
            wanted = [i for i, row in enumerate(rows) if row.split == Split.TEST and taken[row.label] < most]
            arrays = read_rows(store, chunk, ARRAYS) if wanted else {}
            for i in wanted:
                if taken[rows[i].label] < most and arrays["status"][i] != Status.FAILED:
                    taken[rows[i].label] += 1
                    yield drop, rows[i], {name: np.asarray(array[i]) for name, array in arrays.items()}


def _original(source: ImageSource, row: ImageRow, side: int, unreadable: Counter[str]) -> NDArray[np.uint8] | None:
    try:
        image: NDArray[np.uint8] = letterbox(source.read(row), side)[0]
    except ReadError as error:
        unreadable[error.reason] += 1
        return None
    return image
