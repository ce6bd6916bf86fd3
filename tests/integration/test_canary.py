"""The embedded model and its known vector of the canary: the same on every machine, and no other model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stages.canary import TOLERANCE, canary_image, distance, known_canary
from stages.models.clip import ClipModel, load_clip
from stages.models.converted import Converted
from stages.models.lite0_minilm import image_tower
from stages.models.weights import WeightsFolder

MODEL = "lite0-minilm"
KNOWN = known_canary(MODEL)


@pytest.fixture(scope="module")
def model() -> ClipModel:
    return load_clip(MODEL, "cpu", "float32")


def seen(model: ClipModel) -> NDArray[np.float32]:
    assert KNOWN is not None
    return np.asarray(model.encode_image([canary_image()], KNOWN.features, tokens=False).vectors[0])


def off(model: ClipModel) -> float:
    """Distance from the known vector."""
    assert KNOWN is not None
    return distance(seen(model), KNOWN.vector)


def test_embedded_model_meets_its_known_vector(model: ClipModel) -> None:
    assert off(model) < TOLERANCE["float32"] / 10


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_number_of_threads_does_not_matter(model: ClipModel, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert off(model) < TOLERANCE["float32"] / 10
    finally:
        torch.set_num_threads(before)


def test_embedded_model_in_bfloat16_is_within_the_wider_tolerance_and_not_the_narrow_one() -> None:
    found = off(load_clip(MODEL, "cpu", "bfloat16"))
    assert TOLERANCE["float32"] < found < TOLERANCE["bfloat16"]


def test_model_without_a_known_vector_has_none() -> None:
    assert known_canary("lite0-minilm-of-somebody-else") is None


@pytest.mark.slow
def test_tower_with_one_altered_layer_is_found_whichever_it_is(
    model: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Converted(MODEL, WeightsFolder()).tensors("visual.")
    kernels = [name for name, weight in state.items() if weight.ndim == 4]
    found = {}
    for name in kernels:
        monkeypatch.setattr(model, "_image", image_tower({**state, name: 1.05 * state[name]}))
        found[name] = off(model)
    assert len(found) == 49
    assert {name: far for name, far in found.items() if far < 5 * TOLERANCE["float32"]} == {}
