"""The tensors of one call: what is broadcast, and what is refused."""

import types

import pytest
import torch

from fastbert.model.inputs import Inputs, broadcast_inputs, check_padded, check_sizes, fitting_positions

IDS = torch.arange(6).view(2, 3)
BERT = types.SimpleNamespace(
    config=types.SimpleNamespace(hidden_size=4), embeddings=types.SimpleNamespace(position_ids=torch.arange(5)[None])
)


def inputs(ids=IDS, **others):
    return Inputs(**dict.fromkeys(("token_type_ids", "position_ids", "inputs_embeds")) | {"input_ids": ids} | others)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (2, 3)], ids=str)
def test_what_broadcasts_gets_the_shape_of_the_batch(shape):
    value = torch.zeros(shape, dtype=torch.long)
    found, mask = broadcast_inputs(inputs(token_type_ids=value, position_ids=value), torch.ones(1, 3))
    assert found.token_type_ids.shape == found.position_ids.shape == mask.shape == (2, 3)
    check_padded(BERT, found, mask)


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids", "attention_mask"])
def test_what_does_not_fit_is_left_and_then_refused(name):
    wrong = torch.zeros(2, 4, dtype=torch.long)
    given = inputs() if name == "attention_mask" else inputs(**{name: wrong})
    found, mask = broadcast_inputs(given, wrong if name == "attention_mask" else None)
    with pytest.raises(ValueError, match=rf"expected {name} of shape \(2, 3\).*got \(2, 4\)"):
        check_padded(BERT, found, mask)


def test_sizes_are_those_of_the_model():
    check_sizes(BERT, inputs(), 5)
    check_sizes(BERT, inputs(position_ids=IDS), 6)  # the caller's positions, which the table itself refuses
    with pytest.raises(ValueError, match=r"at most 5 tokens.*got 6"):
        check_sizes(BERT, inputs(), 6)
    with pytest.raises(ValueError, match="hidden size 4, got 3"):
        check_sizes(BERT, inputs(None, inputs_embeds=torch.zeros(2, 3, 3)), 3)


def test_map_and_tokens():
    embeds = torch.zeros(2, 3, 4)
    flat = inputs(None, inputs_embeds=embeds).map(lambda x: x.flatten(0, 1))
    assert flat.tokens.shape == (6, 4)
    assert flat.input_ids is flat.token_type_ids is None
    assert inputs().tokens is IDS


def test_positions_of_another_shape_count_as_none():
    assert fitting_positions(torch.ones(2, 3, dtype=torch.bool), IDS).shape == (2, 3)
    assert fitting_positions(torch.ones(2, 4, dtype=torch.bool), IDS) is None
    assert fitting_positions(None, IDS) is None
