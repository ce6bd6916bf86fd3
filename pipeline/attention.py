"""Where the classifier looked: maps of the report's pictures, and how often they point into a supplied mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from manifests.errors import DamagedError, PipelineError, WeightsError
from manifests.readers import REASONS
from manifests.types import Chunk, ImageRow, Split
from pipeline.attention_heads import AttendedHead, attended_cells, load_attended
from pipeline.attention_maps import AttentionMap, Looker
from pipeline.committed import Committed
from pipeline.gpus import device_here
from pipeline.supplied_masks import SUPPLIED, SuppliedMasks
from pipeline.workspace import Workspace
from stages.attention.pointing import Pointing, pointing
from stages.methods import sees_masks
from stages.report.data import ATTENTION_COLUMNS

if TYPE_CHECKING:
    from stages.models.clip import ClipModel

PREVENTS: Final = (PipelineError, ValueError, RuntimeError, OSError, ImportError)
"""What can go wrong while a model is loaded and asked; no report fails for it."""
OTHERWISE: Final = "asked again, the head answers other than what is committed"

Group = tuple[str, str, str]
"""Mask policy, method and kind of map."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Where the heads of a study looked."""

    maps: Sequence[AttentionMap]
    """Of the images that were wanted."""
    scores: pd.DataFrame
    """One row a policy, method and kind of map, with `ATTENTION_COLUMNS`; none if no test image has a supplied mask.

    What is shown the supplied mask itself is not among them."""
    left_out: Sequence[str]
    """One sentence for each thing that is missing, with the reason."""


def take_attention(
    workspace: Workspace, committed: Committed, wanted: Mapping[str, Set[int]], supplied: SuppliedMasks
) -> Attention:
    """Look again at some test images with the heads that a study has committed; nothing of the study is written.

    For each mask policy the first of `ASKED` that is committed (else another method of one view that sees masks), and
    once `original`; each as it was fitted on its largest training subset with the first seed.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    committed : Committed
        What `look_up` found.
    wanted : Mapping[str, Set[int]]
        Rows of test images whose maps are returned, by drop.
    supplied : SuppliedMasks
        What maps are compared with.

    Returns
    -------
    Attention
        What prevents a map is said in `left_out`, never raised.
    """
    heads, left_out = _heads(workspace, committed)
    if not heads:
        return Attention((), _score_table({}), left_out)
    try:
        taking = _Taking(Looker(workspace, _model(workspace)), heads, supplied)
    except PREVENTS as error:
        return Attention((), _score_table({}), (*left_out, f"There are no maps: {_said(error)}."))
    for chunk, rows, at in _places(workspace, wanted, supplied):
        taking.take(chunk, rows, at, wanted.get(chunk.drop, set()))
    return Attention(tuple(taking.maps), _score_table(taking.pointed), (*left_out, *taking.left_out()))


class _Taking:
    """What has been collected so far, a chunk at a time."""

    def __init__(self, looker: Looker, heads: Sequence[AttendedHead], supplied: SuppliedMasks) -> None:
        self.maps: list[AttentionMap] = []
        self.pointed: dict[Group, list[Pointing]] = defaultdict(list)
        self._looker, self._heads, self._supplied = looker, heads, supplied
        self._told = {(head.node.policy, head.cell.method): head.told for head in heads}

    def take(self, chunk: Chunk, rows: Sequence[ImageRow], at: Sequence[int], wanted: Set[int]) -> None:
        """Maps of some images of a chunk, and how those with a supplied mask point."""
        try:
            shown = [i for i in at if rows[i].row in wanted]
            compared = self._looker.maps([head for head in self._heads if not _sees_supplied(head)], chunk, at)
            drawn = self._looker.maps([head for head in self._heads if _sees_supplied(head)], chunk, shown)
            for found in chain(compared, drawn):
                place = (found.drop, found.row)
                if found.predicted != self._told[found.policy, found.method].get(place):
                    self._looker.failed[OTHERWISE].add(place)
                    continue
                if found.row in wanted:
                    self.maps.append(found)
                policy = found.policy if sees_masks(found.method) else ""
                if (one := self._supplied.found.get(place)) and policy != SUPPLIED:
                    self.pointed[policy, found.method, found.kind].append(pointing(found.heat, found.box, *one))
        except PREVENTS as error:
            self._looker.failed[_said(error)].update((chunk.drop, rows[i].row) for i in at)

    def left_out(self) -> list[str]:
        """Sentences that count the images without maps and the masks that were not used, by reason."""
        sentences = []
        for what, failed in (
            ("without a map", self._looker.failed),
            ("not compared with a supplied mask", self._supplied.unusable),
        ):
            for reason, images in sorted(failed.items()):
                meaning = f"{REASONS[reason]} ({reason})" if reason in REASONS else reason
                sentences.append(f"{len(images)} image{'s' * (len(images) > 1)} {what}: {meaning}.")
        return sentences


def _heads(workspace: Workspace, committed: Committed) -> tuple[list[AttendedHead], tuple[str, ...]]:
    """Heads that can be asked, and a sentence for each that cannot."""
    heads: list[AttendedHead] = []
    left_out: list[str] = []
    for node, cell in attended_cells(workspace, committed):
        try:
            heads.append(load_attended(workspace, committed, node, cell))
        except PREVENTS as error:
            left_out.append(f"There are no maps of {node.key}/{cell.unit}: {_said(error)}.")
    return heads, tuple(left_out)


def _sees_supplied(head: AttendedHead) -> bool:
    """Whether a head is shown the supplied masks, so that its maps are drawn and not compared with them."""
    return head.node.policy == SUPPLIED and sees_masks(head.cell.method)


def _model(workspace: Workspace) -> ClipModel:
    from stages.models.clip import load_clip

    config = workspace.config
    return load_clip(config.embeddings.model, device_here(config.cluster.device), config.embeddings.precision)


def _said(error: BaseException) -> str:
    """What an error says, without a path: only these are worded here."""
    return error.what.rstrip(".") if isinstance(error, WeightsError | DamagedError) else type(error).__name__


def _places(
    workspace: Workspace, wanted: Mapping[str, Set[int]], supplied: SuppliedMasks
) -> Iterator[tuple[Chunk, Sequence[ImageRow], list[int]]]:
    """Chunks with a test image that is wanted or has a supplied mask, their rows, and where in them these are."""
    for drop in workspace.drops:
        asked = wanted.get(drop.drop_id, set()) | {row for key, row in supplied.found if key == drop.drop_id}
        for chunk in drop.chunks():
            rows = workspace.chunk_rows(chunk)
            at = [i for i, row in enumerate(rows) if row.row in asked and row.split == Split.TEST]
            if at:
                yield chunk, rows, at


def _score_table(pointed: Mapping[Group, Sequence[Pointing]]) -> pd.DataFrame:
    rows = []
    for group, found in pointed.items():
        energies = [one.energy for one in found if not np.isnan(one.energy)]
        hits, area = fmean(one.hit for one in found), fmean(one.area for one in found)
        energy = fmean(energies) if energies else float("nan")
        rows.append((*group, len(found), hits, energy, area, len(found) - len(energies)))
    return pd.DataFrame(rows, columns=list(ATTENTION_COLUMNS))
