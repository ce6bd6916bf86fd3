"""Several trainings of prompts in the same steps, each with its own images; on a GPU one captured step is replayed.

The parameters of C trainings are stacked, and so are the images that each sees at a step. The loss is the sum of
theirs, so that no gradient of one depends on another, and the frozen text tower sees the prompts of all at once. A
training that is over has weights and a learning rate of zero from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.utils.rnn import pad_sequence

from stages.baselines.prompts import ConditionalPrompts
from stages.baselines.schedule import MOMENTUM, WEIGHT_DECAY, Fit, checked_loss
from stages.threads import one_thread

META: Final = "meta."
WARM_UPS: Final = 3
"""Steps before one is captured, which are undone."""
STEPS_A_LOOK: Final = 1000
"""Steps between two looks at the losses; each waits for the GPU."""


class _Plan(NamedTuple):
    """What each of T steps takes, for C trainings with up to B images a step."""

    rows: Tensor
    """(T, C, B) int64, positions among the images of all trainings."""
    weights: Tensor
    """(T, C, B) float32, an image's share in the loss of its training's step; 0 where there is none."""
    rates: Tensor
    """(T, C) float32, learning rates."""


def train_together(fits: Sequence[Fit]) -> list[float]:
    """Train all at once, with what `train_alone` would give each; returns each one's mean loss of its last epoch.

    Parameters
    ----------
    fits : Sequence[Fit]
        Of one kind of prompts, one model and the same classes; numbers of images and epochs may differ.

    Raises
    ------
    ConfigError
        If a loss stops being finite.
    """
    with one_thread():
        training = _Together(fits)
        advance = training.advance
        if training.number.is_cuda:
            advance = _captured(training.advance, training.state())
        for step in range(1, len(training.losses) + 1):
            advance()
            if step % STEPS_A_LOOK == 0:
                checked_loss(float(training.losses[step - 1].sum()))
        training.write_back()
        return training.mean_losses()


class _Together:
    """Stacked parameters, what the optimizer remembers of them, and how far the training is; all on the device."""

    def __init__(self, fits: Sequence[Fit]) -> None:
        self._fits = fits
        self._first = fits[0].prompts
        device = self._first.device
        self._images, self._labels = (
            torch.cat([torch.from_numpy(part) for part in parts]).to(device)
            for parts in ([fit.images for fit in fits], [fit.labels for fit in fits])
        )
        self._counts, plan = _plan(fits)
        self._plan = _Plan(*(part.to(device) for part in plan))
        self._parameters: dict[str, Tensor] = stack_module_state([fit.prompts for fit in fits])[0]
        self._momenta = {name: torch.zeros_like(value) for name, value in self._parameters.items()}
        self.number = torch.zeros(1, dtype=torch.int64, device=device)
        """The next step, (1,)."""
        self.losses = torch.zeros(plan.rates.shape, device=device)
        """Loss of each training at each step so far, (T, C) float32."""

    def state(self) -> list[Tensor]:
        """All that a step changes."""
        return [*self._parameters.values(), *self._momenta.values(), self.number, self.losses]

    def advance(self) -> None:
        """Take one step of every training; nothing is read back from the device."""
        rows, weights, rates = (part.index_select(0, self.number)[0] for part in self._plan)
        logits, labels = self._logits(self._images[rows]), self._labels[rows]
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(weights)
        losses = (each * weights).sum(dim=1)
        gradients = torch.autograd.grad(losses.sum(), list(self._parameters.values()))
        with torch.no_grad():
            for (name, value), gradient in zip(self._parameters.items(), gradients, strict=True):
                momentum = self._momenta[name].mul_(MOMENTUM).add_(gradient.add(value, alpha=WEIGHT_DECAY))
                value.sub_(momentum * rates.view(-1, *[1] * (value.ndim - 1)))
            self.losses.index_copy_(0, self.number, losses[None])
            self.number.add_(1)

    def _logits(self, images: Tensor) -> Tensor:
        """Logits of unit vectors, (C, B, D) -> (C, B, K)."""
        contexts = self._parameters["context"][:, None]
        if isinstance(self._first, ConditionalPrompts):
            contexts = contexts + self._moves(self._first.meta, images)[:, :, None]
        texts = self._first.texts(contexts.flatten(0, 1))
        texts = texts.unflatten(0, (*contexts.shape[:2], -1))  # type: ignore[no-untyped-call]
        return self._first.temperature * torch.einsum(
            "cbd,cbkd->cbk", images, texts.expand(-1, images.shape[1], -1, -1)
        )

    def _moves(self, network: nn.Module, images: Tensor) -> Tensor:
        """What each training's own network makes of its images, (C, B, D) -> (C, B, d)."""
        own = {name.removeprefix(META): v for name, v in self._parameters.items() if name.startswith(META)}

        def moved(parameters: dict[str, Tensor], of_one: Tensor) -> Tensor:
            out: Tensor = functional_call(network, parameters, of_one)
            return out

        return vmap(moved)(own, images)

    @torch.no_grad()
    def write_back(self) -> None:
        """Give each training's prompts what they have learned."""
        for number, fit in enumerate(self._fits):
            for name, parameter in fit.prompts.named_parameters():
                parameter.copy_(self._parameters[name][number])

    def mean_losses(self) -> list[float]:
        """Mean loss over the images of each training's last epoch."""
        means = []
        for losses, counts, fit in zip(self.losses.T.cpu().double(), self._counts, self._fits, strict=True):
            steps = slice(len(counts) - len(counts) // fit.steps.epochs, len(counts))
            means.append(checked_loss(float(losses[steps] @ counts[steps].double()) / len(fit.labels)))
        return means


def _plan(fits: Sequence[Fit]) -> tuple[list[Tensor], _Plan]:
    """Images of each step of each training, and the plan of all; on the CPU."""
    steps = [[(rate, rows) for rate, batches in fit.epochs() for rows in batches] for fit in fits]
    longest, widest = max(map(len, steps)), max(len(rows) for own in steps for _, rows in own)
    counts, plans, first = [], [], 0
    for own, fit in zip(steps, fits, strict=True):
        rows = pad_sequence([rows for _, rows in own], batch_first=True) + first
        counts.append(torch.tensor([len(rows) for _, rows in own]))
        weights = (torch.arange(widest) < counts[-1][:, None]) / counts[-1][:, None]
        rates = torch.tensor([rate for rate, _ in own])
        after = longest - len(own)
        plans.append(
            (
                F.pad(rows, (0, widest - rows.shape[1], 0, after)),
                F.pad(weights, (0, 0, 0, after)),
                F.pad(rates, (0, after)),
            )
        )
        first += len(fit.labels)
    return counts, _Plan(*(torch.stack(parts, dim=1) for parts in zip(*plans, strict=True)))


def _captured(advance: Callable[[], None], state: Sequence[Tensor]) -> Callable[[], None]:
    """A step as a CUDA graph, which starts from the state as it is now."""
    kept = [value.detach().clone() for value in state]

    @torch.no_grad()
    def restore() -> None:
        for value, before in zip(state, kept, strict=True):
            value.copy_(before)

    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            advance()
            restore()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        advance()
    return graph.replay
