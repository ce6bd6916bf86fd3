"""Chosen images by the source file that they are pictures of, one file in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from manifests.drops import Drop
from manifests.types import ChunkArrays, ImageRow, Status
from pipeline.exporting.native import ARRAYS, NativeMask, native_mask
from pipeline.exporting.selection import Selection, Unit

DICOM, NIFTI = "dicom", "nifti"
"""What the record of a row's transforms begins with."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image of a source file."""

    unit: Unit
    index: int
    """Position in the unit."""
    row: ImageRow


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One source file and its chosen images, in the order of frames."""

    pictures: tuple[Picture, ...]

    @property
    def first(self) -> ImageRow:
        """The row by which the file's bytes are read."""
        return self.pictures[0].row

    @property
    def drop(self) -> Drop:
        """The drop that holds it."""
        return self.pictures[0].unit.drop

    @property
    def stem(self) -> str:
        """Name of what is made of it: 16 digits of its sha256; for a copy of it drop and row as well."""
        copy = f"-{self.drop.drop_id}-{self.first.row}" if self.first.duplicate_of else ""
        return f"{self.first.sha256[:16]}{copy}"


@dataclass(slots=True)
class MaskReader:
    """Statuses and native masks of single images; what was read last of a chunk is kept."""

    _kept: dict[tuple[str, ...], tuple[str, ChunkArrays]] = field(default_factory=dict)
    """Unit, and its arrays, by the names of the arrays."""

    def status(self, picture: Picture) -> Status:
        """What became of one image.

        Raises
        ------
        StoreError
            If a shard is damaged.
        """
        return Status(int(self._arrays(picture.unit, ("status",))["status"][picture.index]))

    def mask(self, picture: Picture) -> NativeMask:
        """One image's mask.

        Raises
        ------
        StoreError
            If a shard is damaged.
        """
        return native_mask(self._arrays(picture.unit, ARRAYS), picture.index, picture.row)

    def _arrays(self, unit: Unit, names: tuple[str, ...]) -> ChunkArrays:
        kept, arrays = self._kept.get(names, ("", {}))
        if kept != unit.name:
            arrays = unit.read(*names)
            self._kept[names] = unit.name, arrays
        return arrays


def source_files(selection: Selection, kind: str) -> Iterator[SourceFile]:
    """Files of one kind whose images are chosen; rows are in the order of digests, so that a file's are together.

    Parameters
    ----------
    selection : Selection
        What is exported.
    kind : str
        `DICOM` or `NIFTI`.
    """
    run: dict[str, list[Picture]] = {}
    digest = ""
    for unit in selection.units():
        for index, row in unit.chosen:
            if not is_of(row, kind):
                continue
            if (key := f"{unit.drop.drop_id}/{row.sha256}") != digest:
                yield from (SourceFile(tuple(pictures)) for pictures in run.values())
                run, digest = {}, key
            run.setdefault(row.path, []).append(Picture(unit, index, row))
    yield from (SourceFile(tuple(pictures)) for pictures in run.values())


def is_of(row: ImageRow, kind: str) -> bool:
    """Whether a row's file is of a kind."""
    return row.transforms.split(",")[0] == kind


def count_others(selection: Selection, kind: str) -> dict[str, int]:
    """Chosen images whose file is of another kind, if there are any."""
    others = sum(not is_of(row, kind) for _, row in selection.rows())
    return {f"not {kind}": others} if others else {}
