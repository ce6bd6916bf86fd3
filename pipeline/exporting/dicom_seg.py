"""Masks as DICOM segmentations that reference the source instances, without the patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata

import numpy as np

from manifests.errors import DamagedError, ReadError
from manifests.inventory_file import format_table
from manifests.types import Status
from pipeline.exporting.dicom_object import Maker, encode_segmentation, holds_all_frames
from pipeline.exporting.dicom_source import reference_of
from pipeline.exporting.folder import ExportFolder
from pipeline.exporting.selection import Selection, file_stem, status_word
from pipeline.exporting.sources import DICOM, MaskReader, Picture, SourceFile, count_others, source_files

INDEX = "index.csv"
COLUMNS = ("image_id", "frame", "label", "split", "status", "file")
REFUSED = "reference.missing"
"""Reason of an image whose file lacks the UIDs, or has no sound geometry, that a segmentation needs."""
WHOLE = "whole image"
"""What stands for a model where the policy uses none."""


def write_dicom_seg(selection: Selection, folder: ExportFolder) -> dict[str, int]:
    """Write a segmentation for every source file of which a frame has a mask, and index.csv of all frames.

    A file of many frames gives one object where it says how they lie in the patient, else one a frame.

    Returns
    -------
    dict[str, int]
        Images by status, or by the reason why their file cannot be used; images of other files.
    """
    lines: list[tuple[object, ...]] = []
    counts: Counter[str] = Counter()
    masks = MaskReader()
    for file in source_files(selection, DICOM):
        statuses = [masks.status(picture) for picture in file.pictures]
        shown = [p for p, status in zip(file.pictures, statuses, strict=True) if status == Status.OK]
        words = [status_word(status) for status in statuses]
        if not all(_name_of(folder, file, picture) for picture in shown):
            try:
                for name, data in _objects(selection, file, shown, masks):
                    folder.write(name, data)
            except ReadError as error:
                words = [error.reason] * len(words)
        for picture, word in zip(file.pictures, words, strict=True):
            row, name = picture.row, _name_of(folder, file, picture) if word == "ok" else ""
            lines.append((row.image_id, row.frame, row.label, row.split.value, word, name))
        counts.update(words)
    folder.write(INDEX, format_table(COLUMNS, lines))
    return dict(sorted(counts.items())) | count_others(selection, DICOM)


def _name_of(folder: ExportFolder, file: SourceFile, picture: Picture) -> str:
    """Name of the object that shows a frame: the whole file's or the frame's own; empty if there is none yet."""
    names = (f"{file.stem}.dcm", f"{file_stem(file.drop, picture.row)}.dcm")
    return next((name for name in names if folder.has(name)), "")


def _objects(
    selection: Selection, file: SourceFile, shown: list[Picture], masks: MaskReader
) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every object of one source file.

    Raises
    ------
    ReadError
        If the source file is missing, changed, or cannot be referenced.
    """
    data = selection.workspace.image_source(file.drop.drop_id).raw(file.first)
    try:
        reference = reference_of(data, file.first.group_id)
        if reference is None:
            raise ReadError(REFUSED)
        if holds_all_frames(reference):
            shape = (int(reference.NumberOfFrames), int(reference.Rows), int(reference.Columns))
            stack = np.zeros(shape, np.uint8)
            for picture in shown:
                stack[picture.row.frame] = masks.mask(picture).mask
            yield f"{file.stem}.dcm", encode_segmentation(reference, stack, _maker(selection, shown[0]))
            return
        for picture in shown:
            mask = masks.mask(picture).mask[None].astype(np.uint8)
            name = f"{file_stem(file.drop, picture.row)}.dcm"
            yield name, encode_segmentation(reference, mask, _maker(selection, picture), picture.row.frame)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        # highdicom's ways to refuse a header; its text may hold a value of the file.
        raise ReadError(REFUSED, type(error).__name__) from error


def _maker(selection: Selection, picture: Picture) -> Maker:
    """What made the masks of a picture's chunk.

    Raises
    ------
    DamagedError
        If the chunk is not committed any more.
    """
    workspace, node, chunk = selection.workspace, selection.node, picture.unit.chunk
    commit = workspace.commit(node, chunk.unit, chunk.drop)
    if commit is None:
        raise DamagedError(f"{node.key}/{chunk.unit} is not committed any more.", "Export again.")
    proposals = workspace.nodes.get(node.inputs.get("proposals", ""))
    model = str(getattr(proposals.settings, "model", "")) if proposals else WHOLE
    created = datetime.fromisoformat(commit.created).astimezone(UTC)
    made_by = "" if node.policy == "supplied" else model
    return Maker(made_by, node.policy, metadata.version("medfocus"), workspace.fingerprint(node), created)
