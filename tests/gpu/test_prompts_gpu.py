"""Prompts that are trained in captured steps learn what steps one after the other teach them."""

from __future__ import annotations

import pytest
import torch

from stages.baselines import prompts
from stages.baselines.schedule import Fit, Steps
from stages.baselines.together import train_together
from stages.baselines.training import train, train_alone
from stages.models.clip import load_clip
from tests.prompt_fits import fit_of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

COCOOP, COOP = Steps(2e-3, 2, 1), Steps(2e-3, 4, 4)


def fits(device: str, steps: Steps, sizes: tuple[int, ...]) -> list[Fit]:
    model = load_clip("lite0-minilm", device, "float32")
    return [fit_of(model, n, seed, steps) for seed, n in enumerate(sizes)]


def same(one: Fit, other: Fit) -> None:
    for name, learned in one.prompts.named_parameters():
        torch.testing.assert_close(other.prompts.get_parameter(name).cpu(), learned.cpu(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [COCOOP, COOP])
def test_captured_steps_learn_what_eager_ones_learn(steps: Steps) -> None:
    (eager,), (captured,), (on_cpu,) = (fits(device, steps, (10,)) for device in ("cuda", "cuda", "cpu"))
    start = captured.prompts.context.detach().clone()
    expected = train_alone(eager)
    assert train(captured) == pytest.approx(expected, abs=1e-4)
    assert train(on_cpu) == pytest.approx(expected, abs=1e-3)
    assert (captured.prompts.context - start).abs().max() > 1e-4
    same(eager, captured)
    same(on_cpu, captured)


@pytest.mark.parametrize("steps", [COCOOP, COOP])
def test_trainings_captured_together_learn_what_they_learn_alone(steps: Steps) -> None:
    alone, together = (fits("cuda", steps, (7, 3, 10)) for _ in range(2))
    expected = [train_alone(fit) for fit in alone]
    assert train_together(together) == pytest.approx(expected, abs=1e-4)
    for one, other in zip(alone, together, strict=True):
        same(one, other)


def test_predictions_do_not_depend_on_how_many_images_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    (fit,) = fits("cuda", COCOOP, (9,))
    many = prompts.predict(fit.prompts, fit.images)
    monkeypatch.setattr(prompts, "IMAGES_TOGETHER", {"cuda": 2})
    assert prompts.predict(fit.prompts, fit.images) == pytest.approx(many, abs=1e-4)
