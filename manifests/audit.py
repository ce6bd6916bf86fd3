"""What is suspicious about a drop, found from its inventory alone: no pixel is decoded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

from manifests.errors import InventoryError
from manifests.listing import MASK_FOLDERS, is_mask_name
from manifests.types import ImageRow, Split

SHOWN = 3
"""Image ids that an error names at most."""


class Audit(BaseModel):
    """Findings about one drop, in view of all earlier ones; names images by their ids, never by path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    n_images: int
    counts: Mapping[str, Mapping[str, int]]
    """Images of this drop by split and label."""
    duplicates_within_split: tuple[str, ...]
    """Images whose bytes occur more than once in one split."""
    duplicates_across_splits: tuple[str, ...]
    duplicates_across_labels: tuple[str, ...]
    """Images whose bytes carry two labels, one of which must be wrong."""
    groups_across_splits: tuple[str, ...]
    """Images whose patient or study occurs in several splits."""
    masks_as_images: tuple[str, ...]
    """Images that are named, or lie, like masks."""
    extra_masks: Mapping[str, int]
    """Masks beside the first one, which are not used (`mask.extra`), by image."""
    unreadable: Mapping[str, str]
    """Code of why a header cannot be read, by image."""
    single_image_classes: tuple[str, ...]
    """Classes with one readable training image: too few for inner folds."""
    classes_without_train: tuple[str, ...]
    classes_without_test: tuple[str, ...]
    leaks: tuple[str, ...]
    """Validation and test images that leak through this drop: their bytes or group also serve to train or choose."""


def check(
    rows: Sequence[ImageRow],
    previous_rows: Sequence[ImageRow] = (),
    *,
    extra_masks: Mapping[str, int] | None = None,
    unreadable: Mapping[str, str] | None = None,
) -> Audit:
    """Audit the rows of one drop.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        The new drop.
    previous_rows : Sequence[ImageRow]
        Rows of all earlier drops; a new training image can make an old test image leak.
    extra_masks : Mapping[str, int], optional
        Number of unused masks by image_id.
    unreadable : Mapping[str, str], optional
        Code by image_id of each image whose header cannot be read.
    """
    everything = [*previous_rows, *rows]
    ids = {row.image_id for row in rows}
    readable = [row for row in everything if row.width > 0]
    train = Counter(label for label, _ in {(r.label, r.sha256) for r in readable if r.split is Split.TRAIN})
    return Audit(
        n_images=len(rows),
        counts=_counts(rows),
        duplicates_within_split=_shared(everything, ids, _digest, _within_split),
        duplicates_across_splits=_shared(everything, ids, _digest, _across_splits),
        duplicates_across_labels=_shared(everything, ids, _digest, _across_labels),
        groups_across_splits=_shared(everything, ids, lambda row: row.group_id, _across_splits),
        masks_as_images=_ids(row for row in rows if _is_mask_like(row)),
        extra_masks=dict(extra_masks or {}),
        unreadable=dict(unreadable or {}),
        single_image_classes=tuple(sorted(label for label, n in train.items() if label and n == 1)),
        classes_without_train=_classes_missing(readable, Split.TRAIN),
        classes_without_test=_classes_missing(readable, Split.TEST),
        leaks=tuple(sorted(_leaks(everything) - _leaks(previous_rows))),
    )


def require_no_leaks(audit: Audit, *, accept_leaks: bool) -> None:
    """Refuse a drop that leaks, unless that was accepted.

    Raises
    ------
    InventoryError
        If a validation or test image shares bytes or group with a training image.
    """
    if audit.leaks and not accept_leaks:
        shown = ", ".join(audit.leaks[:SHOWN]) + (", ..." if len(audit.leaks) > SHOWN else "")
        raise InventoryError(
            f"{len(audit.leaks)} validation or test images share their file or patient with another split: {shown}.",
            "Correct the splits; or pass --accept-leaks: scores are then given with and without the flagged images.",
        )


def flagged(rows: Sequence[ImageRow]) -> frozenset[str]:
    """image_ids of test images whose bytes or group also occur in train or val.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        Rows of all drops. A copy in train has the same image_id, so look ids up among test rows only.
    """
    return _overlap(rows, Split.TEST, {Split.TRAIN, Split.VAL})


def _leaks(rows: Sequence[ImageRow]) -> frozenset[str]:
    return flagged(rows) | _overlap(rows, Split.VAL, {Split.TRAIN})


def _overlap(rows: Sequence[ImageRow], split: Split, used: set[Split]) -> frozenset[str]:
    digests = {row.sha256 for row in rows if row.split in used and row.sha256}
    groups = {row.group_id for row in rows if row.split in used}
    return frozenset(r.image_id for r in rows if r.split is split and (r.sha256 in digests or r.group_id in groups))


def _counts(rows: Iterable[ImageRow]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        of_split = counts.setdefault(row.split.value, {})
        of_split[row.label] = of_split.get(row.label, 0) + 1
    return counts


def _digest(row: ImageRow) -> str:
    return row.sha256


def _shared(
    rows: Iterable[ImageRow],
    ids: set[str],
    key: Callable[[ImageRow], str],
    suspicious: Callable[[Sequence[ImageRow]], bool],
) -> tuple[str, ...]:
    """Those of `ids` in sets of rows with one key that are suspicious together."""
    sets: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        if key(row):
            sets[key(row)].append(row)
    return _ids(row for same in sets.values() if suspicious(same) for row in same if row.image_id in ids)


def _within_split(rows: Sequence[ImageRow]) -> bool:
    return max(Counter(row.split for row in rows).values()) > 1


def _across_splits(rows: Sequence[ImageRow]) -> bool:
    return len({row.split for row in rows} - {Split.NONE}) > 1


def _across_labels(rows: Sequence[ImageRow]) -> bool:
    return len({row.label for row in rows} - {""}) > 1


def _is_mask_like(row: ImageRow) -> bool:
    path = PurePosixPath(row.path)
    return is_mask_name(path.name) or any(part.lower() in MASK_FOLDERS for part in path.parts[:-1])


def _classes_missing(rows: Sequence[ImageRow], split: Split) -> tuple[str, ...]:
    """Classes without an image in a split; none where the data set does not have that split at all."""
    there = {row.label for row in rows if row.split is split}
    return tuple(sorted({row.label for row in rows} - there - {""})) if there else ()


def _ids(rows: Iterable[ImageRow]) -> tuple[str, ...]:
    return tuple(sorted({row.image_id for row in rows}))
