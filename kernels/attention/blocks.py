"""Triton functions that the attention kernels share: finding, loading and storing tiles, and the dropout mask.

The mask is a function of (seed, stream, head, query token in the packed batch, key index in its sequence) alone, so the
forward and both orientations of the backward draw the same one whatever their tiles are.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..primitives.philox import half_words, random_half_words, random_words


def grid(tiles: Tensor, heads: int, pieces: int) -> tuple[int]:
    """One program per head and piece of a tile, on one axis: the others hold 65535 programs at most."""
    return (heads * tiles.shape[0] * pieces,)


@triton.jit
def locate(tiles_ptr, H, ROWS: tl.constexpr, PIECES: tl.constexpr):
    """(head, start, rows, keys, first) of this program: its sequence, and its first row or key in it. Heads run fastest.

    A tile of the list is cut into PIECES of ROWS rows.
    """
    program = tl.program_id(0)
    head = program % H
    tile_ptr = tiles_ptr + program // H // PIECES * 4
    first = tl.load(tile_ptr + 3) + program // H % PIECES * ROWS
    return head, tl.load(tile_ptr), tl.load(tile_ptr + 1), tl.load(tile_ptr + 2), first


@triton.jit
def load_rows(
    ptr, stride_row, num_rows, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr
):
    """ROWS rows of HEAD_DIM elements as [ROWS, BLOCK_D]: zero past HEAD_DIM and, where MASKED, past num_rows."""
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = ptr + offs_r[:, None] * stride_row + offs_d[None, :]
    if MASKED:
        tile = tl.load(ptrs, mask=(offs_r < num_rows)[:, None] & (offs_d < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < BLOCK_D:
        tile = tl.load(ptrs, mask=(offs_d < HEAD_DIM)[None, :], other=0.0)
    else:
        tile = tl.load(ptrs)
    return tile


@triton.jit
def store_rows(ptr, tile, stride_row, num_rows, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes the first num_rows rows and HEAD_DIM columns of tile [ROWS, BLOCK_D]."""
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs_r < num_rows)[:, None] & (offs_d < HEAD_DIM)[None, :]
    tl.store(ptr + offs_r[:, None] * stride_row + offs_d[None, :], tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def attends(row, key, keys, CAUSAL: tl.constexpr):
    """Whether a row sees a key; row and key: indices in the sequence that broadcast against each other."""
    mask = key < keys
    if CAUSAL:
        mask = mask & (key <= row)
    return mask


@triton.jit
def weights(s, m_i, scale_log2, RAW_MAX: tl.constexpr):
    """exp2 of the scaled scores less their maximum m_i: one multiply-add, or more exactly by subtracting before scaling."""
    if RAW_MAX:
        p = tl.exp2((s - m_i[:, None]) * scale_log2)
    else:
        p = tl.exp2(s * scale_log2 - m_i[:, None])
    return p


@triton.jit
def keep_scores(seed, stream, head, first_token, first_key, keep_threshold, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Which probabilities survive dropout: int1 [ROWS, KEYS]. first_key is a multiple of KEYS, KEYS of 32.

    One Philox call serves eight keys, eight apart: key k is half-word k % 64 // 8 of the counter
    (query token, k // 64 * 8 + k % 8, head, stream). In the registers of a matrix product a thread holds columns eight
    apart, so the words are drawn where they are used.
    """
    tokens = (first_token + tl.arange(0, ROWS))[:, None]
    if KEYS >= 64:
        groups = first_key // 8 + tl.arange(0, KEYS // 8)
        keep = random_half_words(seed, tokens, groups[None, :], head, stream) >= keep_threshold
        keep = tl.trans(keep.reshape(ROWS, KEYS // 64, 8, 8), 0, 1, 3, 2)
    else:
        groups = first_key // 64 * 8 + tl.arange(0, 8)
        keep = random_half_words(seed, tokens, groups[None, :], head, stream) >= keep_threshold
        keep = tl.trans(keep.reshape(ROWS, 8, 2, 4), 0, 2, 3, 1)  # [ROWS, half of the 64 keys, 4, 8]
        half = tl.arange(0, 2)[None, :, None, None] == first_key // 32 % 2
        keep = tl.sum((keep & half).to(tl.int32), axis=1) > 0
    return keep.reshape(ROWS, KEYS)


@triton.jit
def keep_packed(seed, stream, head, first_token, first_key, keep_threshold, ROWS: tl.constexpr):
    """As `keep_scores`, for a tile of whole sequences: int1 [ROWS, ROWS]. first_key: [ROWS], the column of a row's key 0.

    The columns that a thread holds share one counter here too; only its half-words stand where key 0 does: they are turned
    as a ring, by 16 bits for each eight columns.
    """
    tokens = (first_token + tl.arange(0, ROWS))[:, None]
    key = tl.arange(0, 8)[None, :] - first_key[:, None]  # of the columns below 8
    w0, w1, w2, w3 = random_words(seed, tokens, key & 7, head, stream)
    turn = -(key >> 3)
    by = (turn & 1) != 0
    r0, r1, r2, r3 = (w0 << 16) | (w3 >> 16), (w1 << 16) | (w0 >> 16), (w2 << 16) | (w1 >> 16), (w3 << 16) | (w2 >> 16)
    w0, w1, w2, w3 = tl.where(by, r0, w0), tl.where(by, r1, w1), tl.where(by, r2, w2), tl.where(by, r3, w3)
    by = (turn & 2) != 0
    w0, w1, w2, w3 = tl.where(by, w3, w0), tl.where(by, w0, w1), tl.where(by, w1, w2), tl.where(by, w2, w3)
    by = (turn & 4) != 0
    w0, w1, w2, w3 = tl.where(by, w2, w0), tl.where(by, w3, w1), tl.where(by, w0, w2), tl.where(by, w1, w3)
    keep = half_words(w0, w1, w2, w3) >= keep_threshold
    return tl.trans(keep, 0, 2, 1).reshape(ROWS, ROWS)
