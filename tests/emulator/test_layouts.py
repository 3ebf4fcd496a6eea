"""Where tiles lie: matrix descriptors of wgmma and tensor maps of TMA, which must agree on the swizzle."""

import dataclasses

import numpy as np
import pytest

from tests.emulator.matrix_descriptor import MatrixDescriptor, swizzle
from tests.emulator.tensor_map import TensorMap


def word(start: int, leading: int, stride: int, mode: int) -> np.ndarray:
    """A descriptor by the table of the PTX ISA: offsets in units of 16 bytes at the bits 0, 16 and 32, the swizzle at 62."""
    return np.array([start >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62], np.uint64)


@pytest.mark.parametrize(("mode", "width"), [(0, 16), (1, 128), (2, 64), (3, 32)])
def test_descriptor_fields(mode: int, width: int) -> None:
    descriptor = MatrixDescriptor.decode(word(2048, 8192, 1024, mode))
    assert (descriptor.start.item(), descriptor.leading.item(), descriptor.stride.item()) == (2048, 8192, 1024)
    assert descriptor.width == width


def test_descriptors_that_are_not_modelled() -> None:
    with pytest.raises(NotImplementedError, match="expected one swizzle in all wgmma descriptors"):
        MatrixDescriptor.decode(np.concatenate([word(0, 16, 16, 1), word(0, 16, 16, 2)]))
    with pytest.raises(NotImplementedError, match="without a base offset"):
        MatrixDescriptor.decode(word(0, 16, 16, 1) | np.uint64(1 << 49))


def test_pattern_of_128_bytes() -> None:
    """Eight rows of eight chunks, the chunk of row r exchanged with that of its number xor r."""
    places = swizzle(np.arange(64) * 16, 128).reshape(8, 8)
    rows, chunks = np.arange(8)[:, None], np.arange(8)
    assert (places == rows * 128 + (chunks ^ rows) * 16).all()


@pytest.mark.parametrize("width", [32, 64, 128])
def test_pattern_moves_chunks_within_its_width_only(width: int) -> None:
    chunks = np.arange(256) * 16
    places = swizzle(chunks, width)
    assert sorted(places) == list(chunks)
    assert (places // width == chunks // width).all()
    assert (swizzle(places, width) == chunks).all()
    assert (swizzle(chunks, 16) == chunks).all()


@pytest.mark.parametrize("width", [32, 64, 128])
def test_operand_read_as_it_was_written(width: int) -> None:
    """A tile of `width` bytes a row as TMA writes it: wgmma's descriptor finds every chunk of it."""
    mode = {128: 1, 64: 2, 32: 3}[width]
    written = swizzle(np.arange(64 * width // 16) * 16, width).reshape(64, -1)  # [rows, chunks of a row]
    for step in range(width // 32):  # the start advances by 32 bytes, a step along k
        places = MatrixDescriptor.decode(word(step * 32, 16, 8 * width, mode)).chunks(64, 16, transposed=False)
        assert (places[0] == written[:, 2 * step : 2 * step + 2]).all()


def test_transposed_operand_read_as_it_was_written() -> None:
    """128 columns of 16-bit elements as two tiles of 64 columns and 16 rows: chunk (group of eight columns, row)."""
    tile = swizzle(np.arange(16 * 8) * 16, 128).reshape(16, 8)
    written = np.concatenate([tile.T, tile.T + 16 * 128])
    places = MatrixDescriptor.decode(word(0, 16 * 128, 8 * 128, 1)).chunks(128, 16, transposed=True)
    assert (places[0] == written).all()


MAP = TensorMap(
    base=1 << 20, swizzle=3, element_bytes=2, element_type=9, block=[64, 64], shape=[100, 200], strides=[200, 1], padding=0
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"base": (1 << 20) + 8}, "expected a multiple of 16 as the address"),
        ({"strides": [201, 1]}, "expected a multiple of 16 below 2.*40 as the stride of a tensor map in bytes, got 402"),
        ({"shape": [0, 200]}, "expected sizes of a tensor map from 1"),
        ({"block": [512, 64]}, "expected a box of 1 to 256 elements an axis, got 512"),
        ({"block": [64, 36]}, "expected rows of a box to be a multiple of 16 bytes, got 72"),
        ({"swizzle": 2}, "expected rows of a box to fit the swizzle of 64 bytes, got 128"),
    ],
)
def test_tensor_maps_that_the_driver_refuses(change: dict, message: str | None) -> None:
    refusal = dataclasses.replace(MAP, **change).refusal()
    if message is None:
        assert refusal is None
    else:
        with pytest.raises(ValueError, match=message):
            raise ValueError(refusal)
