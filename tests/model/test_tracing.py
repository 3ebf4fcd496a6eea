"""torch.jit.trace, both ONNX exporters and OpenVINO: every class records what transformers computes, and not its example.

The example is one batch; what it recorded must serve others: of other sizes, with other padding, with gradients or without.
"""

import copy
import importlib.util
import inspect
import io
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fastbert
from tests.model.parity import (
    CHOICE,
    HEADS,
    HEADS_AND_DECODER,
    MASKED_LM,
    MODEL,
    PRETRAINING,
    QUESTION,
    SEQUENCE,
    TOKEN,
    assert_close,
    assert_same_gradients,
    assert_same_value,
    batch_of,
    gradients,
    labels_for,
    make_batch,
    pair,
)

ROOT = Path(fastbert.__file__).parents[1]
NAMES = ("input_ids", "attention_mask", "token_type_ids")
OTHERS = ("right", "left", "holes", "first_token_masked", "empty_row", "longest", "one_row", "full", "one_token")
TUPLES = {"return_dict": False, "use_cache": False}  # what torch.jit.trace takes with its defaults


def missing(*names):
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed: the extra `export`")


needs_onnx = missing("onnx", "onnxscript", "onnxruntime")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


def arguments(batch):
    return (batch.input_ids, batch.mask, batch.token_type_ids)


def flat(outputs):
    """The tensors of nested tuples, as exporters return them."""
    return [one for value in outputs for one in (flat(value) if isinstance(value, tuple) else [value])]


def assert_serves_other_batches(run, reference, head=MODEL, patterns=OTHERS):
    """run: from a batch to the flat list of outputs."""
    for pattern in patterns:
        batch = make_batch(pattern, head, seed=3)
        with torch.no_grad():
            expected = flat(reference(*arguments(batch)))
        actual = run(batch)
        assert len(actual) == len(expected)
        for index, (value, right) in enumerate(zip(actual, expected)):
            assert_same_value(f"{pattern}[{index}]", value, right, batch.flat_real)


class Calls(nn.Module):
    """A module with positional inputs alone, as torch.jit.trace wants it. options: what else the model is called with."""

    def __init__(self, model, names, **options):
        super().__init__()
        self.model, self.names, self.options = model, names, options

    def forward(self, *values):
        return self.model(**dict(zip(self.names, values)), **self.options)


def code_of(traced):
    """The recorded code of every module, without the types and sizes of the example."""
    return {name: module.code for name, module in traced.named_modules() if hasattr(module, "code")}


# ---- torch.jit.trace ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["right", "full", "no_mask"])
@pytest.mark.parametrize("states", [False, True], ids=["", "hidden_states"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_traces_with_the_defaults(head, states, pattern):
    """check_trace compares with a second trace, under no_grad. No size and no value of the example is recorded."""
    reference, fast = pair(head, num_hidden_layers=2, output_hidden_states=states, **TUPLES)
    example = make_batch(pattern, head)
    inputs = arguments(example) if example.mask is not None else (example.input_ids,)
    for model in (fast, fastbert.accelerate(copy.deepcopy(reference))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            traced = torch.jit.trace(model, inputs)
        own = [
            f"{warning.filename}:{warning.lineno}: {warning.message}"
            for warning in caught
            if issubclass(warning.category, torch.jit.TracerWarning) and Path(warning.filename).is_relative_to(ROOT)
        ]
        assert not own
        if example.mask is not None:
            assert_serves_other_batches(lambda batch, traced=traced: flat(traced(*arguments(batch))), reference, head)
            continue
        other = make_batch("longest", head)
        for value, right in zip(flat(traced(other.input_ids)), flat(reference(other.input_ids))):
            assert_same_value("", value, right, None)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("shape", [(12,), (1, 12)], ids=str)
def test_a_mask_that_is_broadcast_is_traced(shape):
    reference, fast = pair(num_hidden_layers=2, **TUPLES)
    batch = make_batch("full")
    row = torch.tensor([1] * 8 + [0] * 4)
    traced = torch.jit.trace(fast, (batch.input_ids, row.view(shape)))
    ids, row = batch.input_ids.flip(1)[:3, :9], torch.tensor([1] * 5 + [0] * 4)
    expected = reference(ids, row.expand(3, 9))
    for value, right in zip(traced(ids, row.view(9 if len(shape) == 1 else (1, 9))), expected):
        assert_same_value("", value, right, row.expand(3, 9).bool())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("head", [MODEL, SEQUENCE, CHOICE, QUESTION], ids=str)
def test_the_graph_does_not_depend_on_the_example(head):
    """Nor on gradients: the same code from any batch, trainable or frozen, recorded under no_grad or not."""
    _, fast = pair(head, num_hidden_layers=1, output_hidden_states=True, **TUPLES)
    codes = [
        code_of(torch.jit.trace(fast, arguments(make_batch(name, head)))) for name in ("right", "full", "longest", "one_row")
    ]
    with torch.no_grad():
        codes.append(code_of(torch.jit.trace(fast, arguments(make_batch("right", head)))))
    codes.append(code_of(torch.jit.trace(fast.requires_grad_(False), arguments(make_batch("left", head)))))
    large = batch_of(torch.ones(2, *((3,) if head.choices else ()), 64, dtype=torch.bool))  # more rows than a layer is wide
    codes.append(code_of(torch.jit.trace(fast, arguments(large))))
    assert all(code == codes[0] for code in codes[1:])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("head", [MODEL, TOKEN], ids=str)
def test_a_trace_recorded_without_gradients_trains(head):
    """Gradients of the parameters and of a hidden state in the middle equal those of transformers."""
    reference, fast = pair(head, num_hidden_layers=2, output_hidden_states=True, **TUPLES)
    with torch.no_grad():
        traced = torch.jit.trace(fast, arguments(make_batch("full")))
    batch = make_batch("right", seed=4)
    found, middle = [], []
    for model, parameters in ((traced, fast), (reference, reference)):
        outputs = model(*arguments(batch))
        states = outputs[-1]
        states[1].retain_grad()
        weights = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
        total = sum((value * weights.mean())[batch.real].sum() for value in states) + (outputs[0] * weights)[batch.real].sum()
        found.append(gradients(parameters, total))
        middle.append(states[1].grad[batch.real])
    assert_same_gradients(*found)
    assert_close("gradient of a hidden state", *middle, scale=max(1.0, middle[1].abs().max().item()))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("head", "options"),
    [
        *((head, {}) for head in HEADS_AND_DECODER if head is not MODEL),
        (MASKED_LM, {"return_logits": False}),
        (PRETRAINING, {"return_logits": False}),
    ],
    ids=str,
)
def test_losses_are_traced(head, options):
    reference, fast = pair(head, num_hidden_layers=1, **TUPLES)

    def labelled(pattern, seed):
        batch = make_batch(pattern, head, seed)
        return batch.inputs(**labels_for(head, batch, seed))

    example = labelled("right", 0)
    traced = torch.jit.trace(Calls(fast, list(example), **options), tuple(example.values()))
    for pattern in ("right", "holes", "left", "one_row"):
        inputs = labelled(pattern, 5)
        assert_close(f"loss of {pattern}", traced(*inputs.values())[0], reference(**inputs)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_loss_over_real_tokens_is_traced():
    _, fast = pair(QUESTION, num_hidden_layers=1, **TUPLES)
    inputs = [
        make_batch(name, seed=seed).inputs(**labels_for(QUESTION, make_batch(name)))
        for name, seed in (("right", 0), ("holes", 2))
    ]
    traced = torch.jit.trace(Calls(fast, list(inputs[0]), real_tokens_only=True), tuple(inputs[0].values()))
    assert_close("loss", traced(*inputs[1].values())[0], fast(**inputs[1], real_tokens_only=True)[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_a_packed_call_is_traced(head):
    """For any number of sequences and tokens; max_seqlen is recorded."""
    reference, fast = pair(head, num_hidden_layers=1, output_hidden_states=True, **TUPLES)
    options = {"num_choices": 3} if head.choices else {}

    def packed(batch):
        real = batch.flat_real
        cu_seqlens = nn.functional.pad(real.sum(1).cumsum(0), (1, 0)).int()
        return batch.input_ids.flatten(0, -2)[real], batch.token_type_ids.flatten(0, -2)[real], cu_seqlens

    calls = Calls(fast, ("input_ids", "token_type_ids", "cu_seqlens"), max_seqlen=12, **options)
    traced = torch.jit.trace(calls, packed(make_batch("right", head)))
    for pattern in ("right", "full", "one_row", "no_row_full", "empty_row"):
        batch = make_batch(pattern, head, seed=2)
        expected = flat(reference(*arguments(batch)))
        for value, right in zip(flat(traced(*packed(batch))), expected):
            of_tokens = right.shape[:2] == batch.flat_real.shape
            if not of_tokens and pattern == "empty_row":
                continue  # nothing of a sequence without tokens can be packed, for its pooler to read
            assert_close(pattern, value, right[batch.flat_real] if of_tokens else right)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("place", ["encoder.layer.1", "encoder.layer.1.attention.self", "encoder.layer.0.output.dense"])
def test_a_hook_is_traced(place):
    """A layer with a hook takes transformers' path, in a trace as in a call."""
    models = pair(SEQUENCE, num_hidden_layers=2, **TUPLES)

    def double(module, inputs, output):
        return (output[0] * 2, *output[1:]) if isinstance(output, tuple) else output * 2

    before = models[0](*arguments(make_batch("right")))[0]
    for model in models:
        model.bert.get_submodule(place).register_forward_hook(double)
    assert (models[0](*arguments(make_batch("right")))[0] - before).abs().max() > 1e-2
    traced = torch.jit.trace(models[1], arguments(make_batch("right")))
    assert_serves_other_batches(lambda batch: traced(*arguments(batch)), models[0], SEQUENCE)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.requires_grad_(False),
        lambda model: model.double(),
        lambda model: model.train(),  # the tests' configs drop nothing
        lambda model: (model.bert.embeddings.requires_grad_(False), model.enable_input_require_grads()),
        lambda model: model.gradient_checkpointing_enable(),
        lambda model: setattr(model.bert.encoder.layer[0].intermediate, "intermediate_act_fn", nn.SiLU()),
        lambda model: model.bert.encoder.layer[0].output.dense.register_parameter("bias", None),
    ],
    ids=["frozen", "float64", "training", "frozen_embeddings", "checkpointing", "silu", "no_bias"],
)
def test_traces_whatever_the_models_state(change):
    reference, fast = pair(SEQUENCE, num_hidden_layers=2, **TUPLES)
    for model in (reference, fast):
        change(model)
    traced = torch.jit.trace(fast, arguments(make_batch("right")))
    assert_serves_other_batches(lambda batch: traced(*arguments(batch)), reference, SEQUENCE)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traces_in_eager_attention_and_autocast():
    reference, fast = pair(SEQUENCE, num_hidden_layers=1, attn_implementation="eager", **TUPLES)
    traced = torch.jit.trace(fast, arguments(make_batch("right")))
    assert_serves_other_batches(lambda batch: traced(*arguments(batch)), reference, SEQUENCE)
    reference, fast = pair(TOKEN, num_hidden_layers=1, **TUPLES)
    batch, example = make_batch("left", seed=3), make_batch("right")
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):  # with its cache no model can be traced
        traced = torch.jit.trace(fast, arguments(example))
        expected = reference(*arguments(batch))[0]
        assert_same_value("logits", traced(*arguments(batch))[0], expected, batch.real, tolerance=2e-2)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_saved_trace_needs_pytorch_alone(tmp_path):
    reference, fast = pair(SEQUENCE, num_hidden_layers=1, **TUPLES)
    torch.jit.freeze(torch.jit.trace(fast, arguments(make_batch("right")))).save(tmp_path / "model.pt")
    batch = make_batch("holes", seed=2)
    torch.save(arguments(batch), tmp_path / "batch.pt")
    code = """if True:
        import sys, torch
        logits = torch.jit.load(sys.argv[1])(*torch.load(sys.argv[2]))[0]
        assert "fastbert" not in sys.modules and "transformers" not in sys.modules
        torch.save(logits.detach(), sys.argv[3])
    """
    files = [str(tmp_path / name) for name in ("model.pt", "batch.pt", "logits.pt")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_close("logits", torch.load(files[2]), reference(*arguments(batch))[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_no_trace_can_hold_is_refused():
    _, fast = pair(SEQUENCE, num_hidden_layers=1, **TUPLES)
    example = arguments(make_batch("right"))
    with pytest.raises(RuntimeError, match=r"batch-invariant mode: expected a call, got torch\.jit\.trace"):
        with fastbert.batch_invariant():
            torch.jit.trace(fast, example)
    with pytest.raises(RuntimeError, match=r"'triton' is forced, but torch\.jit\.trace and ONNX record PyTorch's"):
        with fastbert.kernels.use_backend("triton"):
            torch.jit.trace(fast, example)
    quantized = fastbert.quantize(fast, [make_batch("right").inputs()])
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"torch\.jit\.trace and ONNX have no fp8: expected torch\.export"):
        torch.jit.trace(quantized, example)


# ---- exporters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_every_argument_can_be_passed_by_position(head):
    """torch.onnx.export(dynamo=False) passes the default of every argument so, and records those that are numbers."""
    _, fast = pair(head, num_hidden_layers=1, **TUPLES)
    batch = make_batch("right", head)
    parameters = [one for one in inspect.signature(fast.forward).parameters.values() if one.kind is not one.VAR_KEYWORD]
    assert not [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    assert not [one.name for one in parameters if not (one.default is None or isinstance(one.default, (bool, int)))]
    defaults = [one.default for one in parameters[len(NAMES) :]]
    assert [one.name for one in parameters[: len(NAMES)]] == list(NAMES)
    assert_same_value("outputs", fast(*arguments(batch), *defaults), fast(*arguments(batch)), None, tolerance=0.0)


@pytest.fixture
def _quiet_exporters():
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.__trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)


@needs_onnx
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_quiet_exporters")
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_onnx(head, dynamo):
    """One file for any number of sequences of any length, run by ONNX Runtime."""
    import onnxruntime

    reference, fast = pair(head, num_hidden_layers=1, output_hidden_states=head in (MODEL, SEQUENCE), **TUPLES)
    example = arguments(make_batch("right", head))
    model = (
        Calls(fast, NAMES) if "LMHead" in head.name and not dynamo else fast
    )  # logits_to_keep would be an input of the graph
    sizes = ("batch", "choices", "sequence") if head.choices else ("batch", "sequence")
    if dynamo:
        shapes = dict(enumerate(map(torch.export.Dim, sizes)))
        program = torch.onnx.export(
            model, example, dynamo=True, dynamic_shapes=[shapes] * 3, input_names=list(NAMES), verbose=False
        )
        content = program.model_proto.SerializeToString()
    else:
        file = io.BytesIO()
        axes = {name: dict(enumerate(sizes)) for name in NAMES}
        torch.onnx.export(model, example, file, dynamo=False, dynamic_axes=axes, input_names=list(NAMES))
        content = file.getvalue()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(batch):
        return list(map(torch.from_numpy, session.run(None, {k: v.numpy() for k, v in zip(NAMES, arguments(batch))})))

    assert_serves_other_batches(run, reference, head)


@needs_openvino
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", HEADS_AND_DECODER, ids=str)
def test_openvino(head):
    """One model for any number of sequences of any length."""
    import openvino

    reference, fast = pair(head, num_hidden_layers=1, output_hidden_states=head in (MODEL, SEQUENCE), **TUPLES)
    converted = openvino.convert_model(fast, example_input=make_batch("right", head).inputs())
    compiled = openvino.Core().compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})

    def run(batch):
        found = compiled({name: value.numpy() for name, value in batch.inputs().items()})
        return [torch.from_numpy(found[index].copy()) for index in range(len(compiled.outputs))]

    assert_serves_other_batches(run, reference, head)
