"""embedding: padding_idx, rows without a token, atomics, dropout, registration, limits.

The float64 comparisons are generated in test_specs.py.
"""

import pytest
import torch

from fastbert.kernels import embedding as kernel
from fastbert.kernels.embedding import embedding_bwd, embedding_fwd
from fastbert.kernels.functional import embedding
from fastbert.kernels.primitives.segment_sum import segment_sum
from fastbert.kernels.specs.embedding import SPECS
from fastbert.kernels.specs.layer_norm import dropout_mask
from fastbert.kernels.specs.spec import seed_tensor
from tests.kernels.bad_ids import check_bad_ids
from tests.kernels.harness import compare, forward_backward, random_gradient

(SPEC,) = SPECS
SAMPLES = {sample.name: sample for sample in SPEC.samples}
TABLES = ("word_weight", "token_type_weight", "position_weight")


def make(name, device, dtype=torch.float32):
    return SAMPLES[name].make(dtype, device)


def test_padding_idx_receives_no_gradient(device):
    inputs = make("padding", device)
    padded = forward_backward(embedding, inputs, TABLES, None, random_gradient)
    free = forward_backward(embedding, inputs | {"padding_idx": None}, TABLES, None, random_gradient)
    assert torch.equal(padded["out"], free["out"])
    assert not padded["dword_weight"][0].any()
    assert free["dword_weight"][0].any()
    assert torch.equal(padded["dword_weight"][1:], free["dword_weight"][1:])
    assert torch.equal(padded["dposition_weight"], free["dposition_weight"])


def test_rows_without_a_token_receive_zero(device):
    inputs = make("axis-not-a-power-of-two", device)
    grad = forward_backward(embedding, inputs, TABLES, None, random_gradient)["dword_weight"]
    unused = torch.ones(len(grad), dtype=torch.bool, device=device)
    unused[inputs["input_ids"]] = False
    assert unused.any()
    assert not grad[unused].any()
    assert grad[~unused].any(1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("name", ["same-ids", "few-ids", "padding", "int32-ids", "dropout"])
def test_atomics_obey_the_same_rule(name, dtype, device):
    compare(SPEC, make(name, device, dtype) | {"deterministic": False}, dtype)


def test_drops_what_dropout_mask_says(device):
    """One mask for embedding and layer_norm: with a norm that gives 1 everywhere the output is the mask."""
    N, seed = 120, seed_tensor(11, device)
    ids = torch.zeros(40, dtype=torch.int64, device=device)
    table = torch.randn(1, N, device=device)
    ones, zeros = torch.ones(N, device=device), torch.zeros(N, device=device)
    y = embedding(ids, ids, ids, table, table, table, zeros, ones, dropout_p=0.3, seed=seed, stream=5)
    assert torch.equal(y, dropout_mask((40, N), 0.3, seed, 5))
    assert abs((y == 0).double().mean().item() - 0.3) < 4 * (0.21 / y.numel()) ** 0.5


def test_frozen_tables_cost_no_backward(device, monkeypatch):
    summed = []

    def counted(rows, ids, num_segments, *rest):
        summed.append(num_segments)
        return segment_sum(rows, ids, num_segments, *rest)

    monkeypatch.setattr(kernel, "segment_sum", counted)
    inputs = make("dropout", device)
    forward_backward(
        embedding, inputs, ("weight", "bias", "token_type_weight"), None, random_gradient
    )  # two token types: summed in registers
    assert summed == []
    forward_backward(embedding, inputs, ("position_weight",), None, random_gradient)
    assert summed == [len(inputs["position_weight"])]


def test_nothing_is_saved_without_a_gradient(device):
    inputs = make("dropout", device)
    tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)][:8]
    _, mean, rstd = embedding_fwd(*tensors, None, 1e-12, 0.0, None, 0, True, torch.float32, False)
    assert mean.numel() == rstd.numel() == 0


def test_autocast_gives_float32(device):
    inputs = make("padding", device, torch.float16)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert embedding(**inputs).dtype == torch.float32


def test_ids_of_different_dtypes_and_layouts(device):
    inputs = make("batch-short-axis", device)
    mixed = (
        inputs
        | {
            "token_type_ids": inputs["token_type_ids"].int(),
            "position_ids": inputs["position_ids"][:1].expand(3, 7),  # as transformers passes them: one row for the batch
            "input_ids": inputs["input_ids"].repeat(1, 2)[:, 7:],
        }
    )
    same = inputs | {"position_ids": inputs["position_ids"][:1].repeat(3, 1)}
    assert torch.equal(embedding(**mixed), embedding(**same))


@pytest.mark.parametrize("deterministic", [True, False])
def test_opcheck(deterministic, device):
    inputs = make("one-token-type", device) | {"seed": seed_tensor(3, device)}
    ids = [inputs[name] for name in ("input_ids", "token_type_ids", "position_ids")]
    weights = [inputs[name].clone().requires_grad_() for name in (*TABLES, "weight", "bias")]
    args = (*ids, *weights, 0, 1e-12, 0.2, inputs["seed"], 1, deterministic, torch.float32, True)
    torch.library.opcheck(embedding_fwd, args, rtol=1e-4, atol=1e-4)
    y, mean, rstd = (t.detach() for t in embedding_fwd(*args))
    for wants in ((True,) * 4, (False, True, False, False)):
        *frozen, _ = (w.detach() for w in weights)
        backward = (y, *ids, *frozen, mean, rstd, None, 0.2, inputs["seed"], 1, deterministic, *wants)
        torch.library.opcheck(embedding_bwd, backward, rtol=1e-4, atol=1e-4)


def test_compiles_without_a_graph_break(device):
    inputs = make("dropout", device)
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    expected, got = (
        forward_backward(function, inputs, SPEC.differentiable, None, random_gradient) for function in (embedding, compiled)
    )
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize(("deterministic", "dropout_p"), [(True, 0.1), (False, 0.0)])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("table", range(3), ids=TABLES)
@pytest.mark.parametrize("token_types", [2, 3])  # summed in registers, and as the other tables are
def test_ids_outside_their_table_give_nan_and_touch_no_row(table, token_types, dtype, dropout_p, deterministic, device):
    check_bad_ids(table, token_types, dtype, dropout_p, deterministic, device)


def test_segment_sum_does_not_cut_ids_to_a_row_that_exists(device):
    """2^32 has the lower half of 0."""
    ids = torch.tensor([1 << 32, 0, -(1 << 32) + 1, 1], device=device)
    rows = torch.tensor([[float("nan")], [1.0], [float("nan")], [2.0]], device=device)
    assert segment_sum(rows, ids, 2, None, torch.float32).flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(input_ids=torch.tensor([0, 6])), ValueError, r"input_ids in \[0, 6\).*word_weight, got values from 0 to 6"),
        (dict(token_type_ids=torch.tensor([-1, 0])), ValueError, r"token_type_ids in \[0, 2\).*from -1 to 0"),
        (dict(position_ids=torch.tensor([4, 1])), ValueError, r"position_ids in \[0, 4\).*from 1 to 4"),
        (dict(token_type_weight=torch.ones(0, 8)), ValueError, r"token_type_weight with a row.*got \(0, 8\)"),
        (dict(position_ids=torch.zeros(3, dtype=torch.int64)), ValueError, r"position_ids of shape \(2,\).*got \(3,\)"),
        (dict(input_ids=torch.zeros(2)), TypeError, "input_ids of dtype int64 or int32, got torch.float32"),
        (dict(position_weight=torch.ones(4, 7)), ValueError, r"position_weight of shape \(rows, 8\), got \(4, 7\)"),
        (dict(word_weight=torch.ones(6, 8).half()), TypeError, "token_type_weight of dtype torch.float16.*got torch.float32"),
        (dict(bias=torch.ones(9)), ValueError, r"weight and bias of shape \(N,\).*got \(8,\) and \(9,\)"),
        (dict(dropout_p=1.5), ValueError, r"dropout_p must lie in \[0, 1\], got 1.5"),
    ],
)
def test_rejects_bad_input(change, error, message):
    ids = torch.zeros(2, dtype=torch.int64)
    inputs = dict(
        input_ids=ids,
        token_type_ids=ids,
        position_ids=ids,
        word_weight=torch.ones(6, 8),
        token_type_weight=torch.ones(2, 8),
        position_weight=torch.ones(4, 8),
        weight=torch.ones(8),
        bias=torch.ones(8),
    )
    with pytest.raises(error, match=message):
        embedding(**inputs | change)
