"""`lite0-minilm` as one file: converted once from its packages, kept in the weights folder, digest checked at load."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from manifests.errors import WeightsError
from manifests.fingerprint import digest_bytes, digest_file, digest_json
from stages.models.checkpoints import read_state
from stages.models.lite0 import load_lite0_state
from stages.models.registry import MINILM
from stages.models.weights import WeightsFolder

FORMAT: Final = 1
"""Raised whenever the conversion would give other tensors for the same sources."""
HEAD_SHAPES: Final = {"visual.head.proj.weight": (256, 1280), "text.proj.weight": (256, 384), "logit_scale": ()}

log = logging.getLogger(__name__)


def minilm_state(folder: WeightsFolder) -> dict[str, Tensor]:
    """MiniLM's weights under the keys of open_clip's HFTextEncoder, without its projection.

    Raises
    ------
    WeightsError
        If the package is missing or its file is altered.
    """
    state = read_state(folder.package_path(MINILM[0]))
    unused = ("pooler.", "embeddings.position_ids")
    return {f"transformer.{key}": value for key, value in state.items() if not key.startswith(unused)}


def convert(name: str, folder: WeightsFolder) -> dict[str, Tensor]:
    """State dict of the model's CustomTextCLIP from the two packages and the shipped heads.

    Raises
    ------
    WeightsError
        If a file is missing, altered or of another shape.
    """
    path = folder.verified_path(name)
    heads = read_state(path)
    shapes = {key: tuple(value.shape) for key, value in heads.items()}
    if shapes != HEAD_SHAPES:
        raise WeightsError(f"{path.name}: expected {HEAD_SHAPES}, got {shapes}.", "Install the package again.")
    trunk = {k: v for k, v in load_lite0_state().items() if not k.startswith("classifier.")}
    state = {f"visual.trunk.{key}": value for key, value in trunk.items()}
    state |= {f"text.{key}": value for key, value in minilm_state(folder).items()}
    return {key: value.contiguous() for key, value in (state | heads).items()}


class Converted:
    """The converted weights: read from the cache, or converted and put there, or only converted if it is read-only.

    Parameters
    ----------
    name : str
        Name of the model in the registry.
    folder : WeightsFolder
        Where the sources are verified and the converted file is kept.
    """

    def __init__(self, name: str, folder: WeightsFolder) -> None:
        sources = digest_json({"format": FORMAT, "sources": folder.digests(name)})
        self._file = folder.cache / f"{name}-{sources[:12]}.safetensors"
        self._record = self._file.with_suffix(".json")
        self._state: Mapping[str, Tensor] | None = None
        if not self._is_intact():
            self._state = convert(name, folder)
            self._keep(self._state)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose key begins with `prefix`, without it."""
        if self._state is not None:
            return {k.removeprefix(prefix): v for k, v in self._state.items() if k.startswith(prefix)}
        with safe_open(self._file, framework="pt") as file:
            keys = [k for k in list(file.keys()) if k.startswith(prefix)]
            return {k.removeprefix(prefix): file.get_tensor(k) for k in keys}

    def _is_intact(self) -> bool:
        """Whether the cached file is there with the digest that was recorded when it was written."""
        try:
            recorded = json.loads(self._record.read_text("utf-8"))["sha256"]
            found = digest_file(self._file)
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if found != recorded:
            log.warning("%s was altered since it was written; it is made again", self._file.name)
        return bool(found == recorded)

    def _keep(self, state: Mapping[str, Tensor]) -> None:
        """Write file and record aside and rename them into place; a folder that cannot be written is no error."""
        data = save(dict(state))
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _replace(self._file, data)
            _replace(self._record, json.dumps({"sha256": digest_bytes(data)}).encode("ascii"))
        except OSError as error:
            log.info("The converted weights are not kept (%s); they are made again next time", error.strerror)


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        aside.write_bytes(data)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
