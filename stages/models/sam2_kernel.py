"""The Triton kernel of `sam2_fused`: a program makes the cells of one prompt, block by block, and reads them.

Everything of a prompt that is not a cell is taken head by head, so that few tiles are alive at once. Compiled for GPUs
of compute capability 9.0 with cells of 256 bfloat16 a program takes 33 KiB of shared memory, and spills 240 bytes a
thread; with float32, or larger blocks, it spills many times that.
"""

import triton
import triton.language as tl


@triton.jit
def _changed(
    x, place, q, rows, offsets, values, weight, bias, width, eps,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Change one block of one prompt's cells, (BLOCK, WIDTH) float32."""
    dtype = rows.dtype.element_ty
    c, t = tl.arange(0, WIDTH), tl.arange(0, TOKENS)
    inside = (c < width)[None, :]
    placed = (x + place).to(dtype)
    for head in range(HEADS):
        token = (q * HEADS + head) * TOKENS + t
        at = token[:, None] * width + c[None, :]
        row = tl.load(rows + at, mask=inside, other=0)
        scores = tl.dot(placed, tl.trans(row)) + tl.load(offsets + token)[None, :]
        shares = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        shares = (shares / tl.sum(shares, axis=1)[:, None]).to(dtype)
        x = tl.dot(shares, tl.load(values + at, mask=inside, other=0), acc=x)
    mean = tl.sum(x, axis=1) / width
    x = tl.where(inside, x - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / width + eps)
    gain = tl.load(weight + c, mask=c < width, other=0)
    return x * scale[:, None] * gain[None, :] + tl.load(bias + c, mask=c < width, other=0)[None, :]


@triton.jit
def read_cells(
    source, positions, image,
    rows1, offsets1, values1, weight1, bias1,
    rows2, offsets2, values2, weight2, bias2,
    keys, seen, cells, n_cells, n_keys, width, eps,
    CHANGES: tl.constexpr, HEADS: tl.constexpr, TOKENS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, WRITE: tl.constexpr,
):  # fmt: skip
    """Make the cells of a prompt; read them with KEYS of its keys, by softmax over all cells, or write them."""
    q = tl.program_id(0).to(tl.int64)
    dtype = source.dtype.element_ty
    c, k = tl.arange(0, WIDTH), tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    inside = (c < width)[None, :]
    at_keys = (q * n_keys + k)[:, None] * width + c[None, :]
    asked = (k < n_keys)[:, None] & inside
    own = source + tl.load(image + q) * n_cells * width
    highest = tl.full((KEYS,), float("-inf"), tl.float32)
    total = tl.zeros((KEYS,), tl.float32)
    found = tl.zeros((KEYS, WIDTH), tl.float32)
    for start in range(0, n_cells, BLOCK):
        j = start + tl.arange(0, BLOCK)
        there = (j < n_cells)[:, None] & inside
        at = j[:, None] * width + c[None, :]
        x = tl.load(own + at, mask=there, other=0).to(tl.float32)
        place = tl.load(positions + at, mask=there, other=0)
        x = _changed(x, place, q, rows1, offsets1, values1, weight1, bias1, width, eps, HEADS, TOKENS, WIDTH)
        if CHANGES == 2:
            x = _changed(x, place, q, rows2, offsets2, values2, weight2, bias2, width, eps, HEADS, TOKENS, WIDTH)
        if WRITE:
            tl.store(cells + q * n_cells * width + at, x.to(dtype), mask=there)
        else:
            key = tl.load(keys + at_keys, mask=asked, other=0)
            scores = tl.dot(key, tl.trans((x + place).to(dtype)))
            scores = tl.where((j < n_cells)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, axis=1))
            shares = tl.exp(scores - higher[:, None])
            shrunk = tl.exp(highest - higher)
            total = total * shrunk + tl.sum(shares, axis=1)
            found = tl.dot(shares.to(dtype), x.to(dtype), acc=found * shrunk[:, None])
            highest = higher
    if not WRITE:
        tl.store(seen + at_keys, (found / total[:, None]).to(dtype), mask=asked)
