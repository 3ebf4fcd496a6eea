"""Ids that name no row, through compiled kernels: a read or write outside a table is a fault of the emulator."""

import pytest
import torch

from tests.kernels.bad_ids import check_bad_ids

CASES = [
    pytest.param(table, token_types, dtype, 0.1 if deterministic else 0.0, deterministic)
    for table in range(3)
    for token_types, dtype, deterministic in [(2, torch.int64, True), (3, torch.int32, False), (3, torch.int64, False)]
]


@pytest.mark.parametrize(("table", "token_types", "dtype", "dropout_p", "deterministic"), CASES)
def test_ids_outside_their_table(table, token_types, dtype, dropout_p, deterministic, emulator):
    check_bad_ids(table, token_types, dtype, dropout_p, deterministic, torch.device("cpu"))
