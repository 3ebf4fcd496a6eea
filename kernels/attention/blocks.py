"""Triton functions that the attention kernels share: finding, loading and storing tiles, masks, dropout.

The dropout mask is a function of (seed, stream, head, query token in the packed batch, key index in its sequence) alone, so the
forward and both orientations of the backward draw the same one whatever their tiles are.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..primitives.philox import half_words, random_half_words, random_words

# Integer arguments of which no launch compiles a kernel of its own: what a kernel gains from their values it is told.
SCALARS = (
    "T", "H", "head_dim", "stride_token", "stride_part", "stride_head", "stride_dout_token", "stride_dout_head",
    "keep_threshold", "stream", "min_seqlen",
)  # fmt: skip


def grid(tiles: Tensor, heads: int, blocks_per_tile: int) -> tuple[int]:
    """One program per head and block of a tile, on one axis: the others are limited to 65535 programs."""
    return (heads * tiles.shape[0] * blocks_per_tile,)


@triton.jit
def locate(tiles_ptr, H, ROWS: tl.constexpr, BLOCKS_PER_TILE: tl.constexpr):
    """(head, start, seqlen, num_keys, first) of this program, all scalars.

    start: first token of its sequence. first: its first row or key in that sequence. Each tile of the list is divided into
    BLOCKS_PER_TILE blocks of ROWS rows. Consecutive programs take consecutive heads.
    """
    program = tl.program_id(0)
    head = program % H
    tile_ptr = tiles_ptr + program // H // BLOCKS_PER_TILE * 4
    first = tl.load(tile_ptr + 3) + program // H % BLOCKS_PER_TILE * ROWS  # scalar
    return head, tl.load(tile_ptr), tl.load(tile_ptr + 1), tl.load(tile_ptr + 2), first  # scalars


@triton.jit
def known_multiple(x, N: tl.constexpr):
    """x, a multiple of N, computed so that the compiler knows that it is one."""
    return x // N * N


@triton.jit
def qkv_strides(qkv_ptr, stride_token, stride_part, stride_head):
    """The strides, the last two in int64, as multiples of 16 bytes (`operands`), so that loads move 16 bytes at a time."""
    VECTOR: tl.constexpr = 128 // qkv_ptr.dtype.element_ty.primitive_bitwidth
    stride_part, stride_head = tl.cast(stride_part, tl.int64), tl.cast(stride_head, tl.int64)
    return known_multiple(stride_token, VECTOR), known_multiple(stride_part, VECTOR), known_multiple(stride_head, VECTOR)


@triton.jit
def dout_strides(dout_ptr, stride_token, stride_head):
    """As `qkv_strides`."""
    VECTOR: tl.constexpr = 128 // dout_ptr.dtype.element_ty.primitive_bitwidth
    return known_multiple(stride_token, VECTOR), known_multiple(tl.cast(stride_head, tl.int64), VECTOR)


@triton.jit
def load_rows(ptr, stride_row, num_rows, ROWS: tl.constexpr, head_dim, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """num_rows rows of head_dim elements as [ROWS, BLOCK_D]: zero past them. MASKED: whether they may be fewer than that."""
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    ptrs = ptr + offs_r[:, None] * stride_row + offs_d[None, :]
    if MASKED:
        mask = (offs_r < num_rows)[:, None] & (offs_d < head_dim)[None, :]
        tile = tl.load(ptrs, mask=mask, other=0.0)  # [ROWS, BLOCK_D]
    else:
        tile = tl.load(ptrs)  # [ROWS, BLOCK_D]
    return tile


@triton.jit
def store_rows(ptr, tile, stride_row, num_rows, ROWS: tl.constexpr, head_dim, BLOCK_D: tl.constexpr):
    """Writes the first num_rows rows and head_dim columns of tile [ROWS, BLOCK_D]."""
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    mask = (offs_r < num_rows)[:, None] & (offs_d < head_dim)[None, :]
    tl.store(ptr + offs_r[:, None] * stride_row + offs_d[None, :], tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_mask(row, key, num_keys, CAUSAL: tl.constexpr):
    """Whether a row attends to a key. row, key: indices in the sequence that broadcast against each other."""
    mask = key < num_keys
    if CAUSAL:
        mask = mask & (key <= row)
    return mask


@triton.jit
def softmax_numerator(s, m_i, scale_log2, RAW_MAX: tl.constexpr):
    """exp2 of the scaled scores minus their maximum, of the shape of s [M, N].

    m_i: [M], the maximum of the raw scores where RAW_MAX, which is more exact, else of the scaled ones, which takes one
    multiply-add.
    """
    if RAW_MAX:
        p = tl.exp2((s - m_i[:, None]) * scale_log2)
    else:
        p = tl.exp2(s * scale_log2 - m_i[:, None])
    return p


@triton.jit
def dropout_keep(seed, stream, head, first_token, first_key, keep_threshold, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Which probabilities survive dropout: int1 [ROWS, KEYS]. first_key is a multiple of KEYS, KEYS of 32.

    One Philox call serves eight keys, eight apart: key k is half-word k % 64 // 8 of the counter
    (query token, k // 64 * 8 + k % 8, head, stream). In the registers of a matrix product a thread holds columns eight
    apart, so the words are drawn where they are used.
    """
    tokens = (first_token + tl.arange(0, ROWS))[:, None]  # [ROWS, 1]
    if KEYS >= 64:
        groups = first_key // 8 + tl.arange(0, KEYS // 8)
        keep = random_half_words(seed, tokens, groups[None, :], head, stream) >= keep_threshold  # [ROWS, KEYS / 8, 8]
        keep = tl.trans(keep.reshape(ROWS, KEYS // 64, 8, 8), 0, 1, 3, 2)
    else:
        groups = first_key // 64 * 8 + tl.arange(0, 8)
        keep = random_half_words(seed, tokens, groups[None, :], head, stream) >= keep_threshold  # [ROWS, 8, 8]
        keep = tl.trans(keep.reshape(ROWS, 8, 2, 4), 0, 2, 3, 1)  # [ROWS, half of the 64 keys, 4, 8]
        half = tl.arange(0, 2)[None, :, None, None] == first_key // 32 % 2
        keep = tl.sum((keep & half).to(tl.int32), axis=1) > 0  # [ROWS, 4, 8]
    return keep.reshape(ROWS, KEYS)


@triton.jit
def dropout_keep_packed(seed, stream, head, first_token, first_column, keep_threshold, ROWS: tl.constexpr):
    """As `dropout_keep`, for a tile of whole sequences: int1 [ROWS, ROWS].

    first_column: [ROWS], the column where the keys of a row's sequence begin. Here too the eight columns that a thread holds
    share one counter, but key k is in column first_column + k: the half-words are rotated by one for each eight columns.
    """
    tokens = (first_token + tl.arange(0, ROWS))[:, None]  # [ROWS, 1]
    key = tl.arange(0, 8)[None, :] - first_column[:, None]  # [ROWS, 8], of the first eight columns
    w0, w1, w2, w3 = random_words(seed, tokens, key & 7, head, stream)  # each [ROWS, 8]
    turns = -(key >> 3)
    bit = (turns & 1) != 0
    r0, r1, r2, r3 = (w0 << 16) | (w3 >> 16), (w1 << 16) | (w0 >> 16), (w2 << 16) | (w1 >> 16), (w3 << 16) | (w2 >> 16)
    w0, w1, w2, w3 = tl.where(bit, r0, w0), tl.where(bit, r1, w1), tl.where(bit, r2, w2), tl.where(bit, r3, w3)
    bit = (turns & 2) != 0
    w0, w1, w2, w3 = tl.where(bit, w3, w0), tl.where(bit, w0, w1), tl.where(bit, w1, w2), tl.where(bit, w2, w3)
    bit = (turns & 4) != 0
    w0, w1, w2, w3 = tl.where(bit, w2, w0), tl.where(bit, w3, w1), tl.where(bit, w0, w2), tl.where(bit, w1, w3)
    keep = half_words(w0, w1, w2, w3) >= keep_threshold  # [ROWS, 8, 8]
    return tl.trans(keep, 0, 2, 1).reshape(ROWS, ROWS)
