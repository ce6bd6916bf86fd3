"""The fitted head of one cell of a study: which one is meant, that it is committed, and what it was fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from manifests.commits import Commit
from manifests.errors import InventoryError, UsageError
from manifests.integrity import checked_artifacts
from manifests.types import Cell
from pipeline.cell_data import cell_data
from pipeline.graph import Node
from pipeline.plan import plan_map, stale_cell
from pipeline.workspace import Workspace
from stages.base import StageData
from stages.methods import views_of
from stages.probes.linear import LinearProbe
from stages.probes.stage import Probes
from stages.splits import Indices, train_indices


@dataclass(frozen=True, slots=True)
class Head:
    """A committed probe with all that made it."""

    workspace: Workspace
    """The study's."""
    node: Node
    cell: Cell
    commit: Commit
    stage: Probes
    """Says what the probe sees of an image."""
    probe: LinearProbe
    data: StageData
    """All images of the study."""
    subset: Indices
    """Positions of the images that it was fitted on, (n_train,)."""

    @property
    def name(self) -> str:
        """`probes[union]/medfocus-100-0`."""
        return f"{self.node.key}/{self.cell.unit}"

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the class index."""
        return self.workspace.classes

    @property
    def embeddings(self) -> Node:
        """The node of the image vectors."""
        return self.workspace.nodes[self.node.inputs["embeddings"]]


def load_head(workspace: Workspace, name: str | None) -> Head:
    """Find a committed cell of the probes and load it; nothing is computed.

    Parameters
    ----------
    workspace : Workspace
        The study.
    name : str, optional
        `medfocus-100-0`, or `probes[box]/medfocus-100-0` for the cell of another mask policy or backbone than the
        first that has it. By default the first method but `constant`, at the largest training subset and first seed.

    Raises
    ------
    UsageError
        If the configuration has no such cell, or its method cannot be asked about one image.
    InventoryError
        If it is not committed.
    DamagedError
        If it is not what was committed.
    """
    node, cell = find_cell(workspace, name)
    commit = workspace.commit(node, cell.unit)
    if commit is None or stale_cell(workspace, node, cell):
        raise not_fitted(workspace, node, f"{node.key}/{cell.unit} is not fitted")
    probe = load_probe(workspace, node, cell)
    data = cell_data(workspace, node, cell, "cpu")
    return Head(
        workspace,
        node,
        cell,
        commit,
        stage=cast("Probes", workspace.cell_stage(node)),
        probe=probe,
        data=data,
        subset=train_indices(data, cell),
    )


def load_probe(workspace: Workspace, node: Node, cell: Cell) -> LinearProbe:
    """Load the probe of a committed cell.

    Raises
    ------
    StoreError
        If it is not committed, or not what was committed.
    """
    return LinearProbe.load(checked_artifacts(workspace.root(node), cell.unit) / "coef.safetensors")


def find_cell(workspace: Workspace, name: str | None) -> tuple[Node, Cell]:
    """The node and cell that a name means; see `load_head`."""
    key, _, unit = (name or "").rpartition("/")
    nodes = [node for node in workspace.nodes.values() if node.stage == "probes" and key in ("", node.key)]
    for node in nodes:
        if lacking := _incomplete(workspace, node):
            raise not_fitted(workspace, node, f"{node.key} waits for {', '.join(lacking)}")
        cells = [cell for cell in workspace.cell_stage(node).cells() if cell.method != "constant"]
        chosen = [cell for cell in cells if cell.unit == unit] if name else cells
        if chosen:
            first = [cell for cell in chosen if cell.method == chosen[0].method]
            return node, _checked(max(first, key=lambda cell: (cell.fraction, cell.shots)))
    known = [node.key for node in workspace.nodes.values() if node.stage == "probes"]
    raise UsageError(
        f"This configuration has no cell {name!r} that can predict.",
        f"A cell is such as medfocus-100-0 or roi-4shot-0, or one of these and a cell: {', '.join(known)}",
    )


def _checked(cell: Cell) -> Cell:
    if any("shuffled" in view for view in views_of(cell.method)):
        raise UsageError(
            f"{cell.method} shows an image under the mask of another, so it has no answer for one image.",
            "Choose another method: --cell METHOD-100-0",
        )
    return cell


def _incomplete(workspace: Workspace, node: Node) -> list[str]:
    """Map nodes that a cell node leads back to and that lack chunks."""
    below = [workspace.nodes[key] for key in node.inputs.values() if workspace.nodes[key].is_map]
    lacking = [key for source in below for key in _incomplete(workspace, source)]
    return list(dict.fromkeys(lacking + [source.key for source in below if plan_map(workspace, source)]))


def not_fitted(workspace: Workspace, node: Node, what: str) -> InventoryError:
    """Error that names the command which fits a cell."""
    stage = "baselines" if node.backbone else "probes"
    return InventoryError(
        f"{what} in the data set {workspace.paths.name!r} under this configuration.",
        f"Run first, with the same settings: pipeline run --stage {stage} --dataset {workspace.paths.name}",
    )
