"""What embedding must do with ids that name no row, where nobody looks at their values: on a GPU."""

import torch

from fastbert.kernels import embedding as kernel
from fastbert.kernels.reference import embedding_ref
from fastbert.kernels.specs.layer_norm import dropout_mask
from fastbert.kernels.specs.spec import seed_tensor
from tests.kernels.harness import random_gradient


def bad_ids(rows, dtype):
    """Ids that name no row: beside the table, far from it, and those whose lower half would name one."""
    limits = torch.iinfo(dtype)
    ids = [-1, rows, rows + 10**6, limits.min, limits.max]
    return ids if dtype == torch.int32 else [*ids, 1 << 32, -(1 << 32) + 1]


def check_bad_ids(table, token_types, dtype, dropout_p, deterministic, device):
    """Every second token has a bad id for one table: it gets NaN, reads and writes no row for that id, and changes no other.

    The kernel is called below the check of the values, which a CPU always makes.
    """
    N, sizes, seed = 40, (7, token_types, 5), seed_tensor(3, device)
    weights = [torch.randn(rows, N, device=device) for rows in sizes]
    norm = [torch.ones(N, device=device), torch.zeros(N, device=device)]
    wrong = bad_ids(sizes[table], dtype)
    tokens = torch.arange(2 * len(wrong), device=device)
    is_bad = tokens % 2 == 1
    # The other two ids of a token with a bad one name the last row, which no other token has.
    ids = [torch.where(is_bad, rows - 1, tokens // 2 % (rows - 1)).to(dtype) for rows in sizes]
    ids[table][is_bad] = torch.tensor(wrong, dtype=dtype, device=device)

    leaves = [weight.clone().requires_grad_() for weight in weights]
    out = kernel.embedding(ids, leaves, *norm, None, 1e-12, dropout_p, seed, 1, deterministic, torch.float32)
    dy = random_gradient(out)
    out.backward(dy)
    mask = dropout_mask((len(tokens), N), dropout_p, seed, 1)
    expected_leaves = [weight.clone().requires_grad_() for weight in weights]
    expected = embedding_ref(
        *(values[~is_bad] for values in ids), *expected_leaves, *norm, dropout_p=dropout_p, dropout_mask=mask[~is_bad]
    )
    expected.backward(dy[~is_bad])

    torch.testing.assert_close(out[~is_bad], expected)
    assert torch.equal(out[is_bad].isnan(), mask[is_bad] > 0)
    for i, (leaf, expected_leaf) in enumerate(zip(leaves, expected_leaves)):
        torch.testing.assert_close(leaf.grad[:-1], expected_leaf.grad[:-1], rtol=1e-4, atol=1e-5)
        if i == table:
            assert not leaf.grad[-1].any(), "a bad id was taken for the last row"
        else:
            assert leaf.grad[-1].isnan().all(), "the gradient of a bad token's other rows is not a number"
