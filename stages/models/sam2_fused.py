"""Cells of SAM2's mask decoder that are made where they are read, without a tensor of (prompts, cells, width).

A prompt changes the image's cells twice, each time by attention to some eight tokens. Written out, that is 4 MB a
prompt and change for 64 x 64 cells of 256 float32, and a GPU waits for memory. Here a block of cells is loaded once,
changed by what the prompt's tokens say, and read by the next attention while it lies in registers, as FlashAttention
does (arXiv 2205.14135); it is made anew for the next reading, because products are cheaper than memory. Only the cells
of masks that someone wants are written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from triton import next_power_of_2

from stages.models.sam2_attention import Change, parted
from stages.models.sam2_kernel import read_cells

BLOCK: Final = 16
"""Cells that one step of a program holds."""
MOST_KEYS: Final = 32
"""Rows of keys that a program reads with; for more there are more programs."""
LEAST: Final = 16
"""Rows that a matrix product of Triton has at least."""
WARPS: Final = 8


@dataclass(frozen=True, slots=True)
class FusedCells:
    """`stages.models.sam2_attention.Cells` of Q prompts, as a recipe."""

    source: Tensor
    """(B, N, C), cells of B images before any prompt."""
    positions: Tensor
    """(1, N, C)."""
    image: Tensor
    """(Q,) int64, image of each prompt."""
    changes: tuple[Change, ...]
    """One or two."""

    def take(self, prompts: Tensor) -> FusedCells:
        """Cells of some of the prompts."""
        return replace(self, image=self.image[prompts], changes=tuple(c.take(prompts) for c in self.changes))

    def changed(self, change: Change) -> FusedCells:
        """Cells after one more change."""
        return replace(self, changes=(*self.changes, change))

    def read(self, rows: Tensor) -> Tensor:
        """Mean of the cells, weighted by softmax of their scores, (Q, R, C), for rows of keys, (Q, R, C)."""
        return self._run(rows, write=False)[0]

    def written(self) -> Tensor:
        """All cells, (Q, N, C)."""
        return self._run(self.source.new_zeros((len(self.image), 1, self.source.shape[2])), write=True)[1]

    def _run(self, rows: Tensor, *, write: bool) -> tuple[Tensor, Tensor]:
        # The kernel knows no strides.
        source, positions, rows = (x.contiguous() for x in (self.source, self.positions, rows))
        n_prompts, n_rows, width = rows.shape
        n_cells = self.source.shape[1]
        seen = torch.empty_like(rows)
        cells = self.source.new_empty((n_prompts, n_cells, width) if write else (1,))
        first, last = _arguments(self.changes[0]), _arguments(self.changes[-1])
        keys = min(MOST_KEYS, max(LEAST, next_power_of_2(n_rows)))
        if n_prompts:
            kernel: Callable[..., Any] = read_cells[(n_prompts, -(-n_rows // keys))]
            kernel(
                source,
                positions,
                self.image,
                *first,
                *last,
                rows,
                seen,
                cells,
                n_cells,
                n_rows,
                width,
                self.changes[0].norm.eps,
                CHANGES=len(self.changes),
                HEADS=self.changes[0].heads,
                TOKENS=first[0].shape[1] // self.changes[0].heads,
                KEYS=keys,
                WIDTH=max(LEAST, next_power_of_2(width)),
                BLOCK=BLOCK,
                WRITE=write,
                num_warps=WARPS,
                num_stages=1,
            )
        return seen, cells


def _arguments(change: Change) -> tuple[Tensor, ...]:
    """Tensors of the kernel; tokens are filled up to a power of two with some that get no attention."""
    n = change.rows.shape[1] // change.heads
    more = max(next_power_of_2(n), LEAST) - n

    def filled(x: Tensor, value: float) -> Tensor:
        return F.pad(parted(x, 1, change.heads, n), (0, 0, 0, more), value=value).flatten(1, 2).contiguous()

    norm = (change.norm.weight.float(), change.norm.bias.float())
    return filled(change.rows, 0), filled(change.offsets.float(), -torch.inf), filled(change.values, 0), *norm
