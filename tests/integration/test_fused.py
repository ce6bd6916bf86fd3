"""Cells made in Triton's kernel are those that are written out. Without a GPU the kernel runs in Triton's interpreter,
which has to be asked for before the kernel is imported: the tests run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.models.sam2_attention import Change, LayerNorm, WrittenCells

triton = pytest.importorskip("triton")


def compare(width: int, n_cells: int, n_tokens: int, heads: int, device: str = "cpu") -> None:
    """Read and write cells both ways, after one change and after two."""
    from stages.models.sam2_fused import FusedCells

    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def change(scale: float) -> Change:
        rows, values = (scale * some(5, heads * n_tokens, width) for _ in range(2))
        norm = LayerNorm(1 + 0.1 * some(width), 0.1 * some(width), 1e-5)
        return Change(rows, some(5, heads * n_tokens, 1), values, heads, norm)

    # As an encoder may hand them over: channels before cells in memory.
    source, positions = some(2, width, n_cells).mT, some(1, width, n_cells).mT
    image = torch.tensor([0, 1, 1, 0, 1], device=device)
    keys = 0.2 * some(5, width, heads).mT
    written = WrittenCells(source[image], positions)
    first, second = change(0.1), change(0.3)
    theirs = written.changed(first)
    ours = FusedCells(source, positions, image, (first,))
    for _ in range(2):
        torch.testing.assert_close(ours.read(keys), theirs.read(keys), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(ours.written(), theirs.written(), atol=2e-5, rtol=1e-4)
        some_of = torch.tensor([3, 1], device=device)
        torch.testing.assert_close(ours.take(some_of).written(), theirs.written()[some_of], atol=2e-5, rtol=1e-4)
        ours, theirs = ours.changed(second), theirs.changed(second)


def compare_masks() -> None:
    """Decode points and boxes with a whole model both ways."""
    from tests.reference import random_segmenter

    model = random_segmenter("sam2-tiny-untrained", 0.15)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features = model.encode(images)
    points = torch.rand((2, 1, 2, 2), generator=torch.Generator().manual_seed(2)) * 64
    for labels in ((1, 0), (2, 3)):
        asked = (features, points.sort(dim=2).values, torch.tensor(labels).expand(2, 1, 2))
        model._decoder.fused = False
        theirs = model.decode(*asked)
        model._decoder.fused = True
        ours = model.decode(*asked)
        torch.testing.assert_close(ours.predicted_iou, theirs.predicted_iou, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-3, rtol=1e-3)
        assert theirs.logits.std() > 0.01


def interpreted(call: str) -> None:
    code = f"from tests.integration import test_fused; test_fused.{call}"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"TRITON_INTERPRET": "1", "PATH": "", "PYTHONPATH": str(root), "HOME": str(Path.home())},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("width", "n_cells", "n_tokens", "heads"), [(32, 100, 8, 4), (112, 64, 9, 8), (16, 16, 3, 2)])
def test_cells_are_those_that_are_written_out(width: int, n_cells: int, n_tokens: int, heads: int) -> None:
    interpreted(f"compare({width}, {n_cells}, {n_tokens}, {heads})")


@pytest.mark.slow
def test_decoder_gives_the_same_masks() -> None:
    interpreted("compare_masks()")


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("keys", "write"), [(32, False), (16, True)])
def test_kernel_compiles_for_gpus(capability: int, keys: int, write: bool) -> None:
    from triton.backends.compiler import GPUTarget

    from stages.models.sam2_fused import BLOCK, LEAST, WARPS
    from stages.models.sam2_kernel import read_cells

    tensors = {"image": "*i64"} | {f"{name}{i}": "*fp32" for name in ("offsets", "weight", "bias") for i in (1, 2)}
    numbers = {"n_cells": "i32", "n_keys": "i32", "width": "i32", "eps": "fp32"}
    constants = {
        "CHANGES": 2, "HEADS": 8, "TOKENS": LEAST, "KEYS": keys, "WIDTH": 256, "BLOCK": BLOCK, "WRITE": write
    }  # fmt: skip
    signature = {
        name: "constexpr" if name in constants else numbers.get(name) or tensors.get(name, "*bf16")
        for name in read_cells.arg_names
    }
    places = {(read_cells.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(fn=read_cells, signature=signature, constexprs=places)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": WARPS, "num_stages": 1}
    )
    assert compiled.metadata.shared <= 2**16
    assert compiled.asm["cubin"]
