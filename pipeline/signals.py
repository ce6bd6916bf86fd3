"""Signals that ask a run to stop: a batch system's walltime, preemption, or Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from manifests.errors import InterruptedRunError


class StopSignal:
    """Remembers that SIGTERM, SIGUSR1 or SIGINT came, and how long units in flight may still take.

    Parameters
    ----------
    grace_s : float
        Seconds from the signal on; a second SIGINT ends them at once.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._until: float | None = None
        self._interrupts = False
        self.name = ""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        again = self._until is not None and number == signal.SIGINT
        self.name = self.name or signal.Signals(number).name
        self._until = 0.0 if again else (self._until or time.monotonic() + self._grace_s)
        if self._interrupts:
            self._interrupt()

    def remaining_s(self) -> float | None:
        """None while no signal came; else the seconds that are left."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Handle the signals inside the block, and restore what handled them before."""
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def interrupting(self) -> Iterator[StopSignal]:
        """Inside the block, which is within `listening`, a signal ends at once what is done; nothing is in flight.

        Raises
        ------
        InterruptedRunError
            If a signal comes, or came before.
        """
        if self.name:
            self._interrupt()
        self._interrupts = True
        try:
            yield self
        finally:
            self._interrupts = False

    def _interrupt(self) -> None:
        self._interrupts = False
        raise InterruptedRunError(f"Stopped by {self.name}.", "Run the same command again to go on.")
