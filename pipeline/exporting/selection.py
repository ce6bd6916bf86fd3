"""What an export shows: the committed units of one complete map stage, and the images of one split in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from manifests.commits import read_rows
from manifests.drops import Drop
from manifests.errors import InventoryError, UsageError
from manifests.store import StageStore
from manifests.types import Chunk, ChunkArrays, ImageRow, Split, Status
from pipeline.graph import Node, served_by
from pipeline.logs import counter
from pipeline.plan import incomplete_inputs, plan_map
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Unit:
    """One committed chunk, and which of its images are exported."""

    drop: Drop
    chunk: Chunk
    store: StageStore
    number: int
    """Position of its first row among the rows of all drops, from 0."""
    chosen: tuple[tuple[int, ImageRow], ...]
    """Position in the chunk, and row, of each exported image; withdrawn ones and other splits are left out."""

    @property
    def name(self) -> str:
        """Drop and unit, safe as a file name."""
        return f"{self.drop.drop_id}-{self.chunk.unit}"

    def read(self, *names: str) -> ChunkArrays:
        """Arrays of the whole chunk, each byte as it was committed.

        Raises
        ------
        StoreError
            If a shard is damaged.
        """
        return read_rows(self.store, self.chunk, names)

    def statuses(self) -> dict[int, str]:
        """Status of every chosen image, in lower case, by its position in the chunk."""
        stored = self.read("status")["status"]
        return {index: status_word(stored[index]) for index, _ in self.chosen}


@dataclass(frozen=True, slots=True)
class Selection:
    """One complete map node of a workspace, and a split or all images."""

    workspace: Workspace
    node: Node
    split: Split | None

    def units(self) -> Iterator[Unit]:
        """Every committed chunk in the order of drops and rows, also one of whose images none is chosen."""
        number, total = 0, sum(drop.n_items for drop in self.workspace.drops)
        count = counter("export")
        for drop in self.workspace.drops:
            store = StageStore.load(self.workspace.root(self.node, drop.drop_id))
            for chunk in drop.chunks():
                rows = enumerate(self.workspace.chunk_rows(chunk))
                chosen = tuple((index, row) for index, row in rows if self._takes(row))
                yield Unit(drop, chunk, store, number, chosen)
                number += len(chunk)
                count(number, total)

    def rows(self) -> Iterator[tuple[Drop, ImageRow]]:
        """Every chosen image with its drop, in order."""
        for drop in self.workspace.drops:
            yield from ((drop, row) for row in self.workspace.rows(drop.drop_id) if self._takes(row))

    def _takes(self, row: ImageRow) -> bool:
        return row.image_id not in self.workspace.withdrawn and self.split in (None, row.split)


def select_export(workspace: Workspace, stages: tuple[str, ...], stage: str | None, split: str | None) -> Selection:
    """Choose what an export shows.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    stages : tuple[str, ...]
        Stages that this export can show; the first is taken where none is named.
    stage : str, optional
        One of them, for its main branch, or the key of a node, such as `masks[none]`.
    split : str, optional
        `train`, `val`, `test` or `none`; all images where it is not given.

    Raises
    ------
    UsageError
        If the configuration has no such node, or there is no such split.
    InventoryError
        If a unit of the node is not committed, or was made from results that have changed since.
    """
    if split is not None and split not in list(Split):
        raise UsageError(f"There is no split {split!r}.", f"Splits: {', '.join(Split)}.")
    wanted = stage or stages[0]
    nodes = [node for node in workspace.nodes.values() if node.stage in stages]
    found = [node for node in nodes if wanted in (node.key, node.stage)]
    if not found:
        raise UsageError(
            f"This export cannot show {wanted!r}.",
            f"--stage can be: {', '.join(dict.fromkeys(name for n in nodes for name in (n.stage, n.key))) or 'none'}.",
        )
    _check_complete(workspace, found[0])
    return Selection(workspace, found[0], Split(split) if split else None)


def _check_complete(workspace: Workspace, node: Node) -> None:
    lacking = incomplete_inputs(workspace, node)
    if units := plan_map(workspace, node):
        lacking[node.key] = len(units)
    if lacking:
        told = ", ".join(f"{count} units of {key}" for key, count in lacking.items())
        raise InventoryError(
            f"{node.key} is not complete: {told} are missing or out of date.",
            f"Run first, with the same configuration: pipeline run --stage {served_by(node)}",
        )


def file_stem(drop: Drop, row: ImageRow) -> str:
    """Name of an image's file in an export: its id, and for a further copy of the same bytes drop and row as well."""
    return f"{row.image_id}-{drop.drop_id}-{row.row}" if row.duplicate_of else row.image_id


def status_word(status: int) -> str:
    """A stored status in lower case: `ok`, `failed`, `fallback`."""
    return Status(int(status)).name.lower()


def count_statuses(selection: Selection) -> dict[str, int]:
    """Chosen images by status."""
    counts: Counter[str] = Counter()
    for unit in selection.units():
        counts.update(unit.statuses().values())
    return dict(sorted(counts.items()))
