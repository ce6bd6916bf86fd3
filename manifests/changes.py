"""A source folder compared with what was ingested from it before: by bytes, never by name or time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifests.inventory import SourceItem, content_key
from manifests.readers import mask_key
from manifests.types import ImageRow


@dataclass(frozen=True, slots=True)
class Changes:
    """What became of known images, and which are new."""

    new: tuple[SourceItem, ...]
    """Images whose bytes are in no drop, in order."""
    locations: Mapping[str, str]
    """Where every renamed file is now, by image_id or `mask_key`; complete, to replace the old record."""
    renamed: int
    """Known images that were found under another path since the last ingest."""
    vanished: int
    """Rows of this source whose bytes are no longer anywhere in it."""
    unchanged: int
    """Known images in their known place."""
    changed: int
    """New images in the place of a known one of this source."""
    copies: int
    """Files with the bytes of a known image that is still in its own place."""
    conflicts: tuple[str, ...]
    """Known images that now have another label, split or mask, in words; nothing was changed."""


@dataclass
class _Comparison:
    """One comparison under way: the source on one side, the running counts on the other."""

    source: Path
    found: Mapping[str, Sequence[SourceItem]]
    """Items by key."""
    listed: frozenset[str]
    """Path of every item."""
    masks: Mapping[str, str]
    """Digest of every item's mask by its path."""
    locations: dict[str, str]
    renamed: int = 0
    vanished: int = 0
    unchanged: int = 0
    copies: int = 0
    conflicts: list[str] = field(default_factory=list)

    def add(self, key: str, rows: Sequence[ImageRow], local: Sequence[ImageRow]) -> None:
        """Take in one known image: all its rows, and those of them that came from this source."""
        items = self.found.get(key, ())
        places = {row.path for row in rows} | {self.locations.get(rows[0].image_id, rows[0].path)}
        renamed_to = ""
        if local:
            renamed_to = self._follow_image(key, local, items)
            self._follow_masks(local, items)
        for item in items:
            self.unchanged += item.path in places
            self.copies += item.path not in places and item.path != renamed_to
        self._compare_labels(rows, items)
        for item in items:
            self._compare_mask([row for row in local if row.path == item.path] or rows, local, item)

    def _follow_image(self, key: str, local: Sequence[ImageRow], items: Sequence[SourceItem]) -> str:
        """Record where the bytes are now, and return the new path of a rename; one copy serves all equal rows."""
        image_id = local[0].image_id
        gone = [row for row in local if not self._is_there(row.path, key)]
        location = self.locations.get(image_id, "")
        if not gone:
            self.locations.pop(image_id, None)
        elif items:
            paths = sorted(item.path for item in items)
            fresh = [path for path in paths if path not in {row.path for row in local}]
            if location not in paths:
                self.locations[image_id] = (fresh or paths)[0]
                self.renamed += bool(fresh)
                return fresh[0] if fresh else ""
        elif local[0].sha256 and not (location and self._is_there(location, key)):
            self.vanished += len(gone)
        return ""

    def _is_there(self, path: str, key: str) -> bool:
        """Whether a path still holds these bytes; a file that this listing leaves out is trusted."""
        if path in self.listed:
            return any(item.path == path for item in self.found.get(key, ()))
        return (self.source / path).is_file()

    def _follow_masks(self, local: Sequence[ImageRow], items: Sequence[SourceItem]) -> None:
        """Record where the bytes of each mask are now; one place serves all rows with this image and mask."""
        for sha256 in {row.mask_sha256 for row in local if row.mask_sha256}:
            same = [row for row in local if row.mask_sha256 == sha256]
            key = mask_key(same[0])
            moved = sorted(item.mask_path for item in items if item.mask_sha256 == sha256)
            if all(self._holds_mask(row.mask_path, sha256) for row in same):
                self.locations.pop(key, None)
            elif moved and self.locations.get(key) not in moved:
                self.locations[key] = moved[0]

    def _holds_mask(self, path: str, sha256: str) -> bool:
        """Whether a path still holds this mask; a file that this listing leaves out is trusted."""
        return self.masks[path] == sha256 if path in self.masks else (self.source / path).is_file()

    def _compare_mask(self, rows: Sequence[ImageRow], local: Sequence[ImageRow], item: SourceItem) -> None:
        """Report a mask that was added, edited or lost; an item without one says nothing of another source's rows."""
        had = [row for row in rows if row.mask_path]
        if item.mask_path and not had:
            verdict = "mask added in the source; its drop keeps none"
        elif item.mask_path and item.mask_sha256 not in {row.mask_sha256 for row in had}:
            state = "changed" if item.mask_sha256 else "unreadable"
            verdict = f"mask {state} in the source; its drop keeps the old one"
        elif not item.mask_path and any(row in local for row in had) and not any(map(self._mask_is_there, had)):
            verdict = "mask gone from the source; its drop still names it"
        else:
            return
        self.conflicts.append(f"{item.image_id}: {verdict}")

    def _mask_is_there(self, row: ImageRow) -> bool:
        places = {row.mask_path, self.locations.get(mask_key(row), row.mask_path)}
        return any(self._holds_mask(path, row.mask_sha256) for path in places)

    def _compare_labels(self, rows: Sequence[ImageRow], items: Sequence[SourceItem]) -> None:
        recorded = {(row.split, row.label) for row in rows}
        was = " and ".join(sorted(f"{split}/{label}" for split, label in recorded))
        self.conflicts += [
            f"{rows[0].image_id}: ingested as {was}, now {item.split}/{item.label}"
            for item in items
            if (item.split, item.label) not in recorded
        ]


def compare(
    source: Path, items: Sequence[SourceItem], known: Iterable[tuple[ImageRow, bool]], locations: Mapping[str, str]
) -> Changes:
    """Compare a scanned source with the rows of all drops.

    Parameters
    ----------
    source : Path
        The source folder.
    items : Sequence[SourceItem]
        All images in it.
    known : Iterable[tuple[ImageRow, bool]]
        Each row, and whether its drop came from this very folder: only such a row can be renamed or vanish here.
    locations : Mapping[str, str]
        The record of renamed files so far.
    """
    rows: dict[str, list[tuple[ImageRow, bool]]] = defaultdict(list)
    for row, here in known:
        rows[content_key(row)].append((row, here))
    found: dict[str, list[SourceItem]] = defaultdict(list)
    for item in items:
        found[item.key].append(item)
    listed = frozenset(item.path for item in items)
    masks = {item.mask_path: item.mask_sha256 for item in items if item.mask_path}
    comparison = _Comparison(source, found, listed, masks, dict(locations))
    for key, same in rows.items():
        comparison.add(key, [row for row, _ in same], [row for row, here in same if here])
    places = {row.path for same in rows.values() for row, here in same if here}
    new = tuple(item for item in items if item.key not in rows)
    return Changes(
        new=new,
        locations=comparison.locations,
        renamed=comparison.renamed,
        vanished=comparison.vanished,
        unchanged=comparison.unchanged,
        changed=len({item.path for item in new} & places),
        copies=comparison.copies,
        conflicts=tuple(comparison.conflicts),
    )
