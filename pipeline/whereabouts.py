"""Where images lie that an earlier source brought, so that they are read from the folder that was just scanned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from manifests.commits import retire
from manifests.drops import load_locations, save_locations
from manifests.errors import ReadError
from manifests.listing import list_folders
from manifests.readers import ImageSource, mask_key
from manifests.types import Chunk, ImageRow, Status
from pipeline.graph import Node
from pipeline.workspace import Workspace

OF_FILES: Final = ("file.", "changed", "mask.changed")
"""How reasons begin that can pass when a file is back."""


def follow(workspace: Workspace, source: Path, files: Mapping[str, str]) -> None:
    """Record where images of drops from other folders lie in this one; ingest follows those of its own folder.

    Parameters
    ----------
    workspace : Workspace
        Of the images without a label; it must not have read its locations yet.
    source : Path
        Folder that was just scanned.
    files : Mapping[str, str]
        image_id of every image in it by its path, of one frame of many `path#frame`.
    """
    root = source.resolve()
    places = {image_id: place for place, image_id in files.items()}
    others = [drop.drop_id for drop in workspace.drops if Path(drop.source_root) != root]
    rows = [row for drop_id in others for row in workspace.rows(drop_id) if row.image_id in places]
    if not rows:
        return
    masks = {image.path: image.mask_path for image in list_folders(root).images}
    found: dict[str, str] = {}
    for row in rows:
        place = places[row.image_id]
        path = place.removesuffix(f"#{row.frame}") if row.is_frame else place
        found[row.image_id] = str(root / path)
        if row.mask_path and masks.get(path):
            found[mask_key(row)] = str(root / masks[path])
    save_locations(workspace.paths, {**load_locations(workspace.paths), **found})


def retire_found(workspace: Workspace, nodes: Sequence[Node], chunks: Sequence[Chunk], wanted: Collection[str]) -> None:
    """Make chunks pending in which a wanted image's file, or its mask's, could not be used and now can be read.

    Parameters
    ----------
    workspace : Workspace
        Whose locations are those of now.
    nodes : Sequence[Node]
        Map nodes, inputs before what needs them.
    chunks : Sequence[Chunk]
        Where to look.
    wanted : Collection[str]
        image_ids.
    """
    for chunk in chunks:
        rows = {row.row: row for row in workspace.chunk_rows(chunk) if row.image_id in wanted}
        commits = [(node, found) for node in nodes if (found := workspace.commit(node, chunk.unit, chunk.drop))]
        outcomes = [item for _, commit in commits for item in commit.outcomes() if item.row in rows]
        lost = {item.row: item.status for item in outcomes if item.reason.startswith(OF_FILES)}
        source = workspace.image_source(chunk.drop) if lost else None
        if source and any(_is_back(source, rows[row], status) for row, status in lost.items()):
            # What comes last goes first: if this is killed halfway, the cause still stands for the next try.
            for node, commit in reversed(commits):
                retire(workspace.root(node, chunk.drop), chunk.unit, commit.attempt)
            workspace.forget_plans()


def _is_back(source: ImageSource, row: ImageRow, status: int) -> bool:
    try:
        source.raw(row)
        if status == Status.FALLBACK:
            source.read_mask(row)
    except ReadError:
        return False
    return True
