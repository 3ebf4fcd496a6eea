"""Which parameters decay: those of the original BERT, by type and not by name, tied ones once."""

import pytest
import torch
from torch import nn

import fastbert
from fastbert.pretraining.optimizers import Lamb
from fastbert.pretraining.parameter_groups import parameter_groups


def tiny_bert():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return fastbert.BertForPreTraining(fastbert.BertConfig(vocab_size=30, max_position_embeddings=8, **sizes))


def names_of(model, groups):
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    return [[name_of[parameter] for parameter in group["params"]] for group in groups]


def test_groups_of_bert_for_pretraining():
    model = tiny_bert()
    groups = parameter_groups(model, 0.01)
    layer = "bert.encoder.layer.0."
    dense = ["attention.self.query", "attention.self.key", "attention.self.value"]
    dense += ["attention.output.dense", "intermediate.dense", "output.dense"]
    decayed = [f"bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    decayed += [f"{layer}{name}.weight" for name in dense]
    decayed += ["bert.pooler.dense.weight", "cls.predictions.transform.dense.weight", "cls.seq_relationship.weight"]
    undecayed = ["bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias"]
    undecayed += [f"{layer}{name}.bias" for name in dense]
    undecayed += [f"{layer}{name}.LayerNorm.{part}" for name in ("attention.output", "output") for part in ("weight", "bias")]
    undecayed += ["bert.pooler.dense.bias", "cls.predictions.bias", "cls.predictions.transform.dense.bias"]
    undecayed += ["cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias"]
    undecayed += ["cls.seq_relationship.bias"]

    names = names_of(model, groups)
    assert [sorted(group) for group in names] == [sorted(decayed), sorted(undecayed)]
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert len(names[0]) + len(names[1]) == len(list(model.parameters()))
    decoder = model.cls.predictions.decoder
    assert sum(parameter is decoder.weight for group in groups for parameter in group["params"]) == 1
    assert sum(parameter is decoder.bias for group in groups for parameter in group["params"]) == 1


def test_groups_keep_the_order_of_the_modules():
    model = tiny_bert()
    names = names_of(model, parameter_groups(model, 0.01))
    assert names == names_of(model, parameter_groups(model, 0.01))
    order = [name for name, _ in model.named_parameters()]
    for group in names:
        assert group == sorted(group, key=order.index)


def test_groups_go_by_type_and_not_by_name():
    class Norm(nn.LayerNorm): ...

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.LayerNorm = nn.Linear(2, 2, bias=False)  # a norm by name only
            self.final = Norm(2)
            self.relative_attention_bias = nn.Embedding(4, 2)  # a bias by its module's name only
            self.attention = nn.MultiheadAttention(2, 1)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    model = Model()
    assert names_of(model, parameter_groups(model, 0.1)) == [
        ["LayerNorm.weight", "relative_attention_bias.weight", "attention.in_proj_weight", "attention.out_proj.weight"],
        ["final.weight", "final.bias", "attention.in_proj_bias", "attention.out_proj.bias"],
    ]


@pytest.mark.parametrize("norm", [0, 1], ids=["norm first", "norm last"])
def test_a_parameter_tied_to_one_that_does_not_decay_does_not_either(norm):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[norm] = nn.LayerNorm(2)
    model[1 - norm].weight = model[norm].weight
    groups = parameter_groups(model, 0.1)
    assert names_of(model, groups) == [[], ["0.weight", "0.bias", "1.bias"]]
    Lamb(groups, 1e-3)


@pytest.mark.parametrize(
    ("model", "weight_decay", "error", "message"),
    [
        (nn.Linear(2, 2), -0.1, ValueError, "weight_decay to be a finite number of at least 0, got -0.1"),
        (nn.Linear(2, 2), "much", TypeError, "weight_decay .* got 'much'"),
        (nn.Linear(2, 2).requires_grad_(False), 0.1, ValueError, "parameters that require gradients, got none in Linear"),
        ([nn.Parameter(torch.ones(2))], 0.1, TypeError, r"expected a torch\.nn\.Module, got list"),
    ],
    ids=["negative", "word", "frozen", "list"],
)
def test_groups_reject_bad_input(model, weight_decay, error, message):
    with pytest.raises(error, match=message):
        parameter_groups(model, weight_decay)
