"""The order in which programs visit the tiles of a product, and the halves of a tile."""

import pytest
import torch
import triton
import triton.language as tl

from fastbert.kernels.primitives.tiles import halves, tile_position


@triton.jit
def _positions_kernel(out_ptr, num_rows, num_columns, GROUP_ROWS: tl.constexpr):
    program = tl.program_id(0)
    row, column = tile_position(program, num_rows, num_columns, GROUP_ROWS)
    tl.store(out_ptr + 2 * program, row)
    tl.store(out_ptr + 2 * program + 1, column)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (8, 2), (11, 3), (20, 1)])
def test_every_tile_has_one_program(rows, columns, device):
    out = torch.empty(rows * columns, 2, dtype=torch.int32, device=device)
    _positions_kernel[(rows * columns,)](out, rows, columns, GROUP_ROWS=8)
    positions = [tuple(position) for position in out.tolist()]
    assert sorted(positions) == [(row, column) for row in range(rows) for column in range(columns)]
    first = positions[: min(rows, 8) * columns]  # the first group of rows, column by column
    assert first == [(row, column) for column in range(columns) for row in range(min(rows, 8))]


@triton.jit
def _halves_kernel(x_ptr, left_ptr, right_ptr, R: tl.constexpr, C: tl.constexpr):
    rows = tl.arange(0, R)[:, None]
    left, right = halves(tl.load(x_ptr + rows * C + tl.arange(0, C)[None, :]))
    half = rows * (C // 2) + tl.arange(0, C // 2)[None, :]
    tl.store(left_ptr + half, left)
    tl.store(right_ptr + half, right)


def test_halves(device):
    x = torch.randn(16, 32, device=device)
    left, right = (torch.empty(16, 16, device=device) for _ in range(2))
    _halves_kernel[(1,)](x, left, right, R=16, C=32)
    assert torch.equal(torch.cat([left, right], 1), x)
