"""Weights files as state dicts: read without running any code of theirs, and loaded strictly or not at all."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from manifests.errors import WeightsError

WRAPPERS = ("model", "state_dict")
"""Keys under which training code keeps the state dict; Meta's SAM2 files use `model`."""
MAX_NAMED = 3


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file, or from a torch file with `weights_only=True`.

    Returns
    -------
    dict[str, Tensor]
        On the CPU; a wrapping `model` or `state_dict` key is taken off.

    Raises
    ------
    WeightsError
        If the file is truncated, no weights file, holds code, or holds NaN or infinite values.
    """
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load_torch(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path.name} cannot be read: {_cause(path, error)}", "Get the file again.") from error
    for key in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path.name} holds no state dict: expected tensors by name.", "Get the official file.")
    state = {str(k): v for k, v in content.items()}
    _check_finite(path.name, state)
    return state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict into a module of exactly the same keys and shapes.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    state : Mapping[str, Tensor]
        Converted to the module's types.
    what : str
        File and architecture, for the message.

    Raises
    ------
    WeightsError
        If a key is missing or left over, or a shape differs; names the first few and the number.
    """
    check_state(module.state_dict(), state, what)
    module.load_state_dict(state)


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor], what: str) -> None:
    """Refuse a state dict of other keys or shapes than a model's own.

    Raises
    ------
    WeightsError
        If a key is missing or left over, or a shape differs; names the first few and the number.
    """
    problems = [
        *_listed("missing", sorted(own.keys() - state.keys())),
        *_listed("unexpected", sorted(state.keys() - own.keys())),
        *_listed(
            "of another shape",
            [
                f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
                for k, v in own.items()
                if k in state and state[k].shape != v.shape
            ],
        ),
    ]
    if problems:
        raise WeightsError(f"{what} do not fit each other: {'; '.join(problems)}.", "Add the file of this model.")


def _load_torch(path: Path) -> Any:
    with warnings.catch_warnings():
        # A plain pickle is read by the same rules; what is not allowed in it is refused all the same.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True)


def _cause(path: Path, error: Exception) -> str:
    """What the file is instead, in words where that can be seen."""
    with path.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    if not head:
        return "it is empty."
    if head.startswith((b"<!doctype", b"<html")):
        return "it is an HTML page, not a weights file."
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself."
    text = re.sub(r"\s+", " ", str(error).replace(str(path), path.name))
    if "weights_only" in text.lower():
        return "it holds more than tensors, and code in it is not run."
    return f"{text[:200]}."


def _check_finite(name: str, state: Mapping[str, Tensor]) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{name}: {key} holds NaN or infinite values.", "Get the file again.")


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return [f"{what}: {', '.join(names[:MAX_NAMED])}{more}"]
