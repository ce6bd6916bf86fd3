"""Images of the report's map, from the committed vectors and the thumbnails that ingest kept."""

from __future__ import annotations

import numpy as np

from manifests.drops import load_looks
from manifests.looks import THUMBNAIL_PX
from manifests.rows import read_rows
from manifests.store import StageStore
from manifests.types import ImageRow, Split, Status
from pipeline.committed import Committed
from pipeline.workspace import Workspace
from stages.report.embedding_map import MapPoints

MOST = 1500
"""Images of a map: test images first, in the order of their digests."""


def take_points(workspace: Workspace, committed: Committed) -> MapPoints | None:
    """Vectors of the unmasked image and of what the fusion sees, under the main mask policy.

    Returns
    -------
    MapPoints or None
        None if the embeddings are not complete, or fewer than three images have vectors.
    """
    nodes = (workspace.nodes[key] for key in committed.chunks)
    node = next((n for n in nodes if n.stage == "embeddings" and not n.backbone), None)
    if node is None:
        return None
    stores = [StageStore.load(workspace.root(node, drop.drop_id)) for drop in workspace.drops]
    known = list(stores[0].attributes["views"])
    views = [view for view in dict.fromkeys(("original", workspace.config.fusion.view)) if view in known]
    rows: list[ImageRow] = []
    vectors, thumbnails = [], []
    for drop, store in zip(workspace.drops, stores, strict=True):
        looks = load_looks(workspace.paths, drop)
        for chunk in drop.chunks():
            arrays = read_rows(store, chunk, ("image", "status"))
            for index, row in enumerate(workspace.chunk_rows(chunk)):
                usable = arrays["status"][index] in (Status.OK, Status.FALLBACK)
                usable = usable and bool(np.isfinite(arrays["image"][index]).all())
                if usable and row.image_id not in workspace.withdrawn:
                    rows.append(row)
                    vectors.append(np.asarray(arrays["image"][index]))
                    blank = np.zeros((THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
                    thumbnails.append(looks.thumbnails[row.row] if looks else blank)
    order = sorted(range(len(rows)), key=lambda i: (rows[i].split != Split.TEST, rows[i].sha256, rows[i].frame))[:MOST]
    if len(order) < 3 or not views:
        return None
    stacked = np.stack([vectors[i] for i in order])
    return MapPoints(
        images=[rows[i].image_id for i in order],
        labels=[rows[i].label for i in order],
        splits=[rows[i].split.value for i in order],
        groups=[rows[i].group_id for i in order],
        vectors={view: stacked[:, known.index(view)] for view in views},
        thumbnails=np.stack([thumbnails[i] for i in order]),
        n_all=len(rows),
    )
