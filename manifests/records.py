"""The commit record: what one unit's winning attempt wrote, with a digest for every file and one for itself."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from manifests import disk
from manifests.errors import DamagedError, StoreError
from manifests.fingerprint import canonical_json, digest_bytes, digest_json
from manifests.layout import UnitPaths
from manifests.types import ItemOutcome

RECORD_VERSION = 1
LOOKS = 20
"""How often a folder without a record is looked at again: another process may be replacing it, or NFS be late."""
LOOK_EVERY_S = 0.01
REPAIR = "Run: pipeline verify, then: pipeline repair"


class Commit(BaseModel):
    """One committed unit; everything in it but `attempt`, `timings` and `created` follows from its inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = RECORD_VERSION
    unit: str
    attempt: str
    """32 hex digits, new for every try."""
    digests: dict[str, str]
    """sha256 of every file: relative to the store's folder for shards (`data.zarr/...`), else to the commit's."""
    sizes: dict[str, int]
    """Bytes of every file."""
    items: tuple[ItemOutcome, ...] = ()
    """One for every row of a chunk, in order; none for a cell."""
    metrics: dict[str, Any] = {}
    """What a cell's fit returned."""
    timings: dict[str, float] = {}
    """Seconds by step."""
    created: str = ""
    """UTC time in ISO form."""
    record: dict[str, Any] = {}
    """What the caller adds, such as digests of inputs."""

    def outcomes(self) -> tuple[ItemOutcome, ...]:
        """What became of each image of a chunk."""
        return self.items

    def to_bytes(self) -> bytes:
        """Contents of commit.json, which end with the digest of all the rest.

        Raises
        ------
        ValueError
            If metrics, timings or record hold NaN or infinity.
        TypeError
            If they hold what is no JSON value.
        """
        fields = dict(self)
        fields["items"] = [
            {"row": o.row, "image_id": o.image_id, "status": int(o.status), "reason": o.reason, "detail": o.detail}
            for o in self.items
        ]
        fields = json.loads(canonical_json(fields))
        return (json.dumps({**fields, "sha256": digest_json(fields)}) + "\n").encode("ascii")


def now() -> str:
    """Time in UTC, ISO form, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def load_record(root: Path, unit: str) -> Commit | None:
    """Read a unit's commit record; None if the unit is not committed.

    Raises
    ------
    StoreError
        If the record is missing from its folder, damaged, forbidden, or written by another version.
    """
    paths = UnitPaths(root)
    name = f"{disk.place(root)}/commits/{unit}"
    with disk.disk_errors(f"read {name}", root):
        for _ in range(LOOKS):
            try:
                return parse_record(paths.record(unit).read_bytes(), name)
            except NotADirectoryError:
                raise DamagedError(f"{name} is a file and no folder.", REPAIR) from None
            except FileNotFoundError:
                if not paths.commit(unit).exists():
                    return None
                time.sleep(LOOK_EVERY_S)
    raise DamagedError(f"{name} has no commit.json.", REPAIR)


def parse_record(data: bytes, name: str) -> Commit:
    """Read the contents of a commit.json.

    Parameters
    ----------
    data : bytes
        The file.
    name : str
        What messages call it.

    Raises
    ------
    StoreError
        If it is damaged or written by another version.
    """
    try:
        fields = json.loads(data)
        digest = fields.pop("sha256")
        version = fields["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{name}/commit.json is damaged: it is no commit record.", REPAIR) from error
    if version != RECORD_VERSION:
        raise StoreError(
            f"{name}/commit.json is of version {version}, this version of MedFocus reads {RECORD_VERSION}.",
            "Use the version that wrote it, or another work folder: --workdir DIR",
        )
    # As `canonical_json`, but by the C encoder: what json.loads returned needs no checks, and plans read thousands.
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    if digest != digest_bytes(text.encode("ascii")):
        raise DamagedError(f"{name}/commit.json is damaged: it does not match its digest.", REPAIR)
    try:
        return Commit.model_validate(fields)
    except ValidationError as error:
        raise DamagedError(f"{name}/commit.json is damaged: {error.errors()[0]['msg']}.", REPAIR) from error
