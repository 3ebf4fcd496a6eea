"""Batch-invariant mode: the bits of an input alone are its bits in every batch, on PyTorch and on the kernels."""

import threading

import pytest
import torch
import transformers

import fastbert
from fastbert.kernels import use_backend
from fastbert.kernels.batch_invariance import batch_invariant_kernels, is_batch_invariant
from fastbert.kernels.matmul.choose import select_gemm, use_gemm
from fastbert.kernels.matmul.config import GemmConfig

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
# Lengths on both sides of every height of a tile, and of every bound by which attention chooses its own.
LENGTHS = (1, 7, 33, 64, 65, 129, 150, 260)
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if GPU else (torch.float32, torch.float16)
SIDES = [("triton", dtype) for dtype in DTYPES] + [("torch", torch.float32)]


def make_model(name, dtype, hidden_size=48, num_attention_heads=3):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=hidden_size,
        num_hidden_layers=1,
        num_attention_heads=num_attention_heads,
        intermediate_size=2 * hidden_size,
        num_labels=5,
        initializer_range=0.2,
    )
    return getattr(fastbert, name)(config).eval().to(DEVICE, dtype)


def make_batch(lengths):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (len(lengths), max(lengths)), generator=g).to(DEVICE)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(DEVICE)
    return ids, mask


def real(outputs, row, length):
    """What belongs to one sequence, of outputs of sequences and of tokens."""
    return [value[row, :length] if value.dim() == 3 else value[row] for value in outputs.values()]


@pytest.fixture
def needs_its_side(side, request):
    if side == "triton":
        request.getfixturevalue("triton_device")


@pytest.mark.parametrize(("side", "dtype"), SIDES)
@pytest.mark.parametrize("name", ["BertModel", "BertForSequenceClassification", "BertForTokenClassification"])
@torch.no_grad()
def test_the_bits_are_those_of_the_input_alone(name, side, dtype, needs_its_side):
    model = make_model(name, dtype)
    lengths = LENGTHS if side == "torch" or GPU else (1, 65, 150) if name == "BertModel" else (1, 33, 65)  # interpreted
    ids, mask = make_batch(lengths)
    with use_backend(side), fastbert.batch_invariant():
        together = model(ids, attention_mask=mask)
        few = model(ids[1:], attention_mask=mask[1:])
        for row, length in enumerate(lengths):
            alone = model(ids[row : row + 1, :length])
            for one, other in zip(real(together, row, length), real(alone, 0, length), strict=True):
                assert torch.equal(one, other), (row, length)
            if row:
                for one, other in zip(real(few, row - 1, length), real(alone, 0, length), strict=True):
                    assert torch.equal(one, other), (row, length)


@pytest.mark.parametrize(("side", "dtype"), SIDES)
@torch.no_grad()
def test_packed_calls_have_the_bits_of_padded_ones(side, dtype, needs_its_side):
    model = make_model("BertModel", dtype)
    lengths = LENGTHS[:5] if side == "torch" or GPU else (1, 33, 65)
    ids, mask = make_batch(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE, torch.int32)
    with use_backend(side), fastbert.batch_invariant():
        padded = model(ids, attention_mask=mask)
        packed = model(ids[mask.bool()], cu_seqlens=bounds, max_seqlen=max(lengths))
        states = model(ids, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(packed.last_hidden_state, padded.last_hidden_state[mask.bool()])
    assert torch.equal(packed.pooler_output, padded.pooler_output)
    assert torch.equal(states.hidden_states[-1], padded.last_hidden_state)


@torch.no_grad()
def test_a_compiled_model_runs_uncompiled():
    model = make_model("BertModel", torch.float32)
    ids, mask = make_batch((9, 30, 4))
    compiled = torch.compile(model, backend="eager")
    compiled(ids, attention_mask=mask)
    with fastbert.batch_invariant():
        found = compiled(ids, attention_mask=mask).last_hidden_state
        assert torch.equal(found[1:2], compiled(ids[1:2]).last_hidden_state)


@torch.no_grad()
def test_the_answer_is_the_usual_one_but_for_rounding():
    model = make_model("BertForSequenceClassification", torch.float32)
    ids, mask = make_batch(LENGTHS)
    usual = model(ids, attention_mask=mask).logits
    with fastbert.batch_invariant():
        found = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(found, usual, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_the_mode_bits_may_differ():
    """On sizes where the CPU's library is known to choose by rows; else the tests above would prove nothing."""
    if GPU:
        pytest.skip("what a GPU's library chooses by is its own affair")
    model = make_model("BertModel", torch.float32, 384, 6)
    ids, mask = make_batch((9, 21, 2, 40))
    together = model(ids, attention_mask=mask).last_hidden_state
    alone = [model(ids[row : row + 1, :n]).last_hidden_state[0] for row, n in enumerate((9, 21, 2, 40))]
    assert not all(torch.equal(together[row, : len(one)], one) for row, one in enumerate(alone))


def test_one_tile_and_one_side_for_every_number_of_rows():
    for dtype in (torch.float32, torch.bfloat16):
        with batch_invariant_kernels():
            tiles = {GemmConfig.for_shape("fwd", rows, 3072, dtype, DEVICE) for rows in (1, 64, 1000, 65536)}
            sides = {select_gemm("linear", rows, 3072, 768, dtype, torch.device("cuda")).side for rows in (1, 1000, 65536)}
        assert len(tiles) == 1
        assert sides == {"triton"}
    with use_gemm("library"), batch_invariant_kernels(), pytest.raises(RuntimeError, match="not in batch-invariant mode"):
        select_gemm("linear", 8, 16, 16, torch.float32, DEVICE)


def test_what_only_transformers_computes_is_refused():
    model = make_model("BertModel", torch.float32)
    ids, _ = make_batch((9,))
    cube = torch.ones(1, 1, 9, 9, device=DEVICE)
    with fastbert.batch_invariant(), pytest.raises(RuntimeError, match="got one that needs transformers' encoder"):
        model(ids, attention_mask=cube)
    model(ids, attention_mask=cube)


def test_the_mode_is_of_one_thread_and_ends():
    seen = []
    with fastbert.batch_invariant():
        thread = threading.Thread(target=lambda: seen.append(is_batch_invariant()))
        thread.start()
        thread.join()
        assert is_batch_invariant()
    assert seen == [False]
    assert not is_batch_invariant()
