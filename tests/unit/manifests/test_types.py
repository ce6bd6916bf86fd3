"""The exchanged values and the check at borders."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from manifests.errors import ExitCode, InterruptedRunError, PipelineError, ReadError, StoreError, WeightsError
from manifests.types import Cell, Chunk, Status, expect_array


def test_chunk_knows_its_unit_and_length() -> None:
    chunk = Chunk("first", 3, 192, 200)
    assert (chunk.unit, len(chunk)) == ("000003", 8)


@pytest.mark.parametrize(("fraction", "unit"), [(0.05, "masked-5-2"), (0.1, "masked-10-2"), (1.0, "masked-100-2")])
def test_cell_unit_gives_the_fraction_in_percent(fraction: float, unit: str) -> None:
    assert Cell("masked", fraction, 2).unit == unit


def test_fraction_that_is_not_exact_in_binary_has_a_plain_unit() -> None:
    assert Cell("masked", 0.07, 0).unit == "masked-7-0"


def test_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Chunk("first", 0, 0, 1).index = 2  # type: ignore[misc]


def test_status_numbers_are_those_on_disk() -> None:
    assert {s.name: s.value for s in Status} == {"ABSENT": 0, "OK": 1, "FAILED": 2, "FALLBACK": 3}


def test_array_that_fits_passes_with_any_length() -> None:
    expect_array("mask", np.zeros((5, 8, 8), bool), (None, 8, 8), "bool")


@pytest.mark.parametrize("array", [np.zeros((5, 8, 9), bool), np.zeros((5, 8), bool), np.zeros((5, 8, 8), np.uint8)])
def test_array_that_does_not_fit_is_refused_with_both_sides(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"mask: expected \(any, 8, 8\) bool, got \(5, 8"):
        expect_array("mask", array, (None, 8, 8), "bool")


@pytest.mark.parametrize(
    ("error", "code"), [(PipelineError, 1), (WeightsError, 2), (StoreError, 4), (InterruptedRunError, 75)]
)
def test_every_error_has_its_exit_code(error: type[PipelineError], code: int) -> None:
    assert error("what.", "fix.").exit_code == ExitCode(code)
    assert str(error("what.", "fix.")) == "what. fix."


@pytest.mark.parametrize("error", [StoreError("what.", "fix."), ReadError("decode.truncated", "at byte 3")])
def test_errors_survive_the_way_from_a_worker(error: PipelineError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
