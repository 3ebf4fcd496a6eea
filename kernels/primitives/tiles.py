"""Triton functions that the matrix product kernels share: offsets, the order of tiles, halves of a tile."""

import triton
import triton.language as tl


@triton.jit
def offsets(rows, columns, stride_row):
    """Element offsets [R, C] from rows [R] and columns [C], in int64: a tensor may have more than 2^31 elements."""
    return rows.to(tl.int64)[:, None] * stride_row + columns[None, :]


@triton.jit
def tile_position(program, num_rows, num_columns, GROUP_ROWS: tl.constexpr):
    """(row, column) of a program's tile. GROUP_ROWS rows of tiles are visited column by column, so that they share L2."""
    group = program // (GROUP_ROWS * num_columns)
    rows_here = tl.minimum(num_rows - group * GROUP_ROWS, GROUP_ROWS)
    within = program % (GROUP_ROWS * num_columns)
    return group * GROUP_ROWS + within % rows_here, within // rows_here


@triton.jit
def halves(acc):
    """The left and the right half of the columns of acc [R, C], each [R, C // 2]."""
    return tl.split(tl.permute(tl.reshape(acc, (acc.shape[0], 2, acc.shape[1] // 2)), (0, 2, 1)))
