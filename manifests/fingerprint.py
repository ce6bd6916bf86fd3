"""Canonical JSON and sha256: what makes two settings, two files or two results the same."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def _plain(value: Any, where: str) -> Any:
    """Reduce mappings and sequences to dicts and lists, and refuse what JSON cannot say exactly."""
    if value is None or isinstance(value, bool | str | int):
        return _plain_scalar(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no JSON form")
        return float(value)
    if isinstance(value, Mapping):
        if wrong := [k for k in value if not isinstance(k, str)]:
            raise TypeError(f"{where}: keys must be str, got {wrong[0]!r}")
        return {str(k): _plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    raise TypeError(f"{where}: {type(value).__name__} is not a JSON type")


def _plain_scalar(value: str | int | None) -> str | int | None:
    """Strip enum subclasses to the bare value, so that an enum and its value are the same."""
    if value is None or isinstance(value, bool):
        return value
    return str.__str__(value) if isinstance(value, str) else int(value)


def canonical_json(value: Any) -> str:
    """Write a value as the one JSON text that stands for it.

    Parameters
    ----------
    value : Any
        None, bool, int, float, str, and mappings (str keys) and sequences of these; a tuple reads as a list.

    Returns
    -------
    str
        ASCII, keys sorted, no spaces, floats as `repr`; so 1 and 1.0 differ.

    Raises
    ------
    ValueError
        If a float is NaN or infinite.
    TypeError
        If any other type or a key that is not str occurs; the message says where.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_bytes(data: bytes) -> str:
    """sha256 of bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """sha256 of a value's canonical JSON, 64 hex digits; raises what `canonical_json` raises."""
    return digest_bytes(canonical_json(value).encode("ascii"))


def digest_file(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
