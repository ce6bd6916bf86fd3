"""The weights folder: files that the user adds, with a record of each, and the digests of everything that is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manifests.errors import WeightsError
from manifests.fingerprint import digest_file
from stages.models.registry import MODELS, PREFIXES, Kind, ModelEntry, PackageFile, Source, entry
from stages.models.verified import SHIPPED, has_file, package_file, verified, verified_package_file, where_to_get

ENVIRONMENT = "MEDFOCUS_WEIGHTS"
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
VOCABULARY_SUFFIX = ".txt"


class WeightsRecord(BaseModel):
    """What is known of one added file; `<name>.json` in the weights folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of the model in the registry."""
    file: str
    """File name in the weights folder."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(gt=0)
    """Size of the file in bytes."""
    added: str
    """Time of adding, ISO 8601, UTC."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One line of `pipeline weights list`."""

    name: str
    kind: Kind
    present: bool
    """All files are there; their contents are not read."""
    sha256: str
    """Digest of the model's own file; empty if there is none or it was not added."""
    source: Source
    note: str


class WeightsFolder:
    """Where added weights are kept, and how every model's files are found and checked.

    Parameters
    ----------
    root : Path, optional
        The folder; by default `${MEDFOCUS_WEIGHTS}`, or `~/.cache/medfocus/weights`. Need not exist.
    """

    def __init__(self, root: Path | None = None) -> None:
        named = os.environ.get(ENVIRONMENT, "")
        self.root = root or (Path(named).expanduser() if named else Path.home() / ".cache" / "medfocus" / "weights")

    @property
    def cache(self) -> Path:
        """Folder of files that can be made again from others at any time."""
        return self.root / "derived"

    def add(self, name: str, file: Path) -> WeightsRecord:
        """Copy a weights file into the folder, if the whole of it loads into the model's architecture.

        Parameters
        ----------
        name : str
            Name in the registry of a model whose source is `file`, or `open_clip:<ModelName>`.
        file : Path
            A .pt, .pth, .bin or .safetensors file; no code in it is run.

        Raises
        ------
        WeightsError
            If the file is missing, damaged or of another architecture, or the folder cannot be written.
        """
        known = entry(name)
        if known.source != "file":
            raise WeightsError(f"The weights of {name} are fixed; no file can be added.", "See: pipeline weights list")
        suffixes = (VOCABULARY_SUFFIX,) if known.kind == "vocabulary" else SUFFIXES
        if not file.is_file() or file.suffix not in suffixes:
            raise WeightsError(f"{file}: expected a file that ends in {', '.join(suffixes)}.", where_to_get(known))
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            aside = self.root / f".{uuid.uuid4().hex}{file.suffix}"
            try:
                shutil.copyfile(file, aside)
                return self._adopt(known, aside, file.name)
            finally:
                for left in (aside, aside.with_suffix(".json")):
                    left.unlink(missing_ok=True)

    def record(self, name: str) -> WeightsRecord:
        """Record of an added file.

        Raises
        ------
        WeightsError
            If none was added, or the record is damaged.
        """
        path = self._record_path(name)
        try:
            return WeightsRecord.model_validate(json.loads(path.read_text("utf-8")))
        except FileNotFoundError:
            raise WeightsError(f"The weights of {name} are not here.", where_to_get(entry(name))) from None
        except (OSError, ValueError, ValidationError) as error:
            raise WeightsError(f"{path.name} in {self.root} is damaged.", where_to_get(entry(name))) from error

    def list_models(self) -> tuple[ModelRow, ...]:
        """Every model of the registry, and every `open_clip:<ModelName>` that was added; reads no weights."""
        added = sorted(self._added_names() - {m.name for m in MODELS})
        return tuple(self._row(known) for known in (*MODELS, *(entry(n) for n in added)))

    def locate(self, name: str) -> Path:
        """Path of the model's own file, present but not read.

        Raises
        ------
        WeightsError
            If it is missing, or the model has no file of its own.
        """
        known = entry(name)
        if not has_file(known):
            raise WeightsError(f"{name} has no weights file.", "See: pipeline weights list")
        path = self.root / self.record(name).file if known.source == "file" else SHIPPED / known.file
        if not path.is_file():
            raise WeightsError(f"{path.name}, the weights of {name}, is missing.", where_to_get(known))
        return path

    def digests(self, name: str) -> dict[str, str]:
        """sha256 of every file that determines the model's results, from registry and records; reads no weights.

        Raises
        ------
        WeightsError
            If the model is unknown, or its file was not added.
        """
        known = entry(name)
        own = {name: self._own_digest(known)} if has_file(known) else {}
        of_base = self.digests(known.base) if known.base else {}
        return own | of_base | {f"{p.package}/{p.path}": p.sha256 for p in known.packages}

    def check(self, name: str) -> dict[str, str]:
        """Read every file of a model and return the digests, if they are those of registry and record.

        Raises
        ------
        WeightsError
            If a file is missing or altered.
        """
        known = entry(name)
        if has_file(known):
            self.verified_path(name)
        for file in known.packages:
            self.package_path(file)
        if known.base:
            self.check(known.base)
        return self.digests(name)

    def verified_path(self, name: str) -> Path:
        """Path of the model's own file, after its digest was computed again and compared.

        Raises
        ------
        WeightsError
            If it is missing or altered; names the file and both digests.
        """
        known = entry(name)
        return verified(self.locate(name), self._own_digest(known), where_to_get(known))

    def package_path(self, file: PackageFile) -> Path:
        """Path of a file of a weights package, after its digest was compared; the package is not imported.

        Raises
        ------
        WeightsError
            If the package is missing or the file is altered.
        """
        return verified_package_file(file)

    def _own_digest(self, known: ModelEntry) -> str:
        return known.sha256 or self.record(known.name).sha256

    def _adopt(self, known: ModelEntry, aside: Path, shown: str) -> WeightsRecord:
        """Check the copy, name it by its digest, and write the record, which alone makes it valid, last."""
        try:
            check_fits(known, aside)
        except WeightsError as error:
            raise WeightsError(error.what.replace(aside.name, shown), f"{error.fix} {where_to_get(known)}") from error
        digest, size = digest_file(aside), aside.stat().st_size
        if known.sha256 not in (None, digest):
            raise WeightsError(f"{shown} has sha256 {digest}, expected {known.sha256}.", where_to_get(known))
        kept = self.root / f"{_stem(known.name)}-{digest[:12]}{aside.suffix}"
        aside.replace(kept)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = WeightsRecord(name=known.name, file=kept.name, sha256=digest, bytes=size, added=now)
        draft = aside.with_suffix(".json")
        draft.write_text(record.model_dump_json(indent=1) + "\n", "utf-8")
        draft.replace(self._record_path(known.name))
        for old in self.root.glob(f"{_stem(known.name)}-*"):
            if old != kept and re.fullmatch(r"[0-9a-f]{12}", old.stem.removeprefix(f"{_stem(known.name)}-")):
                old.unlink(missing_ok=True)
        return record

    def _record_path(self, name: str) -> Path:
        return self.root / f"{_stem(name)}.json"

    def _added_names(self) -> set[str]:
        return {p + f.stem.removeprefix(_stem(p)) for p in PREFIXES for f in self.root.glob(f"{_stem(p)}*.json")}

    def _row(self, known: ModelEntry) -> ModelRow:
        try:
            present = not has_file(known) or self.locate(known.name).is_file()
            digest = self._own_digest(known) if has_file(known) else ""
        except WeightsError:
            present, digest = False, ""
        here = [p is not None and p.is_file() for p in map(package_file, known.packages)]
        return ModelRow(known.name, known.kind, present and all(here), digest, known.source, known.note)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WeightsError(
                f"The weights folder {self.root} cannot be written: {error}.",
                f"Make it writable, make room, or set {ENVIRONMENT} to another folder.",
            ) from error


def check_fits(known: ModelEntry, file: Path) -> None:
    """Load a file in full into the model's architecture, and drop it again.

    Raises
    ------
    WeightsError
        If it is damaged, holds code or NaN, or a key or shape differs.
    """
    if known.kind in ("sam", "sam2"):
        from stages.models.sam2 import assemble

        assemble(known, file)
    elif known.kind == "timm":
        from stages.models import timm_files

        timm_files.load_checked(known.architecture, file)
    elif known.kind == "clipseg":
        from stages.models import clipseg

        clipseg.load_checked(file)
    elif known.kind == "medical":
        from stages.models import medical

        medical.load_checked(known.architecture, file)
    elif known.kind == "vocabulary":
        from stages.models import medical

        medical.read_vocabulary(file)
    else:
        from stages.models.open_clip_files import load_checked

        load_checked(known.architecture, file)


def _stem(name: str) -> str:
    return name.replace(":", "-")
