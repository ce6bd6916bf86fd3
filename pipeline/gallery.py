"""Pictures for the report's gallery, from the committed masks and, where they can still be read, the source files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from manifests.commits import read_rows
from manifests.errors import ReadError
from manifests.readers import ImageSource
from manifests.store import StageStore
from manifests.types import Chunk, ImageRow, Split
from pipeline.attention import Attention, take_attention
from pipeline.attention_maps import AttentionMap
from pipeline.committed import Committed, Told, predictions
from pipeline.graph import Node
from pipeline.supplied_masks import SuppliedMasks
from pipeline.workspace import Workspace
from stages.attention.pointing import upsample
from stages.images import Placement, letterbox
from stages.methods import ASKED, sees_masks
from stages.report.comparison import REFERENCE
from stages.report.data import GalleryItem, Heat
from stages.report.figures import THUMBNAIL_PX
from stages.report.outcomes import IOU, MOST, OUTCOMES, SCORE, TEST_COLUMNS, counts, pick, within

MOST_PER_OUTCOME: Final = 3
"""Test images of one class and outcome under one policy."""
MOST_PROPOSALS: Final = 24
"""Candidates that are drawn of an image."""
ARRAYS: Final = ("mask", "masked_image", "status")


@dataclass(frozen=True, slots=True)
class Pictures:
    """The gallery, and what could not be shown in it."""

    items: Sequence[GalleryItem]
    unreadable: Mapping[str, int]
    """Pictures whose source file could not be read, by reason."""
    outcomes: pd.DataFrame
    """Test images by policy, class and who was right."""
    asked: tuple[str, str]
    """Methods with and without mask whose answers these are; empty where there is none."""
    attention: Attention
    """Where heads looked."""


def take_pictures(
    workspace: Workspace, nodes: Sequence[Node], committed: Committed, facts: pd.DataFrame, supplied: SuppliedMasks
) -> Pictures:
    """A few test images of every class, policy and outcome, with what the largest probes said of them.

    Parameters
    ----------
    workspace : Workspace
        Data set and configuration.
    nodes : Sequence[Node]
        Masks nodes whose every chunk is committed.
    committed : Committed
        Where predictions are.
    facts : DataFrame
        What `mask_facts` says of them.
    supplied : SuppliedMasks
        What maps are compared with.

    Returns
    -------
    Pictures
        `MOST` pictures at most. An image whose source file cannot be read is shown as the masks stage composed it,
        without the original.
    """
    items: list[GalleryItem] = []
    unreadable: Counter[str] = Counter()
    without = predictions(workspace, committed, None, (REFERENCE,))
    of_policies = {node.policy: predictions(workspace, committed, node.policy, ASKED) for node in nodes}
    tests = {node.policy: _tests(facts, node.policy, of_policies[node.policy], without) for node in nodes}
    order = {name: place for place, name in enumerate(workspace.classes)}
    tests = {
        policy: test.sort_values("label", key=lambda labels: labels.map(order), kind="stable")
        for policy, test in tests.items()
    }
    most = max(1, min(MOST_PER_OUTCOME, MOST // max(1, len(nodes) * len(workspace.classes) * len(OUTCOMES))))
    picked = within({policy: pick(test, most) for policy, test in tests.items()}, MOST)
    attention = take_attention(workspace, committed, _places(picked.values()), supplied)
    heats = _Heats(attention.maps, workspace.config.embeddings.canvas_px)
    for node in nodes:
        told = of_policies[node.policy]
        for chosen, row, arrays in _arrays(workspace, node, committed, picked[node.policy]):
            source = workspace.image_source(str(chosen["drop"]))
            items.append(
                GalleryItem(
                    image=_original(source, row, arrays["mask"].shape[-1], unreadable),
                    mask=arrays["mask"],
                    masked=arrays["masked_image"],
                    label=row.label,
                    predicted=told.classes.get((str(chosen["drop"]), row.row), "") if told else "",
                    status=str(chosen["status"]),
                    caption=row.image_id,
                    policy=node.policy,
                    outcome=str(chosen["outcome"]),
                    without=without.classes.get((str(chosen["drop"]), row.row), "") if without else "",
                    proposals=arrays.get("proposals"),
                    shown=workspace.config.masks.compositing,
                    kind=str(chosen["kind"]),
                    quality=None if np.isnan(chosen["quality"]) else float(chosen["quality"]),
                    heats=heats.of(node.policy, str(chosen["drop"]), row.row),
                )
            )
    first = next((told for told in of_policies.values() if told), None)
    counted = [counts(policy, test) for policy, test in tests.items()]
    return Pictures(
        tuple(items),
        dict(sorted(unreadable.items())),
        pd.concat(counted, ignore_index=True) if counted else counts("", pd.DataFrame(columns=list(TEST_COLUMNS))),
        (first.method if first else "", without.method if without else ""),
        attention,
    )


def _places(picked: Iterable[pd.DataFrame]) -> dict[str, set[int]]:
    """Rows of all pictures by drop."""
    places: dict[str, set[int]] = {}
    for rows in picked:
        for drop, row in zip(rows["drop"], rows["row"], strict=True):
            places.setdefault(str(drop), set()).add(int(row))
    return places


class _Heats:
    """Maps by the image that they are of, those of the unmasked image under every policy."""

    def __init__(self, maps: Iterable[AttentionMap], canvas_px: int) -> None:
        self._canvas_px = canvas_px
        self._found: dict[tuple[str, str, int], list[AttentionMap]] = {}
        for one in maps:
            policy = one.policy if sees_masks(one.method) else ""
            self._found.setdefault((policy, one.drop, one.row), []).append(one)

    def of(self, policy: str, drop: str, row: int) -> tuple[Heat, ...]:
        found = [*self._found.get((policy, drop, row), ()), *self._found.get(("", drop, row), ())]
        return tuple(Heat(one.method, self._thumbnail(one)) for one in found)

    def _thumbnail(self, one: AttentionMap) -> NDArray[np.float32]:
        box = Placement(*(round(length * THUMBNAIL_PX / self._canvas_px) for length in one.box))
        return upsample(one.heat, box, THUMBNAIL_PX)


def _tests(facts: pd.DataFrame, policy: str, told: Told | None, without: Told | None) -> pd.DataFrame:
    """Test images of a policy that did not fail, with `TEST_COLUMNS`, in the order of the store."""
    own = facts[(facts["mask"] == policy) & (facts["split"] == Split.TEST) & (facts["status"] != "failed")]
    kind = IOU if own["iou"].notna().any() else SCORE
    quality = own["iou"] if kind == IOU else own["score"]
    # A supplied or fixed mask has no score that tells one from another.
    quality = quality if kind == IOU or quality.nunique() > 1 else quality * np.nan
    return own.assign(
        label=own["class"],
        with_mask=_right(own, told),
        without=_right(own, without),
        kind=kind,
        quality=quality,
    )


def _right(own: pd.DataFrame, told: Told | None) -> pd.Series:
    classes = told.classes if told else {}
    places = zip(own["drop"], own["row"], strict=True)
    said = pd.Series([classes.get((drop, row)) for drop, row in places], own.index, dtype=object)
    right: pd.Series = (said == own["class"]).astype("boolean").where(said.notna())
    return right


def _arrays(
    workspace: Workspace, node: Node, committed: Committed, picked: pd.DataFrame
) -> Iterator[tuple[dict[Any, Any], ImageRow, dict[str, NDArray[Any]]]]:
    """Each picked row with its arrays, a chunk of the store at a time."""
    key = node.inputs.get("proposals", "")
    proposing = workspace.nodes[key] if key in committed.chunks else None
    found: dict[Any, tuple[dict[Any, Any], ImageRow, dict[str, NDArray[Any]]]] = {}
    for drop in workspace.drops:
        of_drop = picked[picked["drop"] == drop.drop_id]
        for chunk in drop.chunks() if len(of_drop) else ():
            inside = of_drop[of_drop["row"].between(chunk.start, chunk.stop - 1)]
            if len(inside):
                arrays = _read(workspace, node, chunk, ARRAYS)
                more = _read(workspace, proposing, chunk, ("candidates", "candidate_scores")) if proposing else {}
                rows = workspace.chunk_rows(chunk)
                for index, chosen in zip(inside.index, inside.to_dict("records"), strict=True):
                    at = int(chosen["row"]) - chunk.start
                    own = {name: np.array(array[at]) for name, array in arrays.items()}
                    if more:
                        own["proposals"] = _proposals(more["candidates"][at], more["candidate_scores"][at])
                    found[index] = chosen, rows[at], own
    yield from (found[index] for index in picked.index)


def _read(workspace: Workspace, node: Node, chunk: Chunk, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    return read_rows(StageStore.load(workspace.root(node, chunk.drop)), chunk, names)


def _proposals(packed: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Candidates that there are, (k, T, T), the surest first."""
    sure = np.where(np.isnan(scores[:, 0]), -np.inf, scores[:, 0])
    order = [i for i in np.argsort(-sure, kind="stable").tolist() if np.isfinite(sure[i])][:MOST_PROPOSALS]
    masks = np.unpackbits(packed[order], axis=-1).astype(bool)
    return np.array([letterbox(mask, THUMBNAIL_PX)[0] for mask in masks]).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)


def _original(source: ImageSource, row: ImageRow, side: int, unreadable: Counter[str]) -> NDArray[np.uint8] | None:
    try:
        image: NDArray[np.uint8] = letterbox(source.read(row), side)[0]
    except ReadError as error:
        unreadable[error.reason] += 1
        return None
    return image
