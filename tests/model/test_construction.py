"""`fastbert.register`: every BERT that transformers builds afterwards is fastbert's, however it is built, and back."""

import os
import pickle
import subprocess
import sys
import threading
import warnings
from unittest import mock

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.models.bert import modeling_bert as hf

import fastbert
from fastbert.model.construction import is_registered, register_from_environment, transformers_classes
from fastbert.model.padding.policy import policy_of
from fastbert.model.registry import REPLACEMENTS
from tests.model.parity import HEADS, assert_same_outputs, config_for, labels_for, make_batch, pair

POST_INIT = PreTrainedModel.post_init
AUTO_CLASSES = {
    "BertModel": "AutoModel",
    "BertForPreTraining": "AutoModelForPreTraining",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertLMHeadModel": "AutoModelForCausalLM",
    "BertForNextSentencePrediction": "AutoModelForNextSentencePrediction",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
}


@pytest.fixture(autouse=True)
def _unregistered_afterwards():
    yield
    fastbert.unregister()
    assert PreTrainedModel.post_init is POST_INIT


@pytest.fixture
def registered():
    fastbert.register()


def is_fastbert(model) -> bool:
    """Whether the BertModel inside is fastbert's, and no part of it transformers' where fastbert has one."""
    return any(isinstance(part, fastbert.BertModel) for part in model.modules()) and not any(
        type(part) in REPLACEMENTS for part in model.modules()
    )


@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_auto_classes_build_and_load_fastberts(name, registered, tmp_path):
    auto, config = getattr(transformers, AUTO_CLASSES[name]), config_for()
    built = auto.from_config(config)
    assert is_fastbert(built)
    assert type(built) is getattr(fastbert, name)
    built.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path)
    assert type(loaded) is getattr(fastbert, name)
    assert loaded.config.architectures == [name]
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), built.state_dict().values()))


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_outputs_are_transformers(head):
    reference, _ = pair(head)
    fastbert.register()
    model = type(reference)(reference.config)  # a class that was imported before
    assert is_fastbert(model)
    model.load_state_dict(reference.state_dict())
    batch = make_batch("right", head)
    inputs = batch.inputs(**labels_for(head, batch))
    assert_same_outputs(model.eval()(**inputs), reference.eval()(**inputs), batch.flat_real)


def test_names_are_left_alone(registered):
    """Instances become fastbert's, a subclass of transformers'; names, and so everyone's isinstance, stay."""
    assert transformers.BertModel is hf.BertModel
    assert isinstance(transformers.BertModel(config_for()), transformers.BertModel)
    assert transformers.AutoModel._model_mapping[transformers.BertConfig] is hf.BertModel


def test_register_and_unregister_any_number_of_times():
    for _ in range(2):
        fastbert.register()
        fastbert.register()
        assert is_registered()
        assert is_fastbert(hf.BertModel(config_for()))
        fastbert.unregister()
        fastbert.unregister()
        assert not is_registered()
        assert type(hf.BertModel(config_for())) is hf.BertModel
        assert PreTrainedModel.post_init is POST_INIT


def test_threads_register_and_build_at_once():
    built, start = [], threading.Barrier(8)

    def work():
        start.wait()
        fastbert.register()
        built.append(hf.BertModel(config_for()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 8
    assert all(map(is_fastbert, built))


def test_a_wrapper_by_another_library_survives(monkeypatch):
    fastbert.register()
    ours, calls = PreTrainedModel.post_init, []

    def wrapped(self):
        calls.append(type(self).__name__)
        ours(self)

    PreTrainedModel.post_init = wrapped
    try:
        fastbert.unregister()
        assert type(hf.BertModel(config_for())) is hf.BertModel
        fastbert.register()
        assert is_fastbert(hf.BertModel(config_for()))
        assert calls == ["BertModel", "BertModel"]
    finally:
        PreTrainedModel.post_init = ours


def init_weights_runs(build) -> int:
    with mock.patch.object(hf.BertModel, "init_weights", autospec=True) as ran:
        build()
    return ran.call_count


def test_a_post_init_that_was_saved_while_registered_stays_good(monkeypatch):
    """As libraries do that put it back later, or call it from a function of their own."""
    fastbert.register()
    saved = PreTrainedModel.post_init
    fastbert.unregister()
    monkeypatch.setattr(PreTrainedModel, "post_init", lambda self: saved(self))
    assert init_weights_runs(lambda: hf.BertModel(config_for())) == 1
    assert type(hf.BertModel(config_for())) is hf.BertModel
    fastbert.register()
    assert init_weights_runs(lambda: hf.BertModel(config_for())) == 1
    assert is_fastbert(hf.BertModel(config_for()))
    fastbert.unregister()
    assert PreTrainedModel.post_init is not saved


def test_unregister_within_a_construction_takes_no_step_out_of_it():
    """In another thread, say, between the lookup of post_init and its first line."""
    fastbert.register()
    ours = PreTrainedModel.post_init
    fastbert.unregister()
    model = hf.BertModel.__new__(hf.BertModel)
    with mock.patch.object(PreTrainedModel, "post_init"):
        model.__init__(config_for())
    assert init_weights_runs(lambda: ours(model)) == 1
    assert type(model) is hf.BertModel


def test_registered_within_somebodys_patch():
    with mock.patch.object(PreTrainedModel, "post_init", lambda self: POST_INIT(self)):
        fastbert.register()
        assert is_fastbert(hf.BertModel(config_for()))
    assert type(hf.BertModel(config_for())) is hf.BertModel  # the patch has put back what it found
    fastbert.register()
    assert is_fastbert(hf.BertModel(config_for()))


def test_registering_in_a_loop_piles_nothing_up():
    wrapped = mock.Mock(wraps=POST_INIT)
    with mock.patch.object(PreTrainedModel, "post_init", lambda self: wrapped(self)):
        for _ in range(5):
            fastbert.register()
            fastbert.unregister()
        fastbert.register()
        hf.BertModel(config_for())
        fastbert.unregister()
    assert wrapped.call_count == 1


def test_inside_transformers_classes_nothing_is_swapped(registered):
    with transformers_classes():
        assert not is_registered()
        assert type(hf.BertModel(config_for())) is hf.BertModel
    assert is_fastbert(hf.BertModel(config_for()))


def test_other_models_are_left_alone(registered):
    roberta = transformers.RobertaModel(transformers.RobertaConfig(**SMALL))
    assert not any(type(part).__module__.startswith("fastbert") for part in roberta.modules())


SMALL = dict(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)


class HeadOfAUser(hf.BertPreTrainedModel):
    """A head as people write them, on transformers' classes."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = hf.BertModel(config)
        self.lstm = nn.LSTM(config.hidden_size, 8, batch_first=True)
        self.post_init()


class SubclassOfAUser(hf.BertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.extra = nn.Linear(3, 3)

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def test_a_users_head(registered):
    model = HeadOfAUser(config_for())
    assert is_fastbert(model)
    assert policy_of(model.bert).exact
    assert type(model) is HeadOfAUser


class MeanOfAll(nn.Module):
    """A user's module, which transformers does not know; it reads padding."""

    def __init__(self, config):
        super().__init__()
        self.bert = transformers.AutoModel.from_config(config)

    def forward(self, ids, mask):
        return self.bert(ids, attention_mask=mask).last_hidden_state.mean(1)


class LateTagger(hf.BertForTokenClassification):
    """What reads padding comes after the last post_init."""

    def __init__(self, config):
        super().__init__(config)
        self.lstm = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(2 * config.hidden_size, 3)

    def forward(self, ids, mask):
        return self.classifier(self.lstm(self.bert(ids, attention_mask=mask)[0])[0])


class MeanLogits(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tagger = hf.BertForTokenClassification(config)

    def forward(self, ids, mask):
        return self.tagger(ids, attention_mask=mask).logits.mean(1)


class StatesOfAClassifier(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head = hf.BertForSequenceClassification(config)

    def forward(self, ids, mask):
        return self.head(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1].mean(1)


@pytest.mark.parametrize("cls", [MeanOfAll, LateTagger, MeanLogits, StatesOfAClassifier])
def test_code_that_ignores_the_mask_computes_the_same(cls):
    batch = make_batch("right")
    ids, mask = batch.inputs()["input_ids"], batch.inputs()["attention_mask"]
    reference = cls(config_for()).eval()
    fastbert.register()
    model = cls(config_for()).eval()
    assert is_fastbert(model)
    model.load_state_dict(reference.state_dict())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(model(ids, mask), reference(ids, mask), rtol=1e-4, atol=1e-5)


def test_a_classifier_computes_no_padding_unless_a_hook_looks(registered):
    model = hf.BertForSequenceClassification(config_for()).eval()
    inputs = make_batch("right").inputs()
    model(**inputs)
    assert fastbert.explain(model).notes["padding"] == "exact (built under fastbert.register)"
    assert fastbert.explain(model).notes["last call"] == "packed"
    states = []
    hook = model.bert.register_forward_hook(lambda module, args, output: states.append(output[0]))
    model(**inputs)
    hook.remove()
    with transformers_classes():
        reference = hf.BertForSequenceClassification(config_for()).eval()
    reference.load_state_dict(model.state_dict())
    torch.testing.assert_close(states[0], reference.bert(**inputs)[0], rtol=1e-4, atol=1e-5)


def test_what_was_chosen_for_a_model_stays():
    """A model with a choice of its own inside one that transformers builds later."""
    inner = fastbert.BertModel(config_for(), padding="zeros")
    fastbert.register()
    assert not policy_of(fastbert.BertForMaskedLM(config_for()).bert).exact  # fastbert's class, by its name

    class Outer(hf.BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert = inner
            self.post_init()

    Outer(config_for())
    assert policy_of(inner).chosen
    assert not policy_of(inner).exact
    built = hf.BertModel(config_for())
    assert not policy_of(fastbert.accelerate(built, padding="zeros")).exact


def test_a_users_subclass_of_a_head(registered):
    model = SubclassOfAUser(config_for())
    assert is_fastbert(model)
    assert isinstance(model, fastbert.BertForSequenceClassification)
    assert isinstance(model, SubclassOfAUser)
    assert hasattr(model, "extra")
    assert type(model) is not SubclassOfAUser  # as the docstring of register says
    assert type(SubclassOfAUser(config_for())) is type(model)
    assert type(pickle.loads(pickle.dumps(model))) is type(model)


def test_padding_is_the_users_choice():
    for choice in ({}, {"padding": "exact"}):
        fastbert.register(**choice)
        assert policy_of(hf.BertModel(config_for())).exact
    fastbert.register(padding="zeros")
    assert not policy_of(hf.BertModel(config_for())).exact
    with pytest.raises(ValueError, match="register: expected padding 'zeros' or 'exact', got 'none'"):
        fastbert.register(padding="none")


def test_remote_code_is_not_passed_over(registered, tmp_path):
    """A checkpoint of type bert with code of its own on BertModel: who trusts that code gets that code, as it is written."""
    hf.BertModel(config_for()).save_pretrained(tmp_path)
    (tmp_path / "custom.py").write_text(
        "from transformers.models.bert.modeling_bert import BertModel\n\n\nclass Custom(BertModel):\n    of_its_own = True\n"
    )
    config = transformers.BertConfig.from_pretrained(tmp_path)
    config.auto_map = {"AutoModel": "custom.Custom"}
    config.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__name__ == "Custom"
    assert loaded.of_its_own
    assert not any(type(part).__module__.startswith("fastbert") for part in loaded.modules())
    assert "Custom is a class of its own on BertModel" in str(fastbert.explain(loaded))
    assert is_fastbert(transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=False))


def test_explain_says_it():
    before = hf.BertModel(config_for())
    said = str(fastbert.explain(before))
    assert "not swapped: see fastbert.accelerate" in said
    assert "fastbert.register" not in str(fastbert.explain(fastbert.accelerate(hf.BertModel(config_for()))))
    fastbert.register()
    built = hf.BertModel(config_for())
    assert "fastbert.register: on" in str(fastbert.explain(built))
    for model in (before, fastbert.restore(built)):
        assert str(fastbert.explain(model)).endswith(said.partition("\n")[2].strip())


def test_restore_gives_transformers_back(registered):
    model = hf.BertModel(config_for())
    assert type(fastbert.restore(model)) is hf.BertModel
    assert not is_fastbert(model)


def test_sentence_transformers(registered, sentence_encoder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["a cat", "the dog sat on the mat and ran", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = sentence_transformers.SentenceTransformer(sentence_encoder, device="cpu")
        vectors = found.encode(texts)
    assert is_fastbert(found)
    assert policy_of(found[0].auto_model).exact
    assert not policy_of(fastbert.accelerate(found)[0].auto_model).exact  # it sees the whole
    assert abs(vectors - found.encode(texts)).max() < 1e-5
    with transformers_classes():
        expected = sentence_transformers.SentenceTransformer(sentence_encoder, device="cpu").encode(texts)
    assert abs(vectors - expected).max() < 1e-5


@pytest.mark.parametrize("value", ["1", "zeros", "exact"])
def test_environment(value):
    register_from_environment(value)
    assert is_registered()
    assert policy_of(hf.BertModel(config_for())).exact is (value != "zeros")


def test_environment_is_off_or_wrong():
    for value in ("", "0"):
        register_from_environment(value)
        assert not is_registered()
    with pytest.raises(ValueError, match="expected FASTBERT_REGISTER to be 0, 1, zeros or exact, got 'yes'"):
        register_from_environment("yes")


def test_import_reads_the_environment_and_imports_nothing_else():
    code = (
        "import sys, fastbert; print({'torch', 'transformers'} & set(sys.modules)); import transformers; "
        "print(type(transformers.BertModel(transformers.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, "
        "num_attention_heads=1, intermediate_size=8)).encoder.layer[0]))"
    )
    environment = os.environ | {"FASTBERT_REGISTER": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("set()\n<class 'fastbert.")


def test_a_wrong_environment_is_one_error():
    environment = os.environ | {"FASTBERT_REGISTER": "yes"}
    done = subprocess.run([sys.executable, "-c", "import fastbert"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("ValueError: expected FASTBERT_REGISTER to be 0, 1, zeros or exact, got 'yes'\n")


# ---- objects that hold models ---------------------------------------------------------------------------------------------


class Slotted:
    __slots__ = "inner"  # one name

    def __init__(self, inner):
        self.inner = inner


class Holder:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    @property
    def trap(self):
        raise AssertionError("no property is run")

    def __getattr__(self, name):
        raise AssertionError("no code of the object is run")


class Items(dict):
    def items(self):
        raise AssertionError("no code of the object is run")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: Holder(body=m),
        lambda m: Holder(a={"x": [m]}),
        lambda m: Holder(a=Items(x=m)),
        lambda m: Holder(b=Holder(c=Slotted(m))),
    ],
)
def test_accelerate_and_restore_find_the_model_in_an_object(wrap):
    model = hf.BertForSequenceClassification(config_for())
    holder = wrap(model)
    assert fastbert.accelerate(holder) is holder
    assert is_fastbert(model)
    assert fastbert.restore(holder) is holder
    assert type(model) is hf.BertForSequenceClassification


def test_accelerate_finds_all_models_of_an_object_and_survives_a_circle():
    models = [hf.BertModel(config_for()) for _ in range(2)]
    holder = Holder(first=models[0], others=models, name="x")
    holder.itself = holder
    fastbert.accelerate(holder)
    assert all(map(is_fastbert, models))


def test_a_model_far_away_and_near_is_found_near():
    near = Holder(model=hf.BertModel(config_for()))
    fastbert.accelerate(Holder(first=Holder(a=Holder(b=near)), second=near))
    assert is_fastbert(near.model)


def test_rows_code_and_libraries_are_not_searched():
    """A trainer's own rows may be millions; here one look at each would fail."""
    model, hidden = hf.BertModel(config_for()), hf.BertModel(config_for())
    module, function = type(sys)("module"), lambda: None
    module.model = function.model = hidden
    rows = [Holder(model=hidden)] * 101
    holder = Holder(rows=rows, table={row: hidden for row in range(101)}, module=module, function=function, t=torch.ones(2))
    with pytest.raises(TypeError, match=r"Holder without one in rows \(not its 101 items\), table \(not its 101 items\)$"):
        fastbert.accelerate(holder)
    holder.model = model
    fastbert.accelerate(holder)
    assert is_fastbert(model)
    assert not is_fastbert(hidden)


def test_a_pipeline_is_accelerated(tmp_path):
    model = hf.BertForSequenceClassification(config_for())
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]))
    made = transformers.pipeline("text-classification", model=model, tokenizer=transformers.BertTokenizer(str(vocabulary)))
    fastbert.accelerate(made)
    assert is_fastbert(made.model)


def test_an_object_without_a_model_is_refused_with_what_was_looked_through():
    holder = Holder(layer=nn.Linear(2, 2), settings={"x": Holder(y=Slotted(3))}, size=3)
    with pytest.raises(
        TypeError, match=r"accelerate: expected a torch\.nn\.Module.*got Holder without one in layer, settings, settings\.x"
    ):
        fastbert.accelerate(holder)
