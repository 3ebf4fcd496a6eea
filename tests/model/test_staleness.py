"""Nothing goes stale: changed weights, hooks and exchanged modules take effect at the next call, and leave with their cause.

Every test runs both models, changes both alike, and compares again; the change must show in transformers' own outputs.
"""

import copy
import types
import warnings
from functools import partial

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import nn
from torch.nn.utils import parametrize, prune

from tests.model.parity import (
    HEADS,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_same_gradients,
    assert_same_outputs,
    at_real_tokens,
    gradients,
    labels_for,
    make_batch,
    pair,
    projection,
    randomise,
)

INNER_MODULES = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.self",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "attention.output",
    "attention",
    "intermediate.dense",
    "intermediate.intermediate_act_fn",
    "intermediate",
    "output.dense",
    "output.LayerNorm",
    "output",
    "",
]
OUTER_MODULES = [
    "embeddings.word_embeddings",
    "embeddings.position_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.LayerNorm",
    "embeddings",
    "encoder",
    "pooler.dense",
    "pooler.activation",
    "pooler",
    "",
]
MODULES = [f"encoder.layer.1.{name}".rstrip(".") for name in INNER_MODULES] + OUTER_MODULES
DROPOUTS = ["embeddings.dropout", "encoder.layer.1.attention.output.dropout", "encoder.layer.1.output.dropout"]
LINEARS = [f"encoder.layer.1.{name}" for name in INNER_MODULES if name.endswith(("query", "key", "value", "dense"))] + [
    "pooler.dense"
]
WEIGHTED = [*LINEARS, "encoder.layer.1.output.LayerNorm", "embeddings.LayerNorm", "embeddings.word_embeddings"]


def run_and_compare(head, reference, fast, pattern="right", tolerance=1e-5, backward=True, **extra):
    batch = make_batch(pattern, head)
    inputs = batch.inputs(**labels_for(head, batch), **extra)
    with torch.no_grad():  # first: what a call without gradients might keep must not outlive a change either
        evaluated = fast(**inputs)
    expected, actual = reference(**inputs), fast(**inputs)
    assert_same_outputs(actual, expected, batch.flat_real, tolerance)
    assert_same_outputs(evaluated, expected, batch.flat_real, tolerance)
    if backward:
        scalars = [out.loss if out.get("loss") is not None else projection(out, batch.flat_real) for out in (actual, expected)]
        assert_same_gradients(gradients(fast, scalars[0]), gradients(reference, scalars[1]), tolerance)
    return expected


def first_tensor(outputs) -> torch.Tensor:
    return next(value for key, value in outputs.items() if key != "loss")


def values_of(outputs, real) -> torch.Tensor:
    """Every number of an output that belongs to a real token or a whole row, in one tensor."""
    return torch.cat([at_real_tokens(value.detach(), real).flatten() for value in outputs.values()])


def assert_follows(change, head=MODEL, undo=None, pattern="right", tolerance=1e-5, backward=True, shows=True, **options):
    """Equal before; equal and different after `change(model)`; equal to before again after `undo(model)`.

    shows: whether mathematics lets the change show (a softmax does not feel the bias of the keys).
    """
    reference, fast = pair(head, **options)
    real = make_batch(pattern, head).flat_real
    before = values_of(run_and_compare(head, reference, fast, pattern), real)
    results = [change(model) for model in (reference, fast)]
    after = values_of(run_and_compare(head, reference, fast, pattern, tolerance, backward), real)
    assert ((after - before).abs().max() > 1e-3) == shows, "the change shows nowhere: the test compares nothing"
    if undo is not None:
        for model, result in zip((reference, fast), results):
            undo(model, result)
        assert_close("after undoing", values_of(run_and_compare(head, reference, fast, pattern), real), before)
    return reference, fast


# ---- weights ------------------------------------------------------------------------------------------------------------


def each_parameter(action):
    def change(model):
        for parameter in model.parameters():
            action(parameter)

    return change


def no_grad_mul(parameter):
    with torch.no_grad():
        parameter.mul_(1.1)


def swap_data(parameter):
    parameter.data = parameter.data.flip(-1) * 0.9


def set_storage(parameter):
    with torch.no_grad():
        parameter.set_((parameter * 0.8).contiguous())


def scale_data(parameter):
    parameter.data.mul_(1.2)  # bumps no version counter


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 0.7


@pytest.mark.parametrize("action", [no_grad_mul, scale_data, swap_data, set_storage, through_numpy], ids=lambda a: a.__name__)
@pytest.mark.parametrize("head", [MODEL, PRETRAINING, TOKEN], ids=str)
def test_weights_changed_in_place(head, action):
    assert_follows(each_parameter(action), head)


@pytest.mark.parametrize("path", WEIGHTED)
def test_each_weight_alone(path):
    def change(model):
        for parameter in model.get_submodule(path).parameters():
            parameter.data.mul_(1.5)

    assert_follows(change)


@pytest.mark.parametrize("path", WEIGHTED)
def test_a_parameter_object_exchanged(path):
    def change(model):
        module = model.get_submodule(path)
        module.weight = nn.Parameter(module.weight.detach() * 1.5)

    assert_follows(change)


# With its usual eps Adam makes a whole step of a gradient that is nothing but rounding.
ADAM = partial(torch.optim.AdamW, lr=1e-2, eps=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        partial(torch.optim.SGD, lr=0.1),
        ADAM,
        partial(ADAM, foreach=True),
        partial(ADAM, fused=True),
    ],
    ids=["sgd", "adamw", "foreach", "fused"],
)
@pytest.mark.parametrize("head", [PRETRAINING, SEQUENCE], ids=str)
def test_optimizer_steps(head, build):
    reference, fast = pair(head)
    optimizers = [build(model.parameters()) for model in (reference, fast)]
    for step in range(4):
        batch = make_batch("right", head, seed=step)
        losses = []
        for model, optimizer in zip((reference, fast), optimizers):
            loss = model(**batch.inputs(**labels_for(head, batch, seed=step))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss)
        assert_close(f"loss of step {step}", losses[1], losses[0], 1e-3)
    for (name, parameter), wanted in zip(fast.named_parameters(), reference.parameters()):
        assert_close(name, parameter, wanted, 5e-4)


@pytest.mark.parametrize("assign", [False, True])
def test_load_state_dict(assign):
    donor, _ = pair(SEQUENCE, seed=3)
    weights = {name: value.clone() for name, value in donor.state_dict().items()}
    assert_follows(lambda model: model.load_state_dict(weights, assign=assign), SEQUENCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("head", [MODEL, SEQUENCE], ids=str)
def test_conversion_and_back(head, dtype):
    reference, fast = pair(head)
    run_and_compare(head, reference, fast)
    reference.to(dtype), fast.to(dtype)
    run_and_compare(head, reference, fast, tolerance=0.15 if dtype != torch.float64 else 1e-12)
    reference.float(), fast.float()
    run_and_compare(head, reference, fast)


def test_vector_to_parameters():
    def change(model):
        vector = nn.utils.parameters_to_vector(model.parameters())
        nn.utils.vector_to_parameters(vector * 1.1, model.parameters())

    assert_follows(change)


def test_exponential_moving_average_of_the_weights():
    reference, fast = pair(SEQUENCE)
    averaged = [torch.optim.swa_utils.AveragedModel(model) for model in (reference, fast)]
    for model in (reference, fast):
        randomise(model, seed=8)
    for average, model in zip(averaged, (reference, fast)):
        average.update_parameters(model)
        randomise(model, seed=9)
        average.update_parameters(model)
    run_and_compare(SEQUENCE, averaged[0].module, averaged[1].module)
    run_and_compare(SEQUENCE, reference, fast)


def test_weights_of_other_strides():
    """A transposed weight, a slice of a wider one: what some checkpoints and low-rank tools leave behind."""

    def change(model):
        for path in LINEARS:
            linear = model.get_submodule(path)
            linear.weight.data = (linear.weight.data * 1.1).t().contiguous().t()
            linear.bias.data = torch.stack([linear.bias.data, linear.bias.data], 1)[:, 1]
        wide = torch.cat([model.embeddings.word_embeddings.weight.data] * 2, 1)
        model.embeddings.word_embeddings.weight.data = wide[:, 48:]

    assert_follows(change)


@pytest.mark.parametrize("path", LINEARS)
def test_a_linear_without_bias(path):
    def change(model):
        model.get_submodule(path).bias = None

    assert_follows(change, shows=not path.endswith("key"))


def test_no_bias_anywhere():
    def change(model):
        for path in LINEARS:
            model.get_submodule(path).bias = None
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            model.get_submodule(f"encoder.layer.1.{name}").bias = None

    assert_follows(change)


def test_a_norm_without_weights():
    def change(model):
        layer = model.encoder.layer[1]
        layer.output.LayerNorm = nn.LayerNorm(48, eps=1e-5, elementwise_affine=False)
        layer.attention.output.LayerNorm = nn.LayerNorm(48, bias=False)

    assert_follows(change)


def test_a_changed_eps():
    def change(model):
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 0.5

    assert_follows(change)


@pytest.mark.parametrize("scaling", [0.01, 1.0])
def test_a_changed_softmax_scale(scaling):
    def change(model):
        model.encoder.layer[1].attention.self.scaling = scaling

    assert_follows(change)


# ---- hooks --------------------------------------------------------------------------------------------------------------


def scaled(output, factor=1.5):
    if isinstance(output, torch.Tensor):
        return output * factor
    if isinstance(output, tuple):
        return tuple(scaled(value, factor) for value in output)
    if hasattr(output, "last_hidden_state"):
        output.last_hidden_state = output.last_hidden_state * factor
        if output.get("pooler_output") is not None:
            output.pooler_output = output.pooler_output * factor
    return output


def shape_of(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [shape_of(entry) for entry in value if isinstance(entry, (torch.Tensor, tuple, list))]
    return type(value).__name__


@pytest.mark.parametrize("pattern", ["right", "holes"])
@pytest.mark.parametrize("path", MODULES + DROPOUTS)
def test_a_forward_hook_sees_padded_tensors_and_changes_what_it_likes(path, pattern):
    seen = {}

    def change(model):
        shapes = seen[id(model)] = []

        def hook(module, args, output):
            shapes.append((shape_of(args[:1]), shape_of(output)))
            return scaled(output)

        return model.get_submodule(path).register_forward_hook(hook)

    reference, fast = assert_follows(change, undo=lambda model, handle: handle.remove(), pattern=pattern)
    assert len(seen[id(reference)]) == 1
    assert seen[id(fast)] == 2 * seen[id(reference)]  # once without gradients, once with them


@pytest.mark.parametrize("path", [path for path in MODULES if path not in ("", "embeddings", "encoder", "encoder.layer.1")])
def test_a_forward_pre_hook_changes_the_input(path):
    def hook(module, args, kwargs):
        if args and args[0].is_floating_point():
            return (args[0] * torch.linspace(0.5, 1.5, args[0].shape[-1]), *args[1:]), kwargs
        if args:
            return ((args[0] + 1) % module.num_embeddings, *args[1:]), kwargs
        return None

    def change(model):
        return model.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)

    assert_follows(change, undo=lambda model, handle: handle.remove())


@pytest.mark.parametrize(
    "path",
    [
        "embeddings.LayerNorm",
        "encoder.layer.1.attention.self.query",
        "encoder.layer.1.output.dense",
        "encoder.layer.1.output.LayerNorm",
        "encoder.layer.1.intermediate",
        "encoder.layer.1",
        "pooler.dense",
    ],
)
def test_a_backward_hook_changes_the_gradient(path):
    reference, fast = pair(MODEL)
    before = run_and_compare(MODEL, reference, fast)
    batch = make_batch("right")
    plain = gradients(reference, projection(reference(**batch.inputs()), batch.real))
    plain = {name: gradient.clone() for name, gradient in plain.items()}

    def hook(module, grad_input, grad_output):
        return tuple(g if g is None or not g.is_floating_point() else 3 * g for g in grad_input)

    handles = [model.get_submodule(path).register_full_backward_hook(hook) for model in (reference, fast)]
    hooked = run_and_compare(MODEL, reference, fast)
    assert_close("a backward hook leaves the outputs", hooked.last_hidden_state, before.last_hidden_state)
    now = {name: parameter.grad for name, parameter in reference.named_parameters()}
    assert any((now[name] - plain[name]).abs().max() > 1e-3 for name in now)
    for handle in handles:
        handle.remove()
    run_and_compare(MODEL, reference, fast)


def test_a_tensor_hook_on_a_parameter():
    reference, fast = pair(MODEL)
    for model in (reference, fast):
        model.encoder.layer[0].attention.self.value.weight.register_hook(lambda gradient: 2 * gradient)
    run_and_compare(MODEL, reference, fast)


@pytest.mark.parametrize("kind", [nn.Linear, nn.LayerNorm])
def test_a_global_hook_reaches_the_modules_inside(kind):
    """torch.nn.modules.module.register_module_forward_hook, as profilers and NaN hunters use it."""
    reference, fast = pair(MODEL)
    before = run_and_compare(MODEL, reference, fast).last_hidden_state

    def hook(module, args, output):
        return output * 1.5 if type(module) is kind else None

    handle = nn.modules.module.register_module_forward_hook(hook)
    try:
        after = run_and_compare(MODEL, reference, fast).last_hidden_state
    finally:
        handle.remove()
    assert (after - before).abs().max() > 1e-3
    run_and_compare(MODEL, reference, fast)


def test_hooks_that_only_look_collect_activations():
    """The usual way to read inner states: a dictionary filled by hooks on the layers."""
    reference, fast = pair(TOKEN)
    collected = []
    for model in (reference, fast):
        states = {}
        for index, layer in enumerate(model.bert.encoder.layer):
            layer.register_forward_hook(
                lambda module, args, output, index=index, states=states: states.__setitem__(index, output)
            )
        collected.append(states)
    batch = make_batch("right")
    run_and_compare(TOKEN, reference, fast)
    for index in range(3):
        assert collected[1][index].shape == (5, 12, 48)
        assert_close(f"layer {index}", collected[1][index][batch.real], collected[0][index][batch.real])


@pytest.mark.parametrize(
    "path",
    ["encoder.layer.1.attention.self.query", "encoder.layer.1", "encoder.layer.1.attention.self", "embeddings", "encoder"],
)
def test_a_hook_that_raises(path):
    _, fast = pair(MODEL)

    def hook(module, args, output):
        raise KeyError("from the hook")

    handle = fast.get_submodule(path).register_forward_hook(hook)
    batch = make_batch("right")
    with pytest.raises(KeyError, match="from the hook"):
        fast(**batch.inputs())
    handle.remove()
    fast(**batch.inputs())


@pytest.mark.parametrize("path", [path for path in MODULES if path])
def test_a_forward_method_set_on_the_instance(path):
    """How accelerate, DeepSpeed and many notebooks patch a module."""

    def change(model):
        module = model.get_submodule(path)
        original = module.forward
        module.forward = types.MethodType(lambda self, *args, **kwargs: scaled(original(*args, **kwargs)), module)

    def undo(model, _):
        del model.get_submodule(path).forward

    assert_follows(change, undo=undo)


@pytest.mark.parametrize(
    "path", ["encoder.layer.1.attention.self.value", "encoder.layer.1.intermediate", "encoder.layer.1", "embeddings"]
)
def test_hooks_of_accelerate(path):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return scaled(output, 2.0)

    assert_follows(
        lambda model: add_hook_to_module(model.get_submodule(path), Doubling()),
        undo=lambda model, _: remove_hook_from_module(model.get_submodule(path)),
    )


# ---- what hidden states leave behind -------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["output_hidden_states", "output_attentions"])
def test_capturing_once_leaves_the_outputs_alone(option):
    reference, fast = pair(MODEL, attn_implementation="eager")
    batch = make_batch("right")
    plain = fast(**batch.inputs())
    for model in (reference, fast):
        model(**batch.inputs(), **{option: True})
    assert_same_outputs(fast(**batch.inputs()), plain, None, tolerance=0.0)
    run_and_compare(MODEL, reference, fast)
    assert_same_outputs(fast(**batch.inputs(), **{option: True}), reference(**batch.inputs(), **{option: True}), batch.real)


def test_hidden_states_do_not_pile_up():
    _, fast = pair(MODEL)
    batch = make_batch("right")
    for _ in range(3):
        assert len(fast(**batch.inputs(), output_hidden_states=True).hidden_states) == 4
    assert sum(len(module._forward_hooks) for module in fast.modules()) <= 6


# ---- modules exchanged ---------------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    """A user's own module around the one that was there."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return scaled(self.inner(*args, **kwargs), 2.0)


class Stretched(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 1.5


def replace_module(model, path, build):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, build(model.get_submodule(path)))


@pytest.mark.parametrize("path", [path for path in MODULES if path])
def test_a_module_replaced_by_a_users_own(path):
    assert_follows(
        lambda model: replace_module(model, path, Doubled),
        undo=lambda model, _: replace_module(model, path, lambda module: module.inner),
    )


@pytest.mark.parametrize("path", LINEARS)
def test_a_linear_replaced_by_a_subclass(path):
    def build(linear):
        module = Stretched(linear.in_features, linear.out_features)
        module.load_state_dict(linear.state_dict())
        return module

    assert_follows(lambda model: replace_module(model, path, build))


@pytest.mark.parametrize("path", LINEARS)
def test_the_class_of_a_linear_changed(path):
    def change(model):
        model.get_submodule(path).__class__ = Stretched

    assert_follows(change)


@pytest.mark.parametrize(
    "activation", [nn.ReLU(), nn.Hardswish(), nn.Tanh(), torch.sin], ids=["relu", "hardswish", "tanh", "sin"]
)
def test_the_activation_replaced(activation):
    def change(model):
        intermediate = model.encoder.layer[1].intermediate
        if isinstance(intermediate.intermediate_act_fn, nn.Module):
            del intermediate.intermediate_act_fn
        intermediate.intermediate_act_fn = activation

    assert_follows(change)


class PerSequence(nn.Module):
    """A user's activation that knows its tensors are (batch, seq, features), as they are in transformers."""

    def forward(self, x):
        _batch_size, _seqlen, _features = x.shape
        return torch.nn.functional.gelu(x) + x[:, :1]


class PerSequenceLinear(nn.Linear):
    def forward(self, x):
        _batch_size, _seqlen, _features = x.shape
        return super().forward(x * x[:, :1])


def test_an_activation_that_looks_along_the_sequence():
    assert_follows(
        lambda model: replace_module(model, "encoder.layer.1.intermediate.intermediate_act_fn", lambda old: PerSequence())
    )


@pytest.mark.parametrize("path", [path for path in LINEARS if "encoder" in path])
def test_a_linear_that_looks_along_the_sequence(path):
    def change(model):
        model.get_submodule(path).__class__ = PerSequenceLinear

    assert_follows(change)


@pytest.mark.parametrize("norm", ["rms", "batch_independent", "wider"])
def test_the_norm_replaced(norm):
    class Centered(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x) - 0.25

    def build(old):
        torch.manual_seed(1)
        if norm == "rms":
            return nn.RMSNorm(48)
        return Centered(48) if norm == "batch_independent" else nn.LayerNorm((48,), eps=0.1)

    assert_follows(lambda model: replace_module(model, "encoder.layer.1.output.LayerNorm", build))
    assert_follows(lambda model: replace_module(model, "embeddings.LayerNorm", build))


@pytest.mark.parametrize(
    "option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"padding_idx": 5}, {"padding_idx": None}], ids=str
)
@pytest.mark.parametrize("path", ["embeddings.word_embeddings", "embeddings.position_embeddings"])
def test_options_of_an_embedding(path, option):
    reference, fast = pair(MODEL)

    def build(old):
        table = nn.Embedding(old.num_embeddings, old.embedding_dim, **option)
        table.weight.data.copy_(old.weight.data * 1.5)
        return table

    for model in (reference, fast):
        replace_module(model, path, build)
    run_and_compare(MODEL, reference, fast)


@pytest.mark.parametrize("path", DROPOUTS)
def test_a_dropout_replaced_by_something_that_is_none(path):
    assert_follows(lambda model: replace_module(model, path, lambda old: nn.Hardtanh(-0.3, 0.3)))


@pytest.mark.parametrize(
    "edit",
    [
        lambda layers: layers[:2],
        lambda layers: layers[::-1],
        lambda layers: [*layers, layers[0]],
        lambda layers: [layers[1]] * 4,
        lambda layers: [layers[0], nn.Identity(), layers[2]],
    ],
    ids=["dropped", "reversed", "appended", "shared", "identity"],
)
def test_the_list_of_layers_edited(edit):
    class Taking(nn.Identity):
        def forward(self, hidden_states, *args, **kwargs):
            return hidden_states

    def change(model):
        layers = edit(list(model.encoder.layer))
        model.encoder.layer = nn.ModuleList([Taking() if type(layer) is nn.Identity else layer for layer in layers])

    assert_follows(change)


def test_layers_of_another_model_moved_in():
    """Also a layer of plain transformers inside fastbert's."""
    other, _ = pair(MODEL, seed=4)

    def change(model):
        model.encoder.layer[1] = copy.deepcopy(other.encoder.layer[1])

    assert_follows(change)


def test_an_attention_function_of_the_users_own():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    calls = []

    def own(module, query, key, value, attention_mask, **kwargs):
        calls.append(tuple(query.shape))
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output * 1.5, None

    AttentionInterface.register("conformance_own", own)
    AttentionMaskInterface.register("conformance_own", sdpa_mask)

    def change(model):
        model.set_attn_implementation("conformance_own")

    assert_follows(change, undo=lambda model, _: model.set_attn_implementation("sdpa"))
    assert len(calls) == 9
    assert set(calls) == {(5, 2, 12, 24)}


# ---- pruning, parametrizations, quantisation, LoRA -----------------------------------------------------------------------


@pytest.mark.parametrize("path", WEIGHTED)
def test_pruning(path):
    def change(model):
        module = model.get_submodule(path)
        prune.random_unstructured(module, "weight", amount=0.0)
        module.weight_mask[..., ::2] = 0

    def undo(model, _):
        model.get_submodule(path).weight_mask.fill_(1.0)

    assert_follows(change, undo=undo)


@pytest.mark.parametrize("path", LINEARS)
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "own", "legacy_weight_norm"])
def test_parametrizations(kind, path):
    class Squashed(nn.Module):
        def forward(self, weight):
            return weight.tanh()

    def change(model):
        module = model.get_submodule(path)
        torch.manual_seed(0)
        if kind == "weight_norm":
            parametrizations.weight_norm(module)
            module.parametrizations.weight.original0.data.mul_(1.5)
        elif kind == "spectral_norm":
            parametrizations.spectral_norm(module)
        elif kind == "own":
            parametrize.register_parametrization(module, "weight", Squashed())
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                nn.utils.weight_norm(module)
            module.weight_g.data.mul_(1.5)

    assert_follows(change)


@pytest.mark.parametrize("head", [MODEL, MASKED_LM, QUESTION], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation(head):
    reference, fast = pair(head)
    batch = make_batch("right", head)
    quantised = [torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8) for model in (reference, fast)]
    # Rows are quantised by the range of the whole batch, so padding rows may move the scale a little.
    with torch.no_grad():
        expected, actual = (first_tensor(model(**batch.inputs())) for model in quantised)
        plain = first_tensor(reference(**batch.inputs()))
    error = at_real_tokens(actual - expected, batch.real).abs().max()
    assert error <= 2 * at_real_tokens(plain - expected, batch.real).abs().max()
    assert error < at_real_tokens(plain, batch.real).abs().max()
    unpadded = make_batch("no_mask", head)
    with torch.no_grad():
        assert_same_outputs(quantised[1](**unpadded.inputs()), quantised[0](**unpadded.inputs()), unpadded.real, 1e-4)


def lora_pair(head, targets=("query", "value"), **options):
    from peft import LoraConfig, get_peft_model

    models = []
    for model in pair(head):
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=16, target_modules=list(targets), lora_dropout=0.0, **options)
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(6)))
        models.append(model.eval())
    return models


@pytest.mark.parametrize("targets", [("query", "value"), ("query", "key", "value", "dense"), ("word_embeddings",)], ids=str)
def test_lora_added_switched_off_merged_and_removed(targets):
    reference, fast = lora_pair(TOKEN, targets)
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(TOKEN, batch))
    plain = pair(TOKEN)[0](**inputs).logits

    def compare(step):
        expected, actual = reference(**inputs), fast(**inputs)
        assert_same_outputs(actual, expected, batch.real)
        return expected.logits

    adapted = compare("adapted")
    assert (adapted - plain)[batch.real].abs().max() > 1e-2
    assert_same_gradients(gradients(fast, fast(**inputs).loss), gradients(reference, reference(**inputs).loss))
    with reference.disable_adapter(), fast.disable_adapter():
        assert_close("switched off", compare("off")[batch.real], plain[batch.real])
    for model in (reference, fast):
        model.merge_adapter()
    assert_close("merged", compare("merged")[batch.real], adapted[batch.real])
    for model in (reference, fast):
        model.unmerge_adapter()
    compare("unmerged")
    reference, fast = reference.merge_and_unload(), fast.merge_and_unload()
    assert_close("unloaded", compare("unloaded")[batch.real], adapted[batch.real])
    assert type(fast.bert.encoder.layer[0].attention.self.query) is nn.Linear


def test_lora_adapters_chosen_per_row():
    """Mixed batches: each row names its adapter, which reaches the linears through hooks and keyword arguments."""
    from peft import LoraConfig, get_peft_model

    batch = make_batch("right")
    outputs = []
    for model in pair(SEQUENCE):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=0.0, init_lora_weights=False)
        model = get_peft_model(model, config, adapter_name="first")
        model.add_adapter("second", config)
        names = ["first", "second", "__base__", "second", "first"]
        outputs.append([model.eval()(**batch.inputs(), adapter_names=names), model(**batch.inputs())])
    for actual, expected in zip(outputs[1], outputs[0]):
        assert_same_outputs(actual, expected, batch.real)
    assert (outputs[0][0].logits - outputs[0][1].logits)[1].abs().max() > 1e-3


def test_dora():
    reference, fast = lora_pair(SEQUENCE, use_dora=True)
    run_and_compare(SEQUENCE, reference, fast)


@pytest.mark.parametrize("path", ["encoder.layer.1.attention.self.query", "encoder.layer.0.output.dense", "pooler.dense"])
def test_a_linear_of_another_dtype_is_not_read_as_the_models(path):
    """transformers refuses to mix dtypes in a product; silence would be worse."""
    reference, fast = pair(MODEL)
    for model in (reference, fast):
        model.get_submodule(path).to(torch.bfloat16)
    batch = make_batch("right")
    with pytest.raises((RuntimeError, TypeError), match=r"(?i)dtype|same type|scalar type"):
        reference(**batch.inputs())
    with pytest.raises((RuntimeError, TypeError), match=r"(?i)dtype|same type|scalar type"):
        fast(**batch.inputs())


# ---- copies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_deep_copy_is_equal_and_independent(head):
    reference, fast = pair(head)
    batch = make_batch("right", head)
    before = fast(**batch.inputs())
    copied = copy.deepcopy(fast)
    assert type(copied) is type(fast)
    assert_same_outputs(copied(**batch.inputs()), before, None, tolerance=0.0)
    run_and_compare(head, reference, copied)
    randomise(fast, seed=5)
    assert_same_outputs(copied(**batch.inputs()), before, None, tolerance=0.0)
    assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in fast.parameters()}


@pytest.mark.parametrize("module_of", ["pickle", "torch"])
@pytest.mark.parametrize("head", HEADS, ids=str)
def test_pickling(head, module_of, tmp_path):
    import pickle

    reference, fast = pair(head)
    if module_of == "pickle":
        loaded = pickle.loads(pickle.dumps(fast))
    else:
        torch.save(fast, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(loaded) is type(fast)
    assert [type(module) for module in loaded.modules()] == [type(module) for module in fast.modules()]
    run_and_compare(head, reference, loaded)


def test_two_models_of_other_shapes_side_by_side():
    first, second = pair(MODEL), pair(MODEL, seed=2, num_hidden_layers=2, hidden_size=64, intermediate_size=80)
    for _ in range(2):
        run_and_compare(MODEL, *first)
        run_and_compare(MODEL, *second)
