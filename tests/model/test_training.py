"""Training as users run it: Trainer, LoRA, gradient checkpointing, dropout, adversarial steps, threads."""

import threading

import pytest
import torch
import transformers
from torch import nn

from fastbert import explain
from fastbert.kernels import functional
from tests.model.parity import (
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
    assert_same_outputs,
    at_real_tokens,
    batch_of,
    config_for,
    gradients,
    labels_for,
    make_batch,
    pair,
    projection,
)

WITH_DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


# ---- Trainer ------------------------------------------------------------------------------------------------------------


class Examples(torch.utils.data.Dataset):
    """Rows of one head's inputs, right padded, in a fixed order."""

    def __init__(self, head, rows: int = 24) -> None:
        lengths = torch.randint(2, 13, (rows,), generator=torch.Generator().manual_seed(1))
        batch = batch_of(torch.arange(12)[None, :] < lengths[:, None], seed=2)
        self.columns = batch.inputs(**labels_for(head, batch))

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, row: int) -> dict:
        return {name: column[row] for name, column in self.columns.items()}


def train(model, head, folder, **options):
    defaults = dict(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        max_steps=3,
        learning_rate=1e-3,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
        dataloader_pin_memory=False,
    )
    arguments = transformers.TrainingArguments(**(defaults | options))
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Examples(head), eval_dataset=Examples(head))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses


@pytest.mark.parametrize("head", [SEQUENCE, MASKED_LM, QUESTION], ids=str)
def test_the_trainer_takes_the_same_steps(head, tmp_path):
    """With accumulation, where the Trainer passes num_items_in_batch and transformers' BERT does not divide by it."""
    results = []
    for model in pair(head):
        trainer, losses = train(model, head, tmp_path, gradient_accumulation_steps=2)
        prediction = trainer.predict(Examples(head))
        results.append((model, losses, trainer.evaluate()["eval_loss"], prediction))
    (reference, expected, expected_eval, expected_prediction), (fast, losses, eval_loss, prediction) = results
    assert len(losses) == 3
    assert losses == pytest.approx(expected, rel=1e-3)
    assert expected[0] != pytest.approx(expected[2], rel=1e-2)
    assert eval_loss == pytest.approx(expected_eval, rel=1e-3)
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in reference.named_parameters()]
    assert type(prediction.predictions) is type(expected_prediction.predictions)
    if head is not QUESTION:
        assert prediction.predictions.shape == expected_prediction.predictions.shape
    assert prediction.metrics.keys() == expected_prediction.metrics.keys()


@pytest.mark.parametrize(
    "options", [{"gradient_checkpointing": True}, {"bf16": True}, {"label_smoothing_factor": 0.2, "optim": "sgd"}], ids=str
)
def test_options_of_the_trainer(options, tmp_path):
    losses = [train(model, SEQUENCE, tmp_path, **options)[1] for model in pair(SEQUENCE)]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2 if "bf16" in options else 1e-3)


def test_the_trainer_saves_resumes_and_loads_the_best(tmp_path):
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
    }
    _, fast = pair(SEQUENCE)
    train(fast, SEQUENCE, tmp_path, **options)
    reloaded = SEQUENCE.reference.from_pretrained(tmp_path / "checkpoint-3")
    batch = make_batch("right")
    assert reloaded(**batch.inputs()).logits.shape == (5, 4)
    _, again = pair(SEQUENCE)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        max_steps=3,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        seed=0,
    )
    trainer = transformers.Trainer(model=again, args=arguments, train_dataset=Examples(SEQUENCE))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_close("resumed", again.eval()(**batch.inputs()).logits, reloaded(**batch.inputs()).logits, 1e-4)


# ---- LoRA ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [SEQUENCE, TOKEN, QUESTION], ids=str)
def test_a_lora_training_step(head):
    from peft import LoraConfig, TaskType, get_peft_model

    task = {SEQUENCE.name: TaskType.SEQ_CLS, TOKEN.name: TaskType.TOKEN_CLS, QUESTION.name: TaskType.QUESTION_ANS}[head.name]
    models = []
    for model in pair(head):
        torch.manual_seed(0)
        models.append(
            get_peft_model(model, LoraConfig(task_type=task, r=4, target_modules=["query", "value"], lora_dropout=0.0))
        )
    reference, fast = models
    assert [(n, p.requires_grad) for n, p in fast.named_parameters()] == [
        (n, p.requires_grad) for n, p in reference.named_parameters()
    ]
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(head, batch))
    optimizers = [torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5) for model in models]
    for step in range(3):
        losses = [model(**inputs).loss for model in models]
        assert_close(f"loss of step {step}", losses[1], losses[0])
        assert_same_gradients(gradients(fast, losses[1]), gradients(reference, losses[0]))
        for optimizer in optimizers:
            optimizer.step()
    assert reference.get_nb_trainable_parameters() == fast.get_nb_trainable_parameters()


@pytest.mark.parametrize("kind", ["prompt", "p_tuning", "prefix", "ia3", "bitfit_by_hand"])
def test_other_adapters(kind):
    """Prompts lengthen the mask beside inputs_embeds; prefixes come as a cache, which an encoder otherwise never sees."""
    import peft

    configs = {
        "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        "p_tuning": lambda: peft.PromptEncoderConfig(task_type="SEQ_CLS", num_virtual_tokens=4, encoder_hidden_size=16),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4),
        "ia3": lambda: peft.IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
        ),
    }
    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(SEQUENCE, batch))
    outputs, grads = [], []
    for model in pair(SEQUENCE):
        torch.manual_seed(0)
        if kind == "bitfit_by_hand":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.endswith("bias"))
        else:
            model = peft.get_peft_model(model, configs[kind]())
        try:
            outputs.append(model.eval()(**inputs))
            grads.append(gradients(model, outputs[-1].loss))
        except Exception as error:  # what transformers cannot do is not asked of us
            outputs.append(type(error))
    if isinstance(outputs[0], type):
        pytest.skip(f"transformers with peft raises {outputs[0].__name__} itself")
    assert_same_outputs(outputs[1], outputs[0], batch.real)
    assert_same_gradients(grads[1], grads[0])


# ---- gradient checkpointing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [{}, WITH_DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("pattern", ["no_mask", "right", "empty_row"])
@pytest.mark.parametrize("head", [PRETRAINING, SEQUENCE, QUESTION, HEADS_AND_DECODER[-1]], ids=str)
def test_gradient_checkpointing(head, pattern, reentrant, dropout):
    """Equal gradients, with dropout too, since the second run draws what the first one drew; each layer checkpointed once."""
    reference, fast = pair(head, **dropout)
    batch = make_batch(pattern, head)
    inputs = batch.inputs(**labels_for(head, batch))
    for model in (reference.train(), fast.train()):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    for layer in fast.bert.encoder.layer:
        checkpoint = layer._gradient_checkpointing_func
        layer._gradient_checkpointing_func = lambda *args, checkpoint=checkpoint: (calls.append(1), checkpoint(*args))[1]
    torch.manual_seed(5)
    loss = fast(**inputs).loss
    assert len(calls) == 3
    checkpointed = {name: None if g is None else g.clone() for name, g in gradients(fast, loss).items()}
    if not dropout:
        assert_same_gradients(checkpointed, gradients(reference, reference(**inputs).loss))
    for layer in fast.bert.encoder.layer:  # what enabling left on the embeddings stays, so that the draws are the same
        layer.gradient_checkpointing = False
    torch.manual_seed(5)
    plain_loss = fast(**inputs).loss
    assert len(calls) == 3
    assert_close("loss", loss, plain_loss)
    assert_same_gradients(checkpointed, gradients(fast, plain_loss))


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_over_a_frozen_base(reentrant):
    """LoRA's usual setting: only the adapters train, and the gradient must still reach them through every layer."""
    from peft import LoraConfig, get_peft_model

    batch = make_batch("right")
    inputs = batch.inputs(**labels_for(SEQUENCE, batch))
    grads = []
    for model in pair(SEQUENCE):
        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules=["query", "value"], lora_dropout=0.0, init_lora_weights=False)
        )
        model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
        grads.append(gradients(model, model(**inputs).loss))
    assert_same_gradients(grads[1], grads[0])
    assert any("layer.0" in name and gradient is not None for name, gradient in grads[1].items())


def test_checkpointing_saves_activations():
    """The layers' inner tensors are not kept: the point of the exercise."""
    _, fast = pair(TOKEN, num_hidden_layers=8)
    batch = make_batch("right")
    fast.train()

    def kept() -> int:
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in fast.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = fast(**batch.inputs(**labels_for(TOKEN, batch)))
        total = sum(size for pointer, size in sizes.items() if pointer not in weights)
        del out
        return total

    plain = kept()
    fast.gradient_checkpointing_enable({"use_reentrant": False})
    assert kept() < plain / 3


# ---- dropout ------------------------------------------------------------------------------------------------------------

DROPOUT_SITES = {
    "hidden": {"hidden_dropout_prob": 0.3},
    "attention": {"attention_probs_dropout_prob": 0.4},
    "both": {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
    "classifier": {"classifier_dropout": 0.5},
    "no_classifier": {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0},
}


@pytest.mark.parametrize("pattern", ["no_mask", "right"])
@pytest.mark.parametrize("site", DROPOUT_SITES)
@pytest.mark.parametrize("head", [TOKEN, SEQUENCE], ids=str)
def test_dropout_has_transformers_mean_and_variance(head, site, pattern):
    """One row repeated many times is a sample of the dropout's distribution: a missing, doubled or shared draw shows in it."""
    repeats = 1200
    reference, fast = pair(head, num_hidden_layers=1, **DROPOUT_SITES[site])
    reference.train(), fast.train()
    real = torch.ones(1, 6, dtype=torch.bool)
    real[:, 4:] = pattern == "no_mask"
    batch = batch_of(real, masked=pattern != "no_mask")
    inputs = {name: value.expand(repeats, -1) for name, value in batch.inputs().items()}
    samples = []
    for model in (reference, fast):
        with torch.no_grad():
            logits = model(**inputs).logits.double()
        samples.append(logits[:, real[0]].flatten(1) if head is TOKEN else logits)
    (expected, actual) = samples
    assert actual.std(0).min() > 1e-3, "no dropout at all"
    assert len({tuple(row) for row in actual.tolist()}) > 100, "rows share a mask"
    standard_error = ((expected.var(0) + actual.var(0)) / repeats).sqrt()
    assert ((actual.mean(0) - expected.mean(0)).abs() / standard_error).max() < 5.5
    ratio = actual.var(0).mean() / expected.var(0).mean()
    assert 0.85 < ratio < 1.18, f"variance {ratio:.3f} times transformers'"


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_dropout_only_while_training_and_by_the_generator(head):
    reference, fast = pair(head, **WITH_DROPOUT)
    batch = make_batch("right", head)
    inputs = batch.inputs()
    assert_same_outputs(fast(**inputs), reference(**inputs), batch.flat_real)
    fast.train()
    torch.manual_seed(1)
    first, second = fast(**inputs), fast(**inputs)
    torch.manual_seed(1)
    again = fast(**inputs)
    assert_same_outputs(again, first, None, tolerance=0.0)
    key = next(iter(first.keys()))
    assert (first[key] - second[key]).abs().max() > 1e-4


def test_one_module_in_eval_keeps_its_dropout_off():
    """model.train() with some parts frozen by .eval(): each module's own flag counts."""
    _, fast = pair(MODEL, **WITH_DROPOUT)
    batch = make_batch("right")
    evaluated = fast(**batch.inputs())
    fast.train()
    for module in fast.modules():
        if isinstance(module, nn.Dropout) or type(module).__name__ == "BertSelfAttention":
            module.eval()
    assert_same_outputs(fast(**batch.inputs()), evaluated, None, tolerance=1e-6)
    fast.encoder.layer[1].output.dropout.train()
    assert (fast(**batch.inputs()).last_hidden_state - evaluated.last_hidden_state).abs().max() > 1e-3


def test_dropout_probabilities_changed_after_construction():
    _, fast = pair(MODEL, **WITH_DROPOUT)
    batch = make_batch("right")
    evaluated = fast(**batch.inputs())
    fast.train()
    for module in fast.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert_same_outputs(fast(**batch.inputs()), evaluated, None, tolerance=1e-6)
    fast.embeddings.dropout.p = 1.0
    dropped = fast(**batch.inputs(), output_hidden_states=True)
    assert dropped.hidden_states[0].abs().max() == 0


def test_monte_carlo_dropout_in_an_eval_model():
    """Only the Dropout modules in training mode, the rest in eval: the usual recipe for uncertainty."""
    _, fast = pair(SEQUENCE, **WITH_DROPOUT)
    for module in fast.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    batch = make_batch("right")
    first, second = fast(**batch.inputs()).logits, fast(**batch.inputs()).logits
    assert (first - second).abs().max() > 1e-3


def test_gradients_through_dropout_are_those_of_the_drawn_mask():
    """A finite difference under a fixed seed, in float64."""
    _, fast = pair(MODEL, dtype=torch.float64, num_hidden_layers=1, **WITH_DROPOUT)
    fast.train()
    batch = make_batch("right")
    embeds = torch.randn(5, 12, 48, dtype=torch.float64)
    direction = torch.randn_like(embeds)

    def value(step: float):
        torch.manual_seed(3)
        out = fast(inputs_embeds=embeds + step * direction, attention_mask=batch.mask)
        return projection(out, batch.real)

    leaf = embeds.clone().requires_grad_()
    torch.manual_seed(3)
    (gradient,) = torch.autograd.grad(projection(fast(inputs_embeds=leaf, attention_mask=batch.mask), batch.real), leaf)
    numeric = (value(1e-5) - value(-1e-5)) / 2e-5
    assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-6)


# ---- other loops --------------------------------------------------------------------------------------------------------


def test_adversarial_perturbation_of_the_word_embeddings():
    """FGM: perturb the embedding table by its gradient, run again, restore."""
    grads = []
    for model in pair(SEQUENCE):
        batch = make_batch("right")
        inputs = batch.inputs(**labels_for(SEQUENCE, batch))
        model(**inputs).loss.backward()
        table = model.bert.embeddings.word_embeddings.weight
        backup = table.data.clone()
        table.data.add_(0.5 * table.grad / table.grad.norm())
        model(**inputs).loss.backward()
        table.data = backup
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert_same_gradients(grads[1], grads[0])


def test_sharpness_aware_steps_between_forward_and_backward_are_caught():
    """A weight changed between forward and backward is an error in PyTorch, not a wrong gradient."""
    for model in pair(SEQUENCE):
        batch = make_batch("right")
        loss = model(**batch.inputs(**labels_for(SEQUENCE, batch))).loss
        with torch.no_grad():
            model.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_backward_twice_through_a_kept_graph():
    _, fast = pair(SEQUENCE)
    batch = make_batch("right")
    loss = fast(**batch.inputs(**labels_for(SEQUENCE, batch))).loss
    first = torch.autograd.grad(loss, list(fast.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(fast.parameters()))
    for a, b in zip(first, second):
        assert torch.equal(a, b)


def test_per_sample_gradients():
    """torch.func over one row at a time, as differential privacy needs them."""
    reference, fast = pair(SEQUENCE)
    batch = make_batch("right")
    labels = labels_for(SEQUENCE, batch)["labels"]
    results = []
    for model in (reference, fast):
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def loss(weights, row, model=model):
            inputs = {name: value[row : row + 1] for name, value in batch.inputs(labels=labels).items()}
            return torch.func.functional_call(model, weights, (), inputs).loss

        results.append([torch.func.grad(loss)(weights, row) for row in range(2)])
    for reference_row, fast_row in zip(*results):
        assert_same_gradients(fast_row, reference_row)


def test_a_parallel_wrapper_keeps_its_outputs():
    reference, fast = pair(SEQUENCE)
    batch = make_batch("right")
    for model in (reference, fast):
        nn.DataParallel(model)
    assert_same_outputs(nn.DataParallel(fast)(**batch.inputs()), nn.DataParallel(reference)(**batch.inputs()), batch.real)


def test_distributed_data_parallel(tmp_path):
    """One process: the hooks and the search for unused parameters work as for transformers."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        results = []
        for model in pair(MASKED_LM):
            wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
            batch = make_batch("right")
            loss = wrapped(**batch.inputs(**labels_for(MASKED_LM, batch))).loss
            results.append(gradients(model, loss))
        assert_same_gradients(results[1], results[0])
    finally:
        torch.distributed.destroy_process_group()


def test_fully_sharded_data_parallel(tmp_path, monkeypatch):
    """FSDP2 over one process: its hooks gather the weights around each call of a layer, which must stay a call."""
    fused = []
    for name in ("qkv_linear", "embedding"):
        original = getattr(functional, name)
        monkeypatch.setattr(functional, name, lambda *args, f=original, n=name, **kwargs: fused.append(n) or f(*args, **kwargs))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        batch = make_batch("right")
        results = []
        for model in pair(SEQUENCE):
            for layer in model.bert.encoder.layer:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            loss = model(**batch.inputs(**labels_for(SEQUENCE, batch))).loss
            grads = gradients(model, loss)
            results.append((loss, {name: gradient.full_tensor() for name, gradient in grads.items()}))
        assert_close("loss", results[1][0], results[0][0])
        assert_same_gradients(results[1][1], results[0][1])
        assert fused == ["embedding", *["qkv_linear"] * len(model.bert.encoder.layer)]
        assert "DTensor" not in str(explain(model))
    finally:
        torch.distributed.destroy_process_group()


def test_two_threads_at_once():
    """Two threads of one server share a model; each gets its own answer, also while one collects hidden states."""
    _, fast = pair(TOKEN)
    batches = [make_batch("right"), make_batch("holes", seed=4)]
    options = [{}, {"output_hidden_states": True}]
    expected = [fast(**batch.inputs(), **option) for batch, option in zip(batches, options)]
    failures, start = [], threading.Barrier(2)

    def work(index):
        start.wait()
        try:
            for _ in range(25):
                with torch.no_grad():
                    out = fast(**batches[index].inputs(), **options[index])
                assert_same_outputs(out, expected[index], None, tolerance=1e-6)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_a_fresh_config_has_dropout_on_in_training():
    """transformers' default config drops 10%: the classes must not lose it on the way."""
    config = config_for(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.0)
    model = MODEL.fast(config).train()
    batch = make_batch("no_mask")
    first, second = model(**batch.inputs()).last_hidden_state, model(**batch.inputs()).last_hidden_state
    assert at_real_tokens(first - second, batch.real).abs().max() > 1e-3
