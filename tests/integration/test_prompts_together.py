"""Prompts that are trained in the same steps learn what each learns alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from stages.baselines.schedule import Fit, Steps
from stages.baselines.together import train_together
from stages.baselines.training import train_alone
from stages.models.clip import ClipModel, load_clip
from tests.prompt_fits import fit_of


@pytest.fixture(scope="module")
def lite0() -> ClipModel:
    return load_clip("lite0-minilm", "cpu", "float32")


@pytest.mark.parametrize("steps", [Steps(2e-3, 2, 1), Steps(2e-3, 3, 4)])
def test_trainings_of_several_sizes_learn_what_they_learn_alone(lite0: ClipModel, steps: Steps) -> None:
    alone, together = ([fit_of(lite0, n, seed, steps) for seed, n in enumerate((7, 3, 10))] for _ in range(2))
    before = [fit.prompts.context.detach().clone() for fit in alone]
    expected = [train_alone(fit) for fit in alone]
    assert train_together(together) == pytest.approx(expected, abs=1e-4)
    for start, one, other in zip(before, alone, together, strict=True):
        assert (one.prompts.context - start).abs().max() > 1e-4
        for name, learned in one.prompts.named_parameters():
            torch.testing.assert_close(other.prompts.get_parameter(name), learned, atol=1e-4, rtol=1e-4)


def test_trainings_may_differ_in_epochs(lite0: ClipModel) -> None:
    schedules = (Steps(2e-3, 2, 4), Steps(2e-3, 4, 4))
    alone, together = ([fit_of(lite0, 6, 0, steps) for steps in schedules] for _ in range(2))
    expected = [train_alone(fit) for fit in alone]
    assert train_together(together) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("train", [train_alone, lambda fit: train_together([fit])[0]])
def test_loss_that_is_not_finite_is_refused(lite0: ClipModel, train: Callable[[Fit], float]) -> None:
    fit = fit_of(lite0, 3, 0, Steps(2e-3, 1, 1))
    fit.images[1] = np.nan
    with pytest.raises(ConfigError, match="The loss of the prompts is nan"):
        train(fit)
