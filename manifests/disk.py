"""Writes that are whole or absent, and disk faults told in plain words."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manifests.errors import StoreError

PARTIAL = ".partial"
"""End of the name of a file that is being written beside the one that it is to replace."""
INCOMING = ".incoming-"
"""Beginning of the name of a drop that is being written."""
ADVICE = {
    errno.ENOSPC: "Free space there and run again: what was committed is unharmed.",
    errno.EDQUOT: "Free some of your quota and run again: what was committed is unharmed.",
    errno.EROFS: "Mount the file system writable, or choose another folder: --workdir DIR",
    errno.EACCES: "Give yourself the right to read and write there, or choose another folder: --workdir DIR",
    errno.EPERM: "Give yourself the right to read and write there, or choose another folder: --workdir DIR",
    errno.EIO: "Check the disk, then run: pipeline verify",
    errno.ESTALE: "Check the network file system and run again: what was committed is unharmed.",
    errno.EXDEV: "Keep one data set's folder on one file system, without mounts or links inside.",
}
"""What to do, by error number; any other OSError is a bug and rises as it is."""


def checkpoint(_name: str) -> None:
    """Mark a place where a crash must do no harm; does nothing, and the fault tests replace it."""


def place(path: Path) -> str:
    """Last three parts of a path: enough to find it, and no absolute path in messages that end up in logs."""
    return "/".join([part for part in path.parts if part != path.anchor][-3:])


@contextmanager
def disk_errors(doing: str, folder: Path) -> Iterator[None]:
    """Turn a full, read-only, forbidden or failing disk into a `StoreError`.

    Parameters
    ----------
    doing : str
        What was tried: `write masks/first/000003`.
    folder : Path
        Where; an error that names a file elsewhere rises unchanged.

    Raises
    ------
    StoreError
        For the error numbers in `ADVICE`.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in ADVICE or not _concerns(error, folder):
            raise
        raise StoreError(f"Cannot {doing}: {os.strerror(error.errno)}.", ADVICE[error.errno]) from error


def _concerns(error: OSError, folder: Path) -> bool:
    """Whether an error names a file below the folder, one of the folder's parents, or (as a write does) none."""
    if not isinstance(error.filename, str | bytes):
        return True
    path = Path(os.fsdecode(error.filename))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries survive a power cut, where the file system can do that for folders."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder unless something is in it or it is gone already."""
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
            raise


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file and make its bytes survive a power cut; the name still needs `sync_folder`."""
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that every reader sees the old or the new one, whole; text becomes UTF-8.

    Raises
    ------
    StoreError
        If the disk is full, read-only, forbidden or failing; the old file stands.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    with disk_errors(f"write {place(path)}", path.parent):
        try:
            write_synced(partial, content.encode("utf-8") if isinstance(content, str) else content)
            checkpoint("partial")
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def make_private(folder: Path) -> Path:
    """Create a folder that only its owner may enter (mode 0700); one that exists keeps its mode.

    Raises
    ------
    StoreError
        If the disk is full, read-only, forbidden or failing.
    """
    with disk_errors(f"create {place(folder)}", folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
