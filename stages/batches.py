"""A chunk through a model: the next images are read meanwhile, and as many go at once as the accelerator holds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from manifests.types import ItemOutcome, Status
from stages.base import ahead

T = TypeVar("T")
Read = Callable[[int], tuple[Sequence[T | None], list[ItemOutcome]]]
"""Reads a batch that begins at a position of the chunk: one thing and one outcome a row."""
Compute = Callable[[Mapping[int, T]], None]
"""Computes what was read, by its position in the chunk, and keeps the results."""
Judge = Callable[[ItemOutcome, int], ItemOutcome]
"""Looks at the result of the row at a position of the chunk."""

OUT_OF_MEMORY: Final = "gpu.oom"
_MODEL = threading.Lock()
"""Held while a model computes: where a process has two chunks in hand, one is read or written meanwhile."""


class Batches:
    """Takes chunks through a model, and remembers the batch that fits for as long as the process lives.

    Parameters
    ----------
    most : int
        Images at once where memory allows; halved, never below 1, whenever the accelerator's memory runs out.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = most
        """Images that go through the model at once, as far as is known."""

    def run(
        self, n_rows: int, read: Read[T], compute: Compute[T], judge: Judge = lambda outcome, _: outcome
    ) -> tuple[list[ItemOutcome], dict[str, float]]:
        """Compute a chunk of `n_rows`; return one outcome a row, and the seconds spent on reading and encoding.

        An image that the accelerator's memory does not hold even alone is a failed row, `gpu.oom`.
        """
        items: list[ItemOutcome] = []
        seconds: Counter[str] = Counter()
        began = time.perf_counter()
        for things, outcomes in ahead(read, range(0, n_rows, self._most)):
            waited = time.perf_counter()
            first = len(items)
            lost = self._each({first + i: thing for i, thing in enumerate(things) if thing is not None}, compute)
            items += [
                judge(_without_memory(outcome) if first + i in lost else outcome, first + i)
                for i, outcome in enumerate(outcomes)
            ]
            seconds.update({"read": waited - began, "encode": time.perf_counter() - waited})
            began = time.perf_counter()
        return items, dict(seconds)

    def _each(self, ready: Mapping[int, T], compute: Compute[T]) -> set[int]:
        """Compute everything that is ready; return the positions of what does not fit even alone."""
        left, lost = list(ready), set[int]()
        while left:
            part = left[: self.size]
            if self._fits({position: ready[position] for position in part}, compute):
                left = left[len(part) :]
            elif len(part) > 1:
                self.size = min(self.size, len(part) // 2)
            else:
                lost.update(part)
                left = left[1:]
        return lost

    @staticmethod
    def _fits(part: Mapping[int, T], compute: Compute[T]) -> bool:
        import torch

        with _MODEL:
            try:
                compute(part)
                return True
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # not inside `except`, where the traceback still holds the batch's tensors
            return False


def _without_memory(outcome: ItemOutcome) -> ItemOutcome:
    detail = "the accelerator's memory does not hold this image alone"
    return ItemOutcome(outcome.row, outcome.image_id, Status.FAILED, OUT_OF_MEMORY, detail)
