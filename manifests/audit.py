"""What is suspicious about a drop: leaks between splits, contradictory labels, masks among the images, shortcuts."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict

from manifests.confounds import Confound
from manifests.errors import InventoryError
from manifests.listing import MASK_FOLDERS, is_mask_name
from manifests.shifts import Shift
from manifests.twins import Twin
from manifests.types import ImageRow, Split

SHOWN = 3
"""Image ids that an error names at most."""


class Audit(BaseModel):
    """Findings about one drop, in view of all earlier ones; names images by their ids, never by path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1, 2] = 2
    """2 since pixels are looked at; a file of version 1 has no finding about them."""
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
    twins: tuple[Twin, ...] = ()
    """Pairs that show the same picture though their bytes differ, at least one of them new."""
    twins_across_splits: tuple[str, ...] = ()
    twins_across_labels: tuple[str, ...] = ()
    not_compared: int = 0
    """Earlier images whose pixels could not be looked at, so that their twins in this drop are not known."""
    masks_as_images: tuple[str, ...]
    """Images that are named, or lie, like masks, or that are black and white like one."""
    extra_masks: Mapping[str, int]
    """Masks beside the first one, which are not used (`mask.extra`), by image."""
    unreadable: Mapping[str, str]
    """Code of why a header cannot be read, by image."""
    single_image_classes: tuple[str, ...]
    """Classes with one readable training image: too few for inner folds."""
    classes_without_train: tuple[str, ...]
    classes_without_test: tuple[str, ...]
    leaks: tuple[str, ...]
    """Validation and test images that leak through this drop: bytes, picture or group also serve to train or choose."""
    confounds: tuple[Confound, ...] = ()
    """How well the classes of this drop can be told from margins and grey levels."""
    shifts: tuple[Shift, ...] = ()
    """How far this drop is from the earlier ones."""

    @property
    def confounded(self) -> tuple[Confound, ...]:
        """Probes that tell classes so well that scores must be doubted."""
        return tuple(confound for confound in self.confounds if confound.is_confounded)

    @property
    def label_conflicts(self) -> tuple[str, ...]:
        """Images whose bytes or picture carry two labels."""
        return tuple(sorted({*self.duplicates_across_labels, *self.twins_across_labels}))


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen in the files of one drop, beside their rows."""

    extra_masks: Mapping[str, int] = field(default_factory=dict)
    """Number of unused masks by image_id."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Code by image_id of each image that cannot be read."""
    two_valued: frozenset[str] = frozenset()
    """image_ids of images that are black and white like a mask."""
    twins: tuple[Twin, ...] = ()
    confounds: tuple[Confound, ...] = ()
    shifts: tuple[Shift, ...] = ()
    not_compared: int = 0


def check(
    rows: Sequence[ImageRow],
    previous_rows: Sequence[ImageRow] = (),
    seen: Seen | None = None,
    previous_twins: Iterable[Twin] = (),
) -> Audit:
    """Audit the rows of one drop.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        The new drop.
    previous_rows : Sequence[ImageRow]
        Rows of all earlier drops; a new training image can make an old test image leak.
    seen : Seen, optional
        What its files show.
    previous_twins : Iterable[Twin]
        Twins among the earlier drops.
    """
    seen = seen or Seen()
    everything = [*previous_rows, *rows]
    ids = {row.image_id for row in rows}
    readable = [row for row in everything if row.width > 0]
    train = Counter(label for label, _ in {(r.label, r.sha256) for r in readable if r.split is Split.TRAIN})
    earlier = tuple(previous_twins)
    return Audit(
        n_images=len(rows),
        counts=_counts(rows),
        duplicates_within_split=_shared(everything, ids, _digest, _within_split),
        duplicates_across_splits=_shared(everything, ids, _digest, _across_splits),
        duplicates_across_labels=_shared(everything, ids, _digest, _across_labels),
        groups_across_splits=_shared(everything, ids, lambda row: row.group_id, _across_splits),
        twins=seen.twins,
        twins_across_splits=_twins(everything, seen.twins, _across_splits),
        twins_across_labels=_twins(everything, seen.twins, _across_labels),
        not_compared=seen.not_compared,
        masks_as_images=_ids(row for row in rows if _is_mask_like(row) or row.image_id in seen.two_valued),
        extra_masks=dict(seen.extra_masks),
        unreadable=dict(seen.unreadable),
        single_image_classes=tuple(sorted(label for label, n in train.items() if label and n == 1)),
        classes_without_train=_classes_missing(readable, Split.TRAIN),
        classes_without_test=_classes_missing(readable, Split.TEST),
        leaks=tuple(sorted(_leaks(everything, (*earlier, *seen.twins)) - _leaks(previous_rows, earlier))),
        confounds=seen.confounds,
        shifts=seen.shifts,
    )


def require_clean(audit: Audit, *, strict: bool) -> None:
    """Refuse a drop with findings that make scores wrong, if that is asked for.

    Raises
    ------
    InventoryError
        If a validation or test image shares bytes, picture or patient with another split, a picture carries two labels,
        a mask lies among the images, or the margins give the classes away.
    """
    if not strict:
        return
    found = [
        _named("validation or test images share their file, picture or patient with another split", audit.leaks),
        _named("images carry two labels", audit.label_conflicts),
        _named("masks lie among the images", audit.masks_as_images),
        *(f"classes can be told from {confound.probed}" for confound in audit.confounded),
    ]
    if told := "; ".join(text for text in found if text):
        raise InventoryError(
            f"The audit refuses this drop: {told}.",
            "Correct the source; or leave out --strict: scores are then given with and without the flagged images.",
        )


def _named(what: str, image_ids: Sequence[str]) -> str:
    shown = ", ".join(image_ids[:SHOWN]) + (", ..." if len(image_ids) > SHOWN else "")
    return f"{len(image_ids)} {what} ({shown})" if image_ids else ""


def flagged(rows: Sequence[ImageRow], twins: Iterable[Twin] = ()) -> frozenset[str]:
    """image_ids of test images whose bytes, picture or group also occur in train or val.

    Parameters
    ----------
    rows : Sequence[ImageRow]
        Rows of all drops. A copy in train has the same image_id, so look ids up among test rows only.
    twins : Iterable[Twin]
        Twins in all drops.
    """
    return _overlap(rows, twins, Split.TEST, {Split.TRAIN, Split.VAL})


def _leaks(rows: Sequence[ImageRow], twins: Sequence[Twin]) -> frozenset[str]:
    return flagged(rows, twins) | _overlap(rows, twins, Split.VAL, {Split.TRAIN})


def _overlap(rows: Sequence[ImageRow], twins: Iterable[Twin], split: Split, used: set[Split]) -> frozenset[str]:
    digests = {row.sha256 for row in rows if row.split in used and row.sha256}
    groups = {row.group_id for row in rows if row.split in used}
    seen_in = {row.image_id for row in rows if row.split in used}
    pairs = [(twin.image_id, twin.other_id) for twin in twins]
    copies = {one for pair in pairs for one, other in (pair, pair[::-1]) if other in seen_in}
    return frozenset(
        row.image_id
        for row in rows
        if row.split is split and (row.sha256 in digests or row.group_id in groups or row.image_id in copies)
    )


def _twins(
    rows: Iterable[ImageRow], twins: Iterable[Twin], suspicious: Callable[[Sequence[ImageRow]], bool]
) -> tuple[str, ...]:
    """Images of pairs that are suspicious together."""
    known: dict[str, list[ImageRow]] = defaultdict(list)
    for row in rows:
        known[row.image_id].append(row)
    pairs = ((twin, [*known[twin.image_id], *known[twin.other_id]]) for twin in twins)
    found = {name for twin, both in pairs if suspicious(both) for name in (twin.image_id, twin.other_id)}
    return tuple(sorted(found))


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
