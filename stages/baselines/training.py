"""Prompts are trained by SGD: alone on a CPU, in captured steps on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from stages.baselines.schedule import MOMENTUM, WEIGHT_DECAY, Fit, checked_loss
from stages.baselines.together import train_together
from stages.threads import one_thread


def train(fit: Fit) -> float:
    """Train the context, and the network if there is one; returns the last epoch's mean loss.

    Raises
    ------
    ConfigError
        If the loss stops being finite.
    """
    return train_alone(fit) if fit.prompts.device.type == "cpu" else train_together([fit])[0]


def train_alone(fit: Fit) -> float:
    """Train with torch's own optimizer, one step after the other.

    Raises
    ------
    ConfigError
        If the loss stops being finite.
    """
    prompts = fit.prompts
    x, y = (torch.from_numpy(array).to(prompts.device) for array in (fit.images, fit.labels))
    optimizer = torch.optim.SGD(prompts.parameters(), momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    mean = float("nan")
    with one_thread():
        for rate, batches in fit.epochs():
            optimizer.param_groups[0]["lr"] = rate
            total = torch.zeros((), dtype=torch.float64, device=prompts.device)
            for rows in batches:
                loss = F.cross_entropy(prompts(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += loss.detach() * len(rows)
            mean = checked_loss(float(total) / len(y))
    return mean
