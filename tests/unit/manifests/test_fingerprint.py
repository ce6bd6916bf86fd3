"""Canonical JSON and digests."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.fingerprint import canonical_json, digest_bytes, digest_file, digest_json
from manifests.types import StageIdentity, Status


def test_keys_are_sorted_and_text_is_ascii_without_spaces() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"é": None, "d": True}}) == '{"a":{"d":true,"\\u00e9":null},"b":[1,2.5]}'


def test_tuple_and_list_are_the_same() -> None:
    assert digest_json({"views": ("roi", "ring")}) == digest_json({"views": ["roi", "ring"]})


def test_enum_and_its_value_are_the_same() -> None:
    assert canonical_json([Status.OK]) == "[1]"


def test_integer_and_float_differ() -> None:
    assert digest_json(1) != digest_json(1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_without_json_form_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="no JSON form"):
        canonical_json(value)


@pytest.mark.parametrize("value", [b"bytes", {1: "a"}, {"a": np.float32(1)}, {"a": {1, 2}}, Path("x")])
def test_other_types_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="value"):
        canonical_json(value)


def test_message_says_where_the_value_stands() -> None:
    with pytest.raises(ValueError, match=r"value\.masks\[1\]\.area: nan"):
        canonical_json({"masks": [{}, {"area": float("nan")}]})


def test_file_digest_is_the_digest_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"medfocus" * 100_000)
    assert digest_file(tmp_path / "weights") == digest_bytes(b"medfocus" * 100_000)
    assert digest_bytes(b"abc") == hashlib.sha256(b"abc").hexdigest()


def test_fingerprint_changes_with_every_field() -> None:
    base = StageIdentity("masks", 1, {"policy": "union"})
    others = (
        StageIdentity("other", 1, {"policy": "union"}),
        StageIdentity("masks", 2, {"policy": "union"}),
        StageIdentity("masks", 1, {"policy": "top1"}),
        StageIdentity("masks", 1, {"policy": "union"}, weights={"w": "0"}),
        StageIdentity("masks", 1, {"policy": "union"}, upstream={"proposals": "0"}),
    )
    assert len({identity.fingerprint for identity in (base, *others)}) == 6


def test_fingerprint_depends_on_no_hash_seed_locale_or_time_zone() -> None:
    settings = "{'b': 0.1, 'a': {'y': 1, 'x': 2}}"
    code = f"from manifests.types import StageIdentity; print(StageIdentity('m', 1, {settings}).fingerprint)"
    found = set()
    for seed, zone in (("0", "UTC"), ("7", "Asia/Tokyo")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "de_DE.UTF-8"}
        found.add(subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True).stdout)
    assert found == {StageIdentity("m", 1, {"a": {"x": 2, "y": 1}, "b": 0.1}).fingerprint.encode() + b"\n"}
