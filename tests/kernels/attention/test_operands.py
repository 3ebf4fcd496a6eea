"""What the kernels read in place, and what they get a copy of."""

import pytest
import torch

from fastbert.kernels.attention.operands import MAX_STRIDE, aligned, with_aligned_rows

T, H, D = 6, 2, 24
READABLE = {
    "packed": lambda dtype: torch.ones(T, 3, H, D, dtype=dtype),
    "rows of a wider buffer": lambda dtype: torch.ones(T, 3, H + 1, D + 8, dtype=dtype)[:, :, 1:, 8:],
    "tokens inside heads": lambda dtype: torch.ones(3, H, T, D, dtype=dtype).permute(2, 0, 1, 3),
    "one row for all tokens": lambda dtype: torch.ones(1, 3, H, D, dtype=dtype).expand(T, 3, H, D),
    "as far apart as can be": lambda dtype: _far(MAX_STRIDE, dtype),
}
NOT_READABLE = {
    "one element between rows": lambda dtype: torch.ones(T, 3, H, D + 1, dtype=dtype)[..., 1:],
    "one element before the first": lambda dtype: torch.ones(T * 3 * H * D + 1, dtype=dtype)[1:].view(T, 3, H, D),
    "one element between heads": lambda dtype: torch.ones(T, 3 * (H * D + 1), dtype=dtype).as_strided(
        (T, 3, H, D), (3 * (H * D + 1), H * D + 1, D, 1)
    ),
    "elements apart": lambda dtype: torch.ones(T, 3, D, H, dtype=dtype).transpose(2, 3),
    "one element for all": lambda dtype: torch.ones(1, dtype=dtype).expand(T, 3, H, D),
    "too far apart": lambda dtype: _far(MAX_STRIDE + 8, dtype),
}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def _far(stride, dtype):
    """Two tokens that many elements apart; the memory between them is not touched."""
    x = torch.empty(stride + 3 * H * D, dtype=dtype)
    return x.as_strided((2, 3, H, D), (stride, H * D, D, 1)).fill_(1.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", READABLE)
def test_aligned_rows_are_read_in_place(name, dtype):
    x = READABLE[name](dtype)
    assert with_aligned_rows(x) is x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NOT_READABLE)
def test_other_rows_are_copied(name, dtype):
    x = NOT_READABLE[name](dtype)
    got = with_aligned_rows(x)
    assert got.is_contiguous()
    assert got.data_ptr() % 16 == 0
    assert torch.equal(got, x)
    assert with_aligned_rows(got) is got


def test_sixteen_bytes_are_fewer_elements_of_a_wider_dtype():
    rows = {dtype: torch.ones(T, 3, H, D + 4, dtype=dtype)[..., :D] for dtype in DTYPES}
    assert [with_aligned_rows(x) is x for x in rows.values()] == [False, False, True]


def test_dense_copies_what_is_apart_or_starts_off_sixteen_bytes():
    x = torch.arange(12, dtype=torch.int32)
    assert aligned(x) is x
    assert aligned(x[4:]).data_ptr() == x[4:].data_ptr()
    for view in (x[1:], x[::2], torch.arange(5)[1:]):
        got = aligned(view)
        assert got.is_contiguous()
        assert got.data_ptr() % 16 == 0
        assert torch.equal(got, view)


def test_max_stride_is_a_multiple_of_sixteen_bytes():
    """So that the longest distance that is read in place is one that can be."""
    assert MAX_STRIDE % 8 == 0
    assert MAX_STRIDE * 128 < 2**31 <= (MAX_STRIDE + 8) * 128
