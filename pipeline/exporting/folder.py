"""The folder of one export: bound to its inputs by export.json, filled file by file, each whole or absent."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from manifests import disk
from manifests.errors import StoreError
from manifests.fingerprint import digest_json
from manifests.forgetting import WITHDRAWALS
from manifests.layout import EXPORT_RECORD as RECORD
from manifests.layout import EXPORT_SCHEMA
from pipeline.exporting.selection import Selection

PARTS: Final = ".parts"
"""Folder of finished parts of a file that is not finished; deleted with the export's end."""
SCHEMA: Final = {"schema": EXPORT_SCHEMA, "schema_version": 1}
SHOWN: Final = 12
"""Hex digits of a digest in names and messages."""


def export_identity(kind: str, selection: Selection) -> dict[str, Any]:
    """Everything that an export's bytes follow from, as JSON values without any path."""
    workspace, node = selection.workspace, selection.node
    identity = {
        **SCHEMA,
        "medfocus": metadata.version("medfocus"),
        "kind": kind,
        "dataset": workspace.paths.name,
        "stage": node.key,
        "fingerprint": workspace.fingerprint(node),
        "split": selection.split.value if selection.split else "all",
        "classes": list(workspace.classes),
        "drops": workspace.measure_data(node),
        WITHDRAWALS: sorted(record.withdrawal_id for record in workspace.withdrawals),
    }
    return dict(json.loads(json.dumps(identity)))


def default_folder(selection: Selection, identity: Mapping[str, Any]) -> Path:
    """Folder of an export that was given none: the same inputs give the same one, so that it can be resumed."""
    return selection.workspace.paths.exports / f"{identity['kind']}-{digest_json(identity)[:SHOWN]}"


@dataclass(frozen=True, slots=True)
class ExportFolder:
    """A folder that holds one export, finished or not."""

    root: Path
    identity: Mapping[str, Any]
    """What the files follow from."""

    @classmethod
    def open(cls, root: Path, identity: Mapping[str, Any]) -> ExportFolder:
        """Begin an export in a new or empty folder, or go on with one of the same inputs.

        Raises
        ------
        StoreError
            If the folder holds anything else, or cannot be written.
        """
        with disk.disk_errors(f"read {disk.place(root)}", root):
            if root.exists() and not root.is_dir():
                raise StoreError(f"{disk.place(root)} is a file.", "Name a folder: pipeline export KIND FOLDER")
            names = sorted(path.name for path in root.iterdir()) if root.exists() else []
        standing = cls._record(root) if RECORD in names else None
        foreign = [name for name in names if not name.endswith(disk.PARTIAL)]
        if standing is None and foreign:
            raise StoreError(
                f"{disk.place(root)} holds other files, such as {foreign[0]}, and no export of MedFocus.",
                "Name a new folder: pipeline export KIND FOLDER",
            )
        if standing is not None:
            _check_same(root, standing, identity)
        folder = cls(disk.make_private(root), identity)
        if standing is None:
            folder._write_record({})
        return folder

    @staticmethod
    def _record(root: Path) -> dict[str, Any]:
        try:
            found = json.loads((root / RECORD).read_bytes())
        except ValueError:
            found = None
        return found if isinstance(found, dict) else {}

    def has(self, name: str) -> bool:
        """Whether a file stands, which then is whole."""
        return (self.root / name).is_file()

    def write(self, name: str, data: bytes) -> None:
        """Write one file, whole or not at all.

        Raises
        ------
        StoreError
            If the disk is full, read-only, forbidden or failing.
        """
        try:
            disk.write_atomic(self.root / name, data)
        except FileNotFoundError:
            self._check_taken(name)

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """Give the path of a new file to write; it gets its name when the block ends, and is deleted if it fails.

        Raises
        ------
        StoreError
            If the disk is full, read-only, forbidden or failing.
        """
        partial = self.root / f".{name}.{uuid.uuid4().hex}{disk.PARTIAL}"
        with disk.disk_errors(f"write {disk.place(self.root / name)}", self.root):
            try:
                yield partial
                disk.sync_file(partial)
                disk.checkpoint("partial")
                partial.replace(self.root / name)
                disk.sync_folder(self.root)
            except FileNotFoundError:
                self._check_taken(name)
            finally:
                partial.unlink(missing_ok=True)

    def _check_taken(self, name: str) -> None:
        """Accept that a file vanished while it was written, if another process wrote the same and tidied up."""
        if not self.has(name):
            raise StoreError(
                f"{disk.place(self.root / name)} vanished while it was written.",
                "Let one export at a time write a folder, and run again.",
            )

    def part(self, name: str) -> str:
        """Name of a part, for `has` and `write`; its folder is there afterwards."""
        disk.make_private(self.root / PARTS)
        return f"{PARTS}/{name}"

    def finish(self, selection: Selection, counts: Mapping[str, int]) -> None:
        """Check that the inputs are still what they were, write the counts down, and clear away what kills left.

        Raises
        ------
        StoreError
            If a unit was computed anew meanwhile, so that the files may show two attempts.
        """
        if selection.workspace.measure_data(selection.node) != self.identity["drops"]:
            raise StoreError(
                f"{self.identity['stage']} changed while {disk.place(self.root)} was written.",
                "Delete that folder and export again.",
            )
        self._write_record({"finished": True, "counts": dict(counts)})
        with disk.disk_errors(f"tidy {disk.place(self.root)}", self.root):
            shutil.rmtree(self.root / PARTS, ignore_errors=True)
            for left in self.root.glob(f".*{disk.PARTIAL}"):
                left.unlink(missing_ok=True)

    def _write_record(self, outcome: Mapping[str, Any]) -> None:
        fields = {**self.identity, "finished": False, **outcome}
        self.write(RECORD, (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode("ascii"))


def _check_same(root: Path, standing: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds another export; say where the two first differ."""
    for key, ours in identity.items():
        theirs = standing.get(key)
        if theirs != ours:
            raise StoreError(
                f"{disk.place(root)} holds another export: its {key} is {_shown(theirs)}, now it is {_shown(ours)}.",
                "Name a new folder, or delete that one first: pipeline export KIND FOLDER",
            )


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) <= 2 * SHOWN:
        return repr(value)
    return "nothing" if value is None else f"of digest {digest_json(value)[:SHOWN]}"
