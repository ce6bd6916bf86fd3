"""Groups (patients, studies) are stored as salted hashes only; the salt is kept apart from every work folder."""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path

from manifests.errors import InventoryError
from manifests.fingerprint import digest_bytes

SALT_VARIABLE = "MEDFOCUS_SALT_FILE"
FOR_OTHERS = 0o077
"""Bits of a file's mode that let group or others in."""


def salt_file() -> Path:
    """File that holds the salt: `$MEDFOCUS_SALT_FILE`, else `~/.config/medfocus/salt`."""
    return Path(os.environ.get(SALT_VARIABLE) or "~/.config/medfocus/salt").expanduser()


def read_salt() -> str:
    """Read the salt; make one, readable for this user only, where there is none yet.

    Raises
    ------
    InventoryError
        If others can read it, it is empty, or it can be neither read nor written.
    """
    try:
        file = salt_file()
        if not file.exists():
            _create(file)
        if file.stat().st_mode & FOR_OTHERS:
            raise InventoryError("Others can read the salt for patient pseudonyms.", f"chmod 600 {file}")
        salt = file.read_text(encoding="ascii").strip()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise InventoryError(
            f"The salt for patient pseudonyms can be neither read nor made ({type(error).__name__}).",
            f"Name a file of your own: {SALT_VARIABLE}=FILE",
        ) from error
    if not salt:
        raise InventoryError("The salt file for patient pseudonyms is empty.", "Restore it from your backup.")
    return salt


def check_salt_outside(folder: Path) -> None:
    """Refuse a salt that would be copied and shared along with what it protects.

    Raises
    ------
    InventoryError
        If the salt's file is, or would be made, below the folder.
    """
    try:
        below = salt_file().resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # nothing to find a salt by: `read_salt` refuses it if one is needed
        return
    if below:
        raise InventoryError(
            "The salt for patient pseudonyms would lie in the work folder, among what it protects.",
            f"Move it elsewhere, and name it: {SALT_VARIABLE}=FILE",
        )


def pseudonym(salt: str, group: str) -> str:
    """First 16 hex digits of sha256(salt + ":" + group)."""
    return digest_bytes(f"{salt}:{group}".encode())[:16]


def salt_identity(salt: str) -> str:
    """Eight hex digits that tell two salts apart and reveal neither."""
    return digest_bytes(f"salt-identity:{salt}".encode())[:8]


def _create(file: Path) -> None:
    """Write a new salt whole; where two processes do so at once, the first one's stays."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(32) + "\n")
        file.hardlink_to(partial)
    except FileExistsError:
        return
    finally:
        partial.unlink()
