"""The registry of models as data."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import pytest

from manifests.errors import WeightsError
from manifests.fingerprint import digest_file
from stages.models.registry import MODELS, Kind, entry, names
from stages.models.verified import SHIPPED


def test_names_are_unique_and_safe_as_file_names() -> None:
    found = [m.name for m in MODELS]
    assert len(found) == len(set(found))
    kept = [name.replace(":", "-") for name in found]  # as the weights folder names them
    assert len(kept) == len(set(kept))
    assert all(re.fullmatch(r"[a-z0-9._-]+", name) for name in kept)


def test_every_model_has_the_kind_under_which_it_is_listed() -> None:
    listed = [name for kind in get_args(Kind) for name in names(kind)]
    assert sorted(listed) == sorted(m.name for m in MODELS)


@pytest.mark.parametrize("known", [m for m in MODELS if m.kind == "sam2"], ids=lambda m: m.name)
def test_every_sam2_architecture_is_a_file_of_the_installed_package(known) -> None:
    spec = find_spec("sam2")
    assert spec is not None
    assert (Path(spec.origin).parent / "configs" / known.architecture).is_file()


def test_official_names_match_those_of_the_sam2_package() -> None:
    text = (Path(find_spec("sam2").origin).parent / "build_sam.py").read_text("utf-8")
    for known in (m for m in MODELS if m.kind == "sam2" and m.origin.startswith("facebook/")):
        published = known.origin.split()[0]
        assert re.search(rf'"{published}": \(\s*"configs/{re.escape(known.architecture)}",\s*"{known.file}"', text)


@pytest.mark.parametrize("known", [m for m in MODELS if m.source == "shipped"], ids=lambda m: m.name)
def test_shipped_files_have_the_pinned_digest(known) -> None:
    assert digest_file(SHIPPED / known.file) == known.sha256


def test_openai_models_use_architectures_with_quickgelu() -> None:
    openai = [entry(name) for name in names("open_clip") if name.startswith("clip-vit")]
    assert len(openai) == 3
    assert all(known.architecture.endswith("-quickgelu") for known in openai)


def test_unknown_name_is_refused_with_near_matches() -> None:
    with pytest.raises(WeightsError, match=r"no model named 'sam2\.1_hiera_tny'.*Did you mean sam2\.1_hiera_tiny"):
        entry("sam2.1_hiera_tny")


def test_any_open_clip_architecture_can_be_named() -> None:
    known = entry("open_clip:ViT-B-32")
    assert (known.kind, known.source, known.architecture) == ("open_clip", "file", "ViT-B-32")


@pytest.mark.parametrize("name", ["open_clip:", "open_clip:../x", "open_clip:a/b", "openclip:ViT-B-32", ""])
def test_malformed_names_are_refused(name) -> None:
    with pytest.raises(WeightsError):
        entry(name)


def test_importing_the_weights_folder_and_the_stage_loads_no_torch() -> None:
    code = "import sys, stages.models.weights, stages.proposals.stage; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
