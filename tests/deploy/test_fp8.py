"""`quantize`: fp8 in the model, emulated on a CPU, on the kernels in the interpreter; what it refuses; what it leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

import fastbert
from fastbert.deploy.fp8_layer import PRODUCTS, Fp8BertLayer
from fastbert.deploy.gptq import Moments, round_weight
from fastbert.kernels import fp8, use_backend
from fastbert.kernels.fp8_format import E4M3
from fastbert.model.layer import BertLayer

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
if fp8.unsupported_reason(DEVICE):
    pytest.skip(fp8.unsupported_reason(DEVICE), allow_module_level=True)


def make(name="BertModel", layers=2, **changes):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{
            "vocab_size": 90,
            "hidden_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 200,
            "num_labels": 4,
            "initializer_range": 0.1,
            **changes,
        }
    )
    return getattr(fastbert, name)(config).eval().to(DEVICE)


def batches(count, rows=6, seqlen=20, seed=1):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        lengths = torch.randint(2, seqlen + 1, (rows,), generator=g)
        ids = torch.randint(5, 90, (rows, seqlen), generator=g)
        mask = (torch.arange(seqlen) < lengths[:, None]).long()
        yield {"input_ids": ids.to(DEVICE), "attention_mask": mask.to(DEVICE)}


@torch.no_grad()
def states(model, batch):
    out = model(**batch)[0]
    return out[batch["attention_mask"].bool()] if out.dim() == 3 else out


def sequence_means(found, batch):
    return torch.stack([one.mean(0) for one in found.split(batch["attention_mask"].sum(1).tolist())])


def damage(model, exact, batch):
    return 1.0 - F.cosine_similarity(states(model, batch), exact).mean().item()


def test_close_but_not_equal_and_back_to_the_bit():
    model, (batch,) = make(), batches(1)
    exact = states(model, batch)
    keys = list(model.state_dict())
    assert fastbert.quantize(model) is model
    assert 1e-6 < damage(model, exact, batch) < 5e-3
    assert list(model.state_dict()) == keys
    assert fastbert.dequantize(model) is model
    assert torch.equal(states(model, batch), exact)
    assert all(type(layer) is BertLayer for layer in model.encoder.layer)
    assert [name for name, _ in model.named_modules() if "fp8" in name] == []


def test_a_layer_is_its_products_and_norms_one_by_one():
    """Passing quantised states from layer to layer changes nothing: written out, it gives the same numbers."""
    model, (batch,) = make(layers=2), batches(1)
    fastbert.quantize(model)
    keep = batch["attention_mask"].bool()
    with torch.no_grad(), use_backend("torch"):
        got = model(**batch)[0][keep]
        x = model.embeddings(batch["input_ids"])[keep]
        cu_seqlens = F.pad(keep.sum(1).cumsum(0), (1, 0)).int()
        for layer in model.encoder.layer:
            w, attention = layer.fp8, layer.attention
            qkv = fp8.linear(*fp8.quantize_ref(x), w["qkv"].q, w["qkv"].scale, w["qkv"].bias, out_dtype=x.dtype)
            context = fastbert.kernels.functional.attention(qkv.view(-1, 3, 2, 32), cu_seqlens, 20).flatten(1)
            y = fp8.linear(*fp8.quantize_ref(context), w["attention"].q, w["attention"].scale, None, out_dtype=x.dtype)
            x = attention.output.LayerNorm(y + attention.output.dense.bias + x)
            h = fp8.linear_activation(
                *fp8.quantize_ref(x),
                w["intermediate"].q,
                w["intermediate"].scale,
                layer.intermediate.dense.bias,
                activation="gelu_erf",
            )
            y = fp8.linear(*h, w["output"].q, w["output"].scale, None, out_dtype=x.dtype)
            x = layer.output.LayerNorm(y + layer.output.dense.bias + x)
    # A number beside a tie may round the other way after another order of sums: a step of the format in one element.
    torch.testing.assert_close(got, x, rtol=0, atol=2e-2)
    assert (got - x).abs().mean() < 1e-4


@pytest.mark.usefixtures("triton_device")
def test_the_kernels_give_what_the_emulation_gives():
    model, (batch,) = make(layers=2), batches(1, rows=3, seqlen=9)
    fastbert.quantize(model)
    with use_backend("torch"):
        emulated = states(model, batch)
    with use_backend("triton"):
        fast = states(model, batch)
    assert (fast - emulated).abs().mean() < 1e-4
    torch.testing.assert_close(fast, emulated, rtol=0, atol=2e-2)


def test_calibration_loses_less_on_other_text():
    model, (batch,) = make(), batches(1, seed=7)
    exact = states(model, batch)
    nearest = damage(fastbert.quantize(model), exact, batch)
    calibrated = damage(fastbert.quantize(model, batches(12)), exact, batch)
    assert calibrated < 0.9 * nearest, (calibrated, nearest)


def test_rounding_by_moments_beats_the_nearest_on_its_inputs():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=g) @ torch.randn(8, 150, generator=g) + 0.1 * torch.randn(400, 150, generator=g)
    weight = torch.randn(30, 150, generator=g)
    moments = Moments()
    for part in x.split(150):
        moments.add(part)
    rounded, plain = (fp8.dequantize(*found) for found in (round_weight(weight, moments), fp8.quantize_ref(weight)))
    error, plain_error = ((x @ (w - weight).T).norm() for w in (rounded, plain))
    assert error < 0.3 * plain_error
    assert torch.equal(fp8.dequantize(*fp8.quantize_ref(plain)), plain), "fp8 numbers of a scale are rounded to themselves"
    with pytest.raises(ValueError, match="expected finite inputs"):
        round_weight(weight, Moments())


def test_keeping_what_costs_most_reaches_the_cosine():
    model, (batch,) = make(layers=3), batches(1)
    exact = states(model, batch)
    fastbert.quantize(model, batches(8))
    assert all(len(layer.fp8) == len(PRODUCTS) for layer in model.encoder.layer)
    exact = sequence_means(exact, batch)

    def damage_of_means():
        return 1.0 - F.cosine_similarity(sequence_means(states(model, batch), batch), exact).mean().item()

    whole = damage_of_means()
    fastbert.quantize(model, batches(8), cosine=1 - whole / 4)
    kept = [name for layer in model.encoder.layer for name in layer.fp8_kept]
    assert 0 < len(kept) < 3 * len(PRODUCTS)
    assert damage_of_means() < whole / 2
    assert "off the cosine" in str(fastbert.explain(model))


@pytest.mark.parametrize("product", PRODUCTS)
def test_any_product_alone_and_any_but_one(product):
    model, (batch,) = make(), batches(1)
    exact = states(model, batch)
    others = [name for name in PRODUCTS if name != product]
    alone = damage(fastbert.quantize(model, keep=others), exact, batch)
    assert 1e-8 < alone
    assert list(model.encoder.layer[0].fp8) == [product]
    rest = damage(fastbert.quantize(model, keep=[product]), exact, batch)
    assert max(alone, rest) < 5e-3
    assert product in model.encoder.layer[1].fp8_kept


def test_keep_by_layer_and_by_name_and_nothing_left():
    model, (batch,) = make(), batches(1)
    exact = states(model, batch)
    fastbert.quantize(model, keep=["0", "1.intermediate"])
    assert [sorted(layer.fp8) for layer in model.encoder.layer] == [[], ["attention", "output", "qkv"]]
    fastbert.quantize(model, keep=["0", "1"])
    torch.testing.assert_close(states(model, batch), exact, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"got '2', 'ffn'"):
        fastbert.quantize(model, keep=["2", "ffn", "0.qkv"])


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification", "BertLMHeadModel"])
def test_heads_and_accelerated_models(name):
    fast, (batch,) = make(name, is_decoder=name == "BertLMHeadModel", use_cache=False), batches(1)
    reference = getattr(transformers, name)(fast.config).eval().to(DEVICE)
    reference.load_state_dict(fast.state_dict())
    fastbert.quantize(fast)
    fastbert.quantize(fastbert.accelerate(reference))
    exact = states(fast, batch)
    assert torch.equal(states(reference, batch), exact)
    fastbert.restore(reference)
    assert not any(isinstance(module, BertLayer) for module in reference.modules())
    assert damage(reference, exact, batch) < 2e-2


def test_moves_copies_and_casts_with_the_model():
    model, (batch,) = make(), batches(1)
    fastbert.quantize(model, batches(2))
    exact = states(model, batch)
    assert torch.equal(states(copy.deepcopy(model), batch), exact)
    half = copy.deepcopy(model).bfloat16()
    q = half.encoder.layer[0].fp8["qkv"]
    assert q.q.dtype == E4M3
    assert q.scale.dtype == torch.float32
    assert q.bias.dtype == torch.bfloat16
    assert damage(half, exact, batch) < 1e-3


def test_packed_calls_and_hidden_states():
    model, (batch,) = make(), batches(1)
    fastbert.quantize(model)
    keep = batch["attention_mask"].bool()
    cu_seqlens = F.pad(keep.sum(1).cumsum(0), (1, 0)).int()
    with torch.no_grad():
        packed = model(batch["input_ids"][keep], cu_seqlens=cu_seqlens, max_seqlen=20)[0]
        recorded = model(**batch, output_hidden_states=True)
    assert torch.equal(packed, states(model, batch))
    assert torch.equal(recorded.hidden_states[-1][keep], packed), "states that are returned are passed on quantised as well"


def test_explain_says_what_is_in_fp8():
    text = str(fastbert.explain(fastbert.quantize(make(), keep=["attention"])))
    assert text.count(", fp8") == 3
    assert "not in fp8: kept on request" in text


def test_transformers_path_runs_on_the_original_weights():
    model, (batch,) = make(), batches(1)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        exact = model(**batch, output_attentions=True)
        fastbert.quantize(model)
        with pytest.warns(UserWarning, match="original weights"):
            got = model(**batch, output_attentions=True)
    assert torch.equal(exact.last_hidden_state, got.last_hidden_state)
    assert "transformers: output_attentions" in str(fastbert.explain(model))


def test_refuses_what_it_cannot_do_right():
    model, (batch,) = make(), batches(1)
    with pytest.raises(TypeError, match="fastbert's classes"):
        fastbert.quantize(transformers.BertModel(model.config))
    with pytest.raises(RuntimeError, match="eval mode"):
        fastbert.quantize(make().train())
    with pytest.raises(ValueError, match="together with calibration"):
        fastbert.quantize(model, cosine=0.99)
    with pytest.raises(ValueError, match="calibration batches"):
        fastbert.quantize(model, [])
    relu6 = make(hidden_act="relu6")
    with pytest.raises(RuntimeError, match="layer 0 as transformers builds it"):
        fastbert.quantize(relu6)
    assert not any(isinstance(layer, Fp8BertLayer) for layer in relu6.encoder.layer)

    fastbert.quantize(model)
    with pytest.raises(RuntimeError, match="no gradients"):
        model(**batch)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match=r"outside torch\.autocast"),
        torch.autocast(DEVICE.type, torch.bfloat16),
    ):
        model(**batch)
    with torch.no_grad(), pytest.raises(RuntimeError, match="for inference"):
        model.train()(**batch)
    model.eval()
    handle = model.encoder.layer[1].output.dense.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="original weights"):
        states(model, batch)
    handle.remove()
    adapted = copy.deepcopy(model)
    norm = adapted.encoder.layer[0].output.LayerNorm
    adapted.encoder.layer[0].output.LayerNorm = torch.nn.LayerNorm(64, bias=False).to(norm.weight)
    with pytest.raises(RuntimeError, match="whole or not at all, but LayerNorm without weight or bias"):
        states(adapted, batch)
    states(model, batch)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="changed since"):
        states(model, batch)


def test_invariant_mode():
    model, (batch,) = make(), batches(1)
    fastbert.quantize(model)
    with torch.no_grad(), fastbert.batch_invariant():
        together = model(**batch)[0]
        length = int(batch["attention_mask"][2].sum())
        alone = model(batch["input_ids"][2:3, :length])[0]
    assert torch.equal(together[2, :length], alone[0])


def test_traces_without_a_break():
    model, (batch,) = make(layers=1), batches(1)
    fastbert.quantize(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    exact = states(model, batch)
    torch.testing.assert_close(states(compiled, batch), exact, rtol=0, atol=2e-2)
