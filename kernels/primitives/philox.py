"""Counter-based random half-words in Triton (Philox 4x32, Salmon et al. 2011; seven rounds pass their test batteries).

One counter gives four 32-bit words, that is eight 16-bit words: enough for eight dropout decisions. One counter per element
would cost more than the rest of most kernels.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)


@triton.jit
def random_half_words(seed, c0, c1, c2, c3):
    """Eight 16-bit words per counter: int32 [R, G, 8] from counters that broadcast to [R, G]. seed: int64 scalar."""
    w0, w1, w2, w3 = random_words(seed, c0, c1, c2, c3)
    return half_words(w0, w1, w2, w3)


@triton.jit
def random_words(seed, c0, c1, c2, c3):
    """Four 32-bit words per counter, each uint32 of the shape to which the counters broadcast."""
    zero = (c0 + c1 + c2 + c3) * 0
    return tl.philox(seed, c0 + zero, c1 + zero, c2 + zero, c3 + zero, n_rounds=ROUNDS)


@triton.jit
def half_words(w0, w1, w2, w3):
    """The halves of four words [R, G], low halves first: int32 [R, G, 8]."""
    h0 = tl.join(w0 & 0xFFFF, w0 >> 16)  # [R, G, 2], as the next three
    h1 = tl.join(w1 & 0xFFFF, w1 >> 16)
    h2 = tl.join(w2 & 0xFFFF, w2 >> 16)
    h3 = tl.join(w3 & 0xFFFF, w3 >> 16)
    words = tl.join(tl.join(h0, h1), tl.join(h2, h3))  # [R, G, half, word & 1, word >> 1]
    words = tl.trans(words, 0, 1, 4, 3, 2)  # [R, G, word >> 1, word & 1, half]
    return words.to(tl.int32).reshape(words.shape[0], words.shape[1], 8)  # [R, G, 8]


@triton.jit
def keep_adjacent(seed, stream, rows, threshold, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, first_column=0):
    """Which elements of rows [BLOCK_M] and BLOCK_N columns are kept: int1 [BLOCK_M, BLOCK_N]. first_column: a multiple of 8.

    One counter serves eight neighbouring columns: element (row, column) is half-word column % 8 of counter
    (row, column // 8, 0, stream).
    """
    groups = first_column // 8 + tl.arange(0, BLOCK_N // 8)
    words = random_half_words(seed, rows[:, None], groups[None, :], 0, stream)  # [BLOCK_M, BLOCK_N // 8, 8]
    return words.reshape(BLOCK_M, BLOCK_N) >= threshold
