"""The committed heads whose attention a report shows, each asked about vectors that no store holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from manifests.store import StageStore
from manifests.types import Cell, Status
from pipeline.cell_data import cell_artifacts
from pipeline.committed import Committed, answers_of, largest
from pipeline.graph import Node
from pipeline.head import load_probe
from pipeline.workspace import Workspace
from stages.base import StageData
from stages.fusion.settings import FusionSettings
from stages.methods import ASKED, sees_masks, views_of
from stages.probes.linear import LinearProbe
from stages.probes.stage import Probes
from stages.views import CONTROLS

UNMASKED: Final = "original"


@dataclass(frozen=True, slots=True)
class AttendedHead:
    """One committed probe of one view."""

    node: Node
    cell: Cell
    view: str
    """View of the images that its vectors are of."""
    classes: tuple[str, ...]
    """Class names in the order of the class index, K."""
    stage: Probes
    probe: LinearProbe
    attributes: Mapping[str, Any]
    """Of the group of its embeddings."""
    artifacts: Mapping[str, Path]
    """Folders of the fusion and texts that it reads."""
    told: Mapping[tuple[str, int], str]
    """Class that its committed predictions name, by drop and row."""

    def logits(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logits of the K classes, (m, K), from unit vectors of its view, (m, D).

        Raises
        ------
        StoreError
            If the bank of class texts does not fit.
        ValueError
            If the weights of the fusion do not go together.
        """
        n = len(vectors)
        data = StageData(
            rows=(),
            drops=(),
            status=np.full(n, Status.OK, np.uint8),
            arrays={"image": vectors[:, None]},
            attributes={**self.attributes, "views": [self.view]},
            artifacts=self.artifacts,
        )
        return self.probe.logits(self.stage.features(self.cell.method, data, np.arange(n)))

    def predicted(self, vectors: NDArray[np.floating]) -> list[str]:
        """Class name for each vector, m."""
        return [self.classes[index] for index in self.logits(vectors).argmax(axis=1).tolist()]


def attended_cells(workspace: Workspace, committed: Committed) -> list[tuple[Node, Cell]]:
    """For each mask policy one method that sees masks, and once the unmasked image: each its largest, first cell."""
    found: list[tuple[Node, Cell]] = []
    for key, cells in committed.cells.items():
        node = workspace.nodes[key]
        if node.stage == "probes" and not node.backbone:
            first = not any(cell.method == UNMASKED for _, cell in found)
            methods = [_masked(node, workspace, cells), UNMASKED if first else ""]
            found += [(node, cell) for method in methods if (cell := largest(cells, method))]
    return found


def _masked(node: Node, workspace: Workspace, cells: Iterable[Cell]) -> str:
    """The first of `ASKED`, whose answers the gallery tells; without any of them, another of one view that sees masks.

    Empty where there is none that sees the right masks; no other method stands in for one that the gallery tells of.
    """
    methods = dict.fromkeys(cell.method for cell in cells)
    own = [m for m in methods if sees_masks(m) and len(views := _views(node, workspace, m)) == 1 and not _wrong(views)]
    asked = [method for method in ASKED if method in methods]
    return next((method for method in (asked[:1] or own) if method in own), "")


def _views(node: Node, workspace: Workspace, method: str) -> tuple[str, ...]:
    fusion = cast("FusionSettings", workspace.nodes[node.inputs["fusion"]].settings)
    return views_of(method, fusion.view)


def _wrong(views: Iterable[str]) -> bool:
    return any(control in view for view in views for control in CONTROLS)


def load_attended(workspace: Workspace, committed: Committed, node: Node, cell: Cell) -> AttendedHead:
    """Load a committed probe of one view; no image vector is read.

    Raises
    ------
    StoreError
        If it, or what it reads, is not what was committed.
    ValueError
        If shapes or types do not go together.
    """
    embeddings = workspace.nodes[node.inputs["embeddings"]]
    return AttendedHead(
        node=node,
        cell=cell,
        view=_views(node, workspace, cell.method)[0],
        classes=workspace.classes,
        stage=cast("Probes", workspace.cell_stage(node)),
        probe=load_probe(workspace, node, cell),
        attributes=StageStore.load(workspace.root(embeddings, workspace.drops[0].drop_id)).attributes,
        artifacts=cell_artifacts(workspace, node, cell),
        told=answers_of(workspace, committed, node, cell),
    )
