"""Images without a label on their way through both stages: a drop of their own, the study's stages, what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.errors import ExitCode, InterruptedRunError, StoreError
from manifests.ingest import IngestOptions, ingest
from manifests.types import Chunk, ImageRow, Status
from manifests.withdrawals import share_withdrawals
from pipeline.cell_data import Features, Told, collect
from pipeline.graph import Node, select
from pipeline.head import Head
from pipeline.logs import counter
from pipeline.plan import plan_map
from pipeline.runner import Runner, RunOptions
from pipeline.whereabouts import follow, retire_found
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The images of one source and how far they came; rows are those of all chunks with such an image, N in all."""

    workspace: Workspace
    """Of the images without a label, under the study's configuration."""
    files: Mapping[str, str]
    """image_id of every image of the source by its path, of one frame of many `path#frame`."""
    chunks: tuple[Chunk, ...]
    """Chunks with an image of the source that are committed."""
    rows: tuple[ImageRow, ...]
    places: Mapping[str, int]
    """Position of each image of the source by image_id; none for one whose chunk failed for good."""
    features: Features | None
    """What the head's inputs say; None if there is no row."""
    mask_area: NDArray[np.float32]
    """Share of the image, (N,); NaN without a mask."""
    mask_status: NDArray[np.uint8]
    """`Status`, (N,)."""
    reasons: Mapping[tuple[str, int], str]
    """Why an image failed or fell back in the first stage where it did, by drop and row."""

    def drop_of(self) -> list[str]:
        """Drop of each row, N."""
        return [chunk.drop for chunk in self.chunks for _ in range(len(chunk))]


def take_in(head: Head, source: Path, private: frozenset[str]) -> Arrivals:
    """Ingest a source beside the study, complete the stages that the head needs, and read what they committed.

    Parameters
    ----------
    head : Head
        Whose image vectors are wanted.
    source : Path
        Folder of images; its folders' names mean nothing.
    private : frozenset[str]
        Arguments that the run's record leaves out.

    Raises
    ------
    InventoryError
        If the source cannot be used.
    InterruptedRunError
        If a signal stopped the run; what is finished is committed.
    StoreError
        If a stage would not do the same as in the study.
    """
    study = head.workspace
    paths = study.paths.predictions
    share_withdrawals(study.paths, paths)
    options = IngestOptions(dataset=study.paths.name, labelled=False, reading=study.drops[-1].reading)
    files = ingest(paths, source, options, counter("digests"), counter("pictures")).files
    workspace = Workspace(paths, study.config)
    _check_same(study, workspace, head.embeddings)
    follow(workspace, source, files)
    wanted = frozenset(files.values())
    chunks = _chunks(workspace, wanted)
    retire_found(workspace, _nodes_of(workspace, head.embeddings), chunks, wanted)
    _complete(workspace, head.embeddings, {chunk.drop for chunk in chunks}, source, private)
    return _read(head, Workspace(paths, study.config), files, chunks)


def _check_same(study: Workspace, workspace: Workspace, node: Node) -> None:
    """A map stage's fingerprint knows no image, so it must be the study's."""
    for each in select(tuple(study.nodes.values()), node.key):
        ours, theirs = workspace.fingerprint(workspace.nodes[each.key]), study.fingerprint(each)
        if ours != theirs:
            raise StoreError(
                f"{each.key} has the fingerprint {theirs[:12]} in the study and {ours[:12]} for these images.",
                "A stage's results must not depend on the data set; tell the maintainers.",
            )


def _chunks(workspace: Workspace, wanted: frozenset[str]) -> tuple[Chunk, ...]:
    """Chunks that hold the first row of a wanted image."""
    found: dict[str, Chunk] = {}
    for drop in workspace.drops:
        chunks = drop.chunks()
        for row in workspace.rows(drop.drop_id):
            if row.image_id in wanted:
                found.setdefault(row.image_id, chunks[row.row // drop.chunk_items])
    return tuple(dict.fromkeys(found.values()))


def _complete(workspace: Workspace, node: Node, drops: set[str], source: Path, private: frozenset[str]) -> None:
    for drop_id in sorted(drops):
        if not plan_map(workspace, node, drop_id):
            continue
        moved = not Path(workspace.drop(drop_id).source_root).is_dir()
        options = RunOptions(node.key, drop_id, source=source if moved else None, private=private)
        outcome = Runner(workspace.paths, workspace.config, options).run()
        if outcome.exit_code is ExitCode.INTERRUPTED:
            raise InterruptedRunError("Stopped by a signal.", "Run the same command again to go on.")


def _nodes_of(workspace: Workspace, node: Node) -> list[Node]:
    """A map node and all that it needs, inputs first."""
    return [workspace.nodes[each.key] for each in select(tuple(workspace.nodes.values()), node.key)]


def _read(head: Head, workspace: Workspace, files: Mapping[str, str], chunks: Sequence[Chunk]) -> Arrivals:
    nodes = _nodes_of(workspace, head.embeddings)
    embeddings = nodes[-1]
    pending = {unit.chunk for unit in plan_map(workspace, embeddings)}
    ready = tuple(chunk for chunk in chunks if chunk not in pending)

    def read(node: Node, names: Sequence[str]) -> Told:
        stores = {drop: workspace.store(node, drop) for drop in dict.fromkeys(chunk.drop for chunk in ready)}
        parts = [read_rows(stores[chunk.drop], chunk, names) for chunk in ready]
        return {n: np.concatenate([part[n] for part in parts]) for n in names}, stores[ready[0].drop].attributes

    rows = tuple(row for chunk in ready for row in workspace.chunk_rows(chunk))
    wanted, places = set(files.values()), dict[str, int]()
    for position, row in enumerate(rows):
        if row.image_id in wanted:
            places.setdefault(row.image_id, position)
    masks = workspace.nodes[embeddings.inputs["masks"]]
    shapes = read(masks, ("area_fraction", "status"))[0] if ready else {}
    return Arrivals(
        workspace=workspace,
        files=files,
        chunks=ready,
        rows=rows,
        places=places,
        features=collect(workspace, head.node, head.stage.reads(head.cell), read) if ready else None,
        mask_area=shapes.get("area_fraction", np.zeros(0, np.float32)),
        mask_status=shapes.get("status", np.zeros(0, np.uint8)),
        reasons=_reasons(workspace, nodes, ready),
    )


def _reasons(workspace: Workspace, nodes: Sequence[Node], chunks: Sequence[Chunk]) -> dict[tuple[str, int], str]:
    found: dict[tuple[str, int], str] = {}
    for chunk in chunks:
        commits = [commit for node in nodes if (commit := workspace.commit(node, chunk.unit, chunk.drop))]
        for status in (Status.FAILED, Status.FALLBACK):
            for item in (item for commit in commits for item in commit.outcomes() if item.status == status):
                found.setdefault((chunk.drop, item.row), item.reason)
    return found
