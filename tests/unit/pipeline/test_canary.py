"""The first process records what its model makes of the canary; every other must agree with it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from manifests.errors import ExitCode, StoreError
from manifests.layout import DatasetPaths
from manifests.runs import installed_versions
from pipeline import canary, execute
from pipeline.canary import CanaryError, WorkerRefusedError, check_versions, meet_canary
from pipeline.cluster_config import ClusterConfig
from pipeline.execute import UnitTask, attempt_unit
from pipeline.plan import PlannedUnit
from stages.canary import SIDE_PX, TOLERANCE, canary_image, distance
from tests.conftest import ROOT

VECTOR = np.random.default_rng(3).normal(size=64).astype(np.float32)
ACROSS = np.random.default_rng(4).normal(size=64).astype(np.float32)
ACROSS *= np.linalg.norm(VECTOR) / np.linalg.norm(ACROSS)


def off_by(share: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A vector at a distance of the recorded one."""
    return (VECTOR + np.float32(share) * ACROSS).astype(np.float32)


def meet(
    folder: Path, monkeypatch: pytest.MonkeyPatch, vector: Any, device: str = "alpha", precision: str = "float32"
) -> None:
    """What a process on a device does after it has loaded a model that gives this vector."""
    monkeypatch.setattr(canary, "device_name", lambda _device: device)
    stage = SimpleNamespace(name="embeddings", canary=lambda: vector)
    meet_canary(folder, stage, precision, "cpu")  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_first_process_records_its_device_and_vector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet(tmp_path / "f", monkeypatch, VECTOR)
    assert list(files(tmp_path)) == ["f/canary.json"]
    record = json.loads(files(tmp_path)["f/canary.json"])
    assert set(record) == {"device", "vector"}
    assert record["device"] == "alpha"
    np.testing.assert_allclose(record["vector"], VECTOR, rtol=1e-5)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_process_within_the_tolerance_agrees_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    meet(tmp_path, monkeypatch, VECTOR)
    before = files(tmp_path)
    meet(tmp_path, monkeypatch, off_by(0.9 * TOLERANCE[precision]), "beta", precision)
    assert files(tmp_path) == before


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_process_that_sees_something_else_is_refused_by_the_names_of_both_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    meet(tmp_path, monkeypatch, VECTOR)
    before = files(tmp_path)
    with pytest.raises(CanaryError, match="embeddings on beta sees the canary image otherwise than alpha") as caught:
        meet(tmp_path, monkeypatch, off_by(1.1 * TOLERANCE[precision]), "beta", precision)
    assert caught.value.exit_code is ExitCode.REFUSED
    assert files(tmp_path) == before


WRONG = {
    "nan": np.where(np.arange(64) == 5, np.nan, VECTOR),
    "infinite": np.where(np.arange(64) == 5, np.inf, VECTOR),
    "all nan": np.full(64, np.nan),
    "zero": np.zeros(64),
    "shorter": VECTOR[:63],
    "another shape": VECTOR[None],
    "empty": VECTOR[:0],
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_vector_that_cannot_be_compared_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    meet(tmp_path, monkeypatch, VECTOR)
    with pytest.raises(CanaryError):
        meet(tmp_path, monkeypatch, WRONG[kind].astype(np.float32), "beta", "bfloat16")


@pytest.mark.parametrize("kind", ["nan", "infinite", "all nan", "zero"])
def test_first_process_with_a_broken_model_is_refused_and_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with pytest.raises(CanaryError):
        meet(tmp_path / "f", monkeypatch, WRONG[kind].astype(np.float32))
    assert files(tmp_path) == {}


def test_stage_without_a_model_records_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet(tmp_path / "f", monkeypatch, None)
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_file_system_without_hard_links_records_and_compares_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_link)
    meet(tmp_path, monkeypatch, VECTOR)
    assert list(files(tmp_path)) == ["canary.json"]
    meet(tmp_path, monkeypatch, VECTOR, "beta")
    with pytest.raises(CanaryError, match="than alpha"):
        meet(tmp_path, monkeypatch, off_by(0.1), "beta")


def test_full_disk_is_an_error_of_the_store_and_leaves_no_part_of_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match=r"canary\.json"):
        meet(tmp_path, monkeypatch, VECTOR)
    assert files(tmp_path) == {}


WRITER = """
    import sys, time
    from pathlib import Path
    from types import SimpleNamespace
    import numpy as np
    from pipeline import canary, execute

    folder, name = Path(sys.argv[1]), sys.argv[2]
    canary.device_name = lambda _: name
    vector = np.linspace(1, 2, 20_000, dtype=np.float32) * np.float32(1 + 1e-4 * (name == "beta"))
    stage = SimpleNamespace(name="embeddings", canary=lambda: vector)
    (folder / name).touch()
    while not (folder / "go").exists():
        pass
    for n in range(20):
        canary.meet_canary(folder / str(n), stage, "float32", "cpu")
"""
"""Meets twenty canaries as soon as it is told to."""


def test_of_two_first_processes_at_once_one_is_recorded_whole_and_both_agree(tmp_path: Path) -> None:
    code = "\n".join(line.removeprefix("    ") for line in WRITER.splitlines())
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT, stderr=subprocess.PIPE)
        for name in ("alpha", "beta")
    ]
    end = time.monotonic() + 60
    while not all((tmp_path / name).exists() for name in ("alpha", "beta")) and time.monotonic() < end:
        time.sleep(0.05)
    (tmp_path / "go").touch()
    said = [writer.communicate(timeout=60)[1].decode() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    for n in range(20):
        (name,) = files(tmp_path / str(n))
        record = json.loads((tmp_path / str(n) / name).read_bytes())
        assert (name, record["device"] in ("alpha", "beta"), len(record["vector"])) == ("canary.json", True, 20_000)


def test_canary_is_the_same_picture_everywhere() -> None:
    image = canary_image()
    assert (image.shape, str(image.dtype)) == ((SIDE_PX, SIDE_PX, 3), "uint8")
    assert (
        hashlib.sha256(image.tobytes()).hexdigest()
        == "30732188e48d965d3d945b49b632c3fa7b8960d2976b1768fe3c9349209908e2"
    )


def test_distance_is_relative_to_the_length_of_the_reference() -> None:
    assert distance(VECTOR, VECTOR) == 0
    assert distance(off_by(0.25), VECTOR) == pytest.approx(0.25, rel=1e-4)
    assert distance(7 * off_by(0.25), 7 * VECTOR) == pytest.approx(0.25, rel=1e-4)


def test_worker_with_another_version_is_refused_by_the_package_s_name() -> None:
    own = installed_versions()
    check_versions(own)
    check_versions({})
    with pytest.raises(WorkerRefusedError, match=r"torch 2\S*; the driver has torch 1\.0"):
        check_versions({**own, "torch": "1.0"})


def test_unit_is_not_computed_by_a_worker_with_other_versions(tmp_path: Path) -> None:
    planned = PlannedUnit("masks", "000000", "new", 0)
    task = UnitTask(str(tmp_path / "none"), "{}", "", planned, "", "cpu", (), "run", versions={"zarr": "0.1"})
    refused = attempt_unit(task)
    assert isinstance(refused, WorkerRefusedError)
    assert "driver has zarr 0.1" in str(refused)


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose canary this process met, from its first model on."""
    met: list[Path] = []
    monkeypatch.setattr(execute, "_LOADED", {})
    monkeypatch.setattr(execute, "meet_canary", lambda folder, *_: met.append(folder))
    return met


def loaded(work: str, device: str = "cpu", **cluster: Any) -> Any:
    """The model of a node with the same fingerprint in any work folder."""
    workspace = SimpleNamespace(
        paths=DatasetPaths(Path(work)),
        config=SimpleNamespace(cluster=ClusterConfig(**cluster)),
        fingerprint=lambda _: "f" * 64,
        map_stage=lambda _: SimpleNamespace(load=lambda _: None),
    )
    return execute._loaded(workspace, SimpleNamespace(stage="embeddings", settings=None), device)  # type: ignore[arg-type]


def test_process_that_serves_a_second_work_folder_meets_the_canary_of_that_one_too(met: list[Path]) -> None:
    assert loaded("/one") is not loaded("/two")
    assert [folder.is_relative_to(work) for folder, work in zip(met, ("/one", "/two"), strict=True)] == [True, True]


def test_model_is_loaded_once_and_meets_the_canary_once_in_a_work_folder(met: list[Path]) -> None:
    assert loaded("/one") is loaded("/one", workers=3, retries=9)
    assert len(met) == 1


@pytest.mark.parametrize("other", [{"batch_items": 3}, {"compiled": True}, {"device": "cuda"}])
def test_model_that_is_to_run_otherwise_is_loaded_anew(met: list[Path], other: dict[str, Any]) -> None:
    first = loaded("/one")
    assert loaded("/one", **other) is not first
    assert len(met) == 2
