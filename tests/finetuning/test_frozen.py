"""Feature extraction: the encoder's features are right and computed once, and only what is new is trained."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import fastbert
from fastbert.cli.finetuning import finetune as command
from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.model import load_model
from fastbert.finetuning.options import Options, Setting
from fastbert.finetuning.run import finetune
from fastbert.finetuning.task_types import load_task
from fastbert.model.variants import frozen as frozen_module
from fastbert.model.variants import frozen_features
from fastbert.model.variants.frozen import FrozenModel, load_frozen
from fastbert.model.variants.frozen_features import FeatureCache
from fastbert.model.variants.frozen_heads import LAYERS, Frozen, FrozenHead, Shape, pool
from fastbert.tasks.features import Feature, predict
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from tests.finetuning.small_tasks import TINY, WORDS, write_checkpoint, write_files

FAST = Setting(batch_size=8, learning_rate=2e-2, epochs=8, dropout=0.0)
HIDDEN = TINY["hidden_size"]


@pytest.fixture(scope="module")
def deep(tmp_path_factory) -> str:
    """Five layers, so that the last four are not all. Trained heads find the words of a text in its features."""
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=5))


@pytest.fixture(scope="module")
def encoder(deep):
    return fastbert.BertModel.from_pretrained(deep, dtype=torch.float32).eval()


def options_of(kind, tmp_path, checkpoint, frozen, setting=FAST, count=64, **values) -> Options:
    train, evaluation = write_files(tmp_path / "files", kind, count)
    name = {"regression": "pair", "qa2": "qa"}.get(kind, kind)
    data = DataOptions(train, evaluation, max_length=32)
    return Options(name, checkpoint, data, tmp_path / "out", setting, frozen=frozen, **values)


def features_of(*lengths: int) -> list[Feature]:
    generator = np.random.default_rng(0)
    return [
        Feature(((generator.integers(5, 5 + len(WORDS), length, np.int32), np.arange(length, dtype=np.int32) % 2),))
        for length in lengths
    ]


def shape_of(layers, task_class="BertForTokenClassification", count=5, **options) -> Shape:
    config = transformers.BertConfig(**{**TINY, "num_hidden_layers": count})
    return Shape.of(Frozen(layers, **options), task_class, config, {"num_labels": 3})


# Features


@pytest.mark.parametrize("pooling", [None, "mean", "cls"])
@pytest.mark.parametrize("layers", LAYERS)
def test_features_are_the_hidden_states_of_transformers_without_padding(layers, pooling, deep, encoder, tmp_path):
    task_class = "BertForSequenceClassification" if pooling else "BertForTokenClassification"
    shape = shape_of(layers, task_class, pooling=pooling)
    features = features_of(7, 3, 12, 1, 30)
    reference = transformers.BertModel.from_pretrained(deep).eval()
    wanted_states = {
        "embeddings": [0],
        "second-to-last": [4],
        "last": [5],
        "weighted-sum-last-four": [2, 3, 4, 5],
        "concat-last-four": [2, 3, 4, 5],
        "weighted-sum-all": [1, 2, 3, 4, 5],
    }[layers]
    with FeatureCache(encoder, shape, features, tmp_path / "cache") as cache:
        for number, feature in enumerate(features):
            found = cache.collate([number])["features"]
            ((ids, types),) = feature.sequences
            batch = {"input_ids": torch.tensor(ids[None]).long(), "token_type_ids": torch.tensor(types[None]).long()}
            with torch.no_grad():
                states = reference(**batch, output_hidden_states=True).hidden_states
            expected = torch.stack([states[one][0] for one in wanted_states], 1)
            if pooling == "cls":
                expected = expected[:1]
            elif pooling == "mean":
                expected = expected.mean(0, keepdim=True)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert (tmp_path / "cache").stat().st_size == cache.nbytes
        several = cache.collate([2, 0])
        assert several["cu_seqlens"].tolist() == [0, 12, 19]
        assert torch.equal(several["features"], torch.cat([cache.collate([one])["features"] for one in (2, 0)]))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("layers", LAYERS)
def test_the_six_choices_by_hand(layers):
    shape = shape_of(layers)
    head = FrozenHead(shape)
    features = torch.randn(6, len(shape.states), HIDDEN)
    mixed = head.mix(features)
    if layers == "concat-last-four":
        assert mixed.shape == (6, 4 * HIDDEN)
        assert torch.equal(mixed[2], torch.cat([features[2, state] for state in range(4)]))
    elif layers.startswith("weighted-sum"):
        count = 4 if layers.endswith("four") else 5
        assert mixed.shape == (6, HIDDEN)
        torch.testing.assert_close(mixed, features.sum(1) / count)
        with torch.no_grad():
            head.layer_weights.copy_(torch.arange(float(count)))
            head.scale.fill_(3.0)
        shares = np.exp(np.arange(count)) / np.exp(np.arange(count)).sum()
        by_hand = 3.0 * sum(share * features[:, state] for state, share in enumerate(shares.tolist()))
        torch.testing.assert_close(head.mix(features), by_hand)
    else:
        assert mixed.shape == (6, HIDDEN)
        assert torch.equal(mixed, features[:, 0])


def test_bits_of_bfloat16_are_kept(encoder, tmp_path):
    features = features_of(7, 3, 12)
    shape = shape_of("weighted-sum-all")
    with (
        FeatureCache(encoder, shape, features, tmp_path / "a") as exact,
        FeatureCache(encoder, shape, features, tmp_path / "b", torch.bfloat16) as short,
    ):
        wanted, found = (cache.collate([1, 2])["features"] for cache in (exact, short))
        assert found.dtype == torch.bfloat16
        assert short.nbytes == exact.nbytes // 2
        assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_pooling_by_hand():
    x, bounds = torch.arange(10.0).view(5, 2), torch.tensor([0, 2, 5], dtype=torch.int32)
    assert pool(x, bounds, "cls").tolist() == [[0, 1], [4, 5]]
    assert pool(x, bounds, "mean").tolist() == [[1, 2], [6, 7]]


# Heads


def test_a_bilstm_reads_each_sequence_alone():
    head = FrozenHead(shape_of("last", head="bilstm", lstm_size=7)).eval()
    assert head.lstm.num_layers == 2
    assert head.lstm.bidirectional
    assert head.classifier.in_features == 14
    features = torch.randn(9, 1, HIDDEN)
    together = head(features, torch.tensor([0, 2, 9], dtype=torch.int32))["logits"]
    apart = [head(part, torch.tensor([0, len(part)], dtype=torch.int32))["logits"] for part in features.split([2, 7])]
    assert together.shape == (9, 3)
    torch.testing.assert_close(together, torch.cat(apart))
    changed = features.clone()
    changed[8] += 1.0  # the last token is seen by the third, not by the other sequence
    other = head(changed, torch.tensor([0, 2, 9], dtype=torch.int32))["logits"]
    assert torch.equal(other[:2], together[:2])
    assert not torch.equal(other[2], together[2])
    assert FrozenHead(shape_of("concat-last-four", head="bilstm")).lstm.input_size == 4 * HIDDEN
    assert FrozenHead(shape_of("last", head="bilstm")).lstm.hidden_size == HIDDEN


@pytest.mark.parametrize("head", ["linear", "bilstm"])
def test_losses_are_those_of_transformers_heads(head):
    bounds = torch.tensor([0, 2, 9], dtype=torch.int32)
    features = torch.randn(9, 1, HIDDEN)
    spans = FrozenHead(shape_of("last", "BertForQuestionAnswering", head=head)).eval()
    found = spans(features, bounds, start_positions=torch.tensor([1, 4]), end_positions=torch.tensor([1, 6]))
    parts = found["logits"].split([2, 7])
    log = [part.log_softmax(0) for part in parts]
    by_hand = -(log[0][1, 0] + log[1][4, 0] + log[0][1, 1] + log[1][6, 1]) / 4
    torch.testing.assert_close(found["loss"], by_hand)
    tokens = FrozenHead(shape_of("last", head=head)).eval()
    found = tokens(features, bounds, labels=torch.tensor([-100, 1, 2, -100, 0, 1, -100, -100, -100]))
    log = found["logits"].log_softmax(-1)
    torch.testing.assert_close(found["loss"], -(log[1, 1] + log[2, 2] + log[4, 0] + log[5, 1]) / 4)


@pytest.mark.parametrize(
    ("frozen", "task_class", "layers", "message"),
    [
        (Frozen("first"), "BertForTokenClassification", 5, "expected --frozen among embeddings, .*, got 'first'"),
        (Frozen("last", "gru"), "BertForTokenClassification", 5, "expected --head among linear, bilstm, got 'gru'"),
        (Frozen("last", pooling="cls"), "BertForQuestionAnswering", 5, "expected no --pooling where each token is"),
        (Frozen("last", pooling="max"), "BertForMultipleChoice", 5, "expected --pooling among mean, cls, got 'max'"),
        (Frozen("last", lstm_size=4), "BertForTokenClassification", 5, "expected --lstm-size beside --head bilstm, got 4"),
        (Frozen("concat-last-four"), "BertForTokenClassification", 3, "a model of at least 4 layers for concat.*, got 3"),
    ],
)
def test_what_does_not_fit_is_refused(frozen, task_class, layers, message):
    config = transformers.BertConfig(**{**TINY, "num_hidden_layers": layers})
    with pytest.raises(InputError, match=message):
        Shape.of(frozen, task_class, config, {"num_labels": 3})


# Training


@pytest.mark.parametrize(
    ("kind", "frozen", "least"),
    [
        ("classify", Frozen("weighted-sum-all"), 0.9),
        ("classify", Frozen("embeddings", "bilstm", lstm_size=16), 0.9),
        ("pair", Frozen("embeddings", "bilstm", "cls", 32), 0.9),
        ("regression", Frozen("concat-last-four", pooling="mean"), 0.9),
        ("choice", Frozen("embeddings", "bilstm", lstm_size=32), 0.9),
        ("tag", Frozen("second-to-last"), 0.9),
        ("tag", Frozen("weighted-sum-last-four", "bilstm"), 0.9),
        ("qa2", Frozen("embeddings", "bilstm", lstm_size=16), 80.0),
    ],
)
def test_every_task_learns_while_the_encoder_stays_bit_for_bit(kind, frozen, least, tmp_path, deep, encoder, console):
    epochs = 20 if kind in ("pair", "choice") else 10
    setting = Setting(batch_size=8, learning_rate=1e-2 if frozen.head == "bilstm" else 5e-2, epochs=epochs, dropout=0.0)
    options = options_of(kind, tmp_path, deep, frozen, setting)
    report = finetune(options, console)
    assert report["score"] >= least, report["metrics"]
    assert report["frozen"]["layers"] == frozen.layers
    assert f"{report['frozen']['cache_bytes']:,} bytes of disk in {options.out / '.features'}" in console.file.getvalue()
    assert not any(file.name.startswith(".") for file in options.out.iterdir())

    model = load_frozen(options.out)
    assert sorted(report["new_parameters"]) == sorted(model.head.state_dict())
    before = encoder.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    # the folder alone, on token ids, gives what was scored on cached features
    task = load_task(options.task, options.data, open_checkpoint(str(options.out)))
    assert task.score(predict(model, task.evaluation)) == pytest.approx(report["metrics"])
    assert model.config.fastbert_task["task"] == options.task
    assert fastbert.BertModel.from_pretrained(options.out) is not None


def test_all_that_is_new_changes_and_nothing_else(tmp_path, deep, console, monkeypatch):
    built = []

    class Watched(FrozenHead):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            built.append((self, {name: value.clone() for name, value in self.state_dict().items()}))

    saved = []
    real = frozen_module.save_frozen
    monkeypatch.setattr("fastbert.finetuning.frozen_method.FrozenHead", Watched)
    monkeypatch.setattr(
        "fastbert.finetuning.frozen_method.save_frozen", lambda model, folder: (saved.append(model), real(model, folder))
    )
    finetune(options_of("tag", tmp_path, deep, Frozen("weighted-sum-all", "bilstm", lstm_size=4), FAST, 16), console)
    head, begin = built[-1]  # one before it was for its size
    assert {"layer_weights", "scale", "classifier.weight", "lstm.weight_hh_l1_reverse"} <= set(begin)
    assert not [name for name, value in head.state_dict().items() if torch.equal(value, begin[name])]
    model = saved[-1]  # of the best epoch
    assert model.head is head
    assert not model.encoder.training
    assert all(value.grad is None and not value.requires_grad for value in model.encoder.parameters())


def test_runs_share_the_features_which_are_computed_once(tmp_path, deep, console, monkeypatch):
    calls = []
    real = frozen_features.encode
    monkeypatch.setattr(frozen_features, "encode", lambda *arguments: (calls.append(arguments[2]), real(*arguments))[1])
    options = options_of("classify", tmp_path, deep, Frozen("last"), seeds=2, count=32)
    report = finetune(options, console)
    sequences = sum(len(batch["cu_seqlens"]) - 1 for batch in calls)
    assert sequences == 32 + 16
    assert len(report["settings"][0]["scores"]) == 2
    assert len(list((options.out / "runs").glob("*/report.json"))) == 2
    calls.clear()
    assert finetune(options, console, resume=True) == report
    assert not calls


def test_an_interrupted_training_leaves_no_features_and_is_resumed(tmp_path, deep, console, monkeypatch):
    setting = Setting(batch_size=8, learning_rate=1e-2, epochs=2)
    options = options_of("classify", tmp_path / "cut", deep, Frozen("last"), setting, 16, seeds=2)
    real, started = FeatureCache.predict, []

    def stopped(self, *arguments):
        started.append(self.file.exists())
        if len(started) == 4:  # in the second run
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(FeatureCache, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        finetune(options, console)
    assert all(started)
    assert not (options.out / ".features").exists()
    found = finetune(options, console, resume=True)
    assert "seed0: finished before" in console.file.getvalue()
    whole = options_of("classify", tmp_path / "whole", deep, Frozen("last"), setting, 16, seeds=2)
    assert found["settings"] == finetune(whole, console)["settings"]


@pytest.mark.parametrize(("kind", "auto"), [("tag", "TokenClassification"), ("qa", "QuestionAnswering")])
def test_a_linear_head_on_the_last_layer_is_that_of_transformers(kind, auto, tmp_path, deep, encoder, console):
    options = options_of(kind, tmp_path, deep, Frozen("last"), Setting(batch_size=8, learning_rate=5e-2, epochs=3))
    report = finetune(options, console)
    assert not (options.out / "frozen.json").exists()
    checkpoint = open_checkpoint(str(options.out))
    assert checkpoint.class_name == f"BertFor{auto}"
    reference = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(options.out)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in reference.bert.state_dict().items())
    task = load_task(options.task, options.data, checkpoint)
    model, new = load_model(checkpoint, task.head, task.settings)
    assert new == []
    assert task.score(predict(model, task.evaluation)) == pytest.approx(report["metrics"])


def test_no_room_on_the_disk_is_an_error_before_anything_is_written(tmp_path, deep, console, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    options = options_of("tag", tmp_path, deep, Frozen("last"))
    with pytest.raises(InputError, match=r"expected [\d,]+ bytes of disk for the features, got 1,000 free in"):
        finetune(options, console)
    assert not options.out.exists()


def test_a_pooler_of_the_last_token_is_refused(tmp_path, console):
    causal = write_checkpoint(tmp_path / "causal", class_name="BertLMHeadModel", is_decoder=True)
    options = options_of("classify", tmp_path, str(causal), Frozen("last"))
    with pytest.raises(InputError, match="expected a BertModel under BertForSequenceClassification for --frozen, got LeftTo"):
        finetune(options, console)
    assert not options.out.exists()


# Use


def test_the_commands_run_the_folder(tmp_path, deep, console):
    options = options_of("classify", tmp_path / "a", deep, Frozen("weighted-sum-all"), Setting(8, 5e-2, 10, dropout=0.0))
    finetune(options, console)
    found = fastbert.classify(["red dog runs", "a blue cat"], options.out)
    assert [one[0]["label"] for one in found] == ["red", "blue"]
    options = options_of("tag", tmp_path / "b", deep, Frozen("concat-last-four"), Setting(8, 2e-2, 10, dropout=0.0))
    finetune(options, console)
    entities = fastbert.tag("anna in rome rome dog", options.out)["entities"]
    assert [(one["entity_group"], one["word"]) for one in entities] == [("PER", "anna"), ("LOC", "rome rome")]
    with pytest.raises(InputError, match="expected a head of BertForSequenceClassification, got one of BertForTokenCl"):
        fastbert.classify("red dog", options.out)
    tokenizer = open_checkpoint(str(options.out)).tokenizer
    assert fastbert.tag("anna in rome rome dog", (load_frozen(options.out), tokenizer))["entities"] == entities
    assert len(fastbert.embed("red dog", options.out)) == HIDDEN


def test_a_damaged_folder_is_named(tmp_path, deep, console):
    options = options_of("tag", tmp_path, deep, Frozen("weighted-sum-all"), Setting(8, 1e-2, 1), 16)
    finetune(options, console)
    assert isinstance(load_frozen(options.out), FrozenModel)
    file = options.out / "frozen.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "outputs": 9}))
    with pytest.raises(InputError, match=r"expected the weights of .*frozen.json in .*head.safetensors, got"):
        load_frozen(options.out)
    file.write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(InputError, match=r"expected what fastbert wrote, of format 1, in .*frozen.json, got: format 2"):
        load_frozen(options.out)
    with pytest.raises(InputError, match=r"expected frozen.json in .*models.*, got none"):
        load_frozen(deep)


def test_the_command(tmp_path, deep):
    import typer

    app = typer.Typer()
    app.command()(command)
    train, evaluation = write_files(tmp_path, "classify", 16)
    arguments = ["classify", "--model", deep, "--train", train, "--eval", evaluation, "--out", tmp_path / "out"]
    arguments = [*map(str, arguments), "--epochs", "1"]
    done = CliRunner().invoke(app, [*arguments, "--frozen", "weighted-sum-all", "--head", "bilstm", "--lstm-size", "8"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["setting"]["learning_rate"] == 1e-3
    assert report["frozen"]["lstm_size"] == 8
    assert "bytes of disk" in done.output
    refused = CliRunner().invoke(app, [*arguments, "--head", "bilstm"])
    assert refused.exit_code == 2
    assert "expected --frozen LAYERS beside --head" in refused.output.replace("\n", "")
