"""What a unit makes of errors of the GPU: those that end all work of a process are not the unit's fault."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch

from manifests.types import Chunk
from pipeline import execute
from pipeline.canary import BrokenGpuError, WorkerRefusedError
from pipeline.cluster_config import ClusterConfig
from pipeline.execute import UnitTask, attempt_unit
from pipeline.plan import PlannedUnit

CHUNK = Chunk("drop-001", 0, 0, 8)
TASK = UnitTask("/d", "{}", "", PlannedUnit("masks", "000000", "new", 0, chunk=CHUNK), "", "cuda", ("drop-001",), "run")
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCompile with TORCH_USE_CUDA_DSA."


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Exception:
    """The error that every unit raises."""
    error: Exception = request.param

    def raise_it(*_: object) -> None:
        raise error

    workspace = SimpleNamespace(config=SimpleNamespace(cluster=ClusterConfig()), nodes={"masks": None})
    monkeypatch.setattr(execute, "_workspace", lambda *_: workspace)
    monkeypatch.setattr(execute, "_run_chunk", raise_it)
    return error


@pytest.mark.parametrize(
    "failing",
    [
        torch.AcceleratorError(ILLEGAL),
        RuntimeError(ILLEGAL),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ],
    indirect=True,
)
def test_error_that_ends_all_work_of_a_process_speaks_against_the_process(failing: Exception) -> None:
    result = pickle.loads(pickle.dumps(attempt_unit(TASK)))
    assert isinstance(result, BrokenGpuError)
    assert isinstance(result, WorkerRefusedError)
    assert str(failing).partition("\n")[0] in str(result)
    assert "masks/drop-001/000000" in str(result)
    assert "Compile with" not in str(result)


@pytest.mark.parametrize(
    "failing",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
    indirect=True,
)
def test_other_error_of_a_model_stays_the_unit_s(failing: Exception) -> None:
    with pytest.raises(type(failing)) as raised:
        attempt_unit(TASK)
    assert raised.value is failing
