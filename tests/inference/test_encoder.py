"""Models that stay in memory: the results of a fresh model, from any thread, and never those of files that have changed."""

import gc
import shutil
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers

import fastbert
from fastbert.inference import residents
from fastbert.utils import checkpoints as checkpoint_files
from fastbert.utils.errors import InputError

FP32 = {"dtype": torch.float32, "device": "cpu"}
TEXT = "the cat sat down on the mat ."
PAIR = ("the man plays guitar", "with a red ball in the park")


@pytest.fixture(autouse=True)
def forgotten():
    """Nothing of other tests is kept, and nothing of these for others."""
    fastbert.clear_cache()
    yield
    fastbert.clear_cache()


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The class of every model whose weights are read."""
    found = []
    read = checkpoint_files.Checkpoint.read

    def counted(self, model_class, **kwargs):
        found.append(model_class.__name__)
        return read(self, model_class, **kwargs)

    monkeypatch.setattr(checkpoint_files.Checkpoint, "read", counted)
    return found


def pair_of(folder: str, class_name: str):
    model = getattr(fastbert, class_name).from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def same(found, expected) -> bool:
    if isinstance(expected, np.ndarray):
        return found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=1e-5)
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-5)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return found == expected


CALLS = {
    "embed": ("BertModel", ([TEXT, "a dog"],), {"pooling": "cls"}),
    "classify": ("BertForSequenceClassification", ([TEXT, PAIR],), {"top": None, "max_length": 8}),
    "tag": ("BertForTokenClassification", (TEXT,), {"max_length": 6, "stride": 2}),
    "answer": ("BertForQuestionAnswering", ("who sat ?", TEXT), {"top": 2}),
    "fill_mask": ("BertForMaskedLM", ("the [MASK] sat",), {"top": 3}),
    "next_sentence": ("BertForNextSentencePrediction", ([PAIR],), {"long": "error"}),
}


@pytest.mark.filterwarnings("ignore:texts cut")
@pytest.mark.parametrize("name", CALLS)
def test_every_task_answers_as_its_function_does(checkpoints, reads, name):
    class_name, arguments, options = CALLS[name]
    folder = checkpoints[class_name]
    expected = getattr(fastbert, name)(*arguments, pair_of(folder, class_name), **options)
    encoder = fastbert.Encoder(folder, **FP32)
    assert not reads
    for _ in range(2):
        assert same(getattr(encoder, name)(*arguments, **options), expected)
    assert reads == [class_name]
    given = fastbert.Encoder(pair_of(folder, class_name))
    assert same(getattr(given, name)(*arguments, **options), expected)


def test_a_second_call_reads_nothing(checkpoints, reads):
    folder = checkpoints["BertForPreTraining"]
    for _ in range(2):
        vectors = fastbert.embed([TEXT], folder, **FP32)
        fastbert.fill_mask("the [MASK]", folder, **FP32)
        fastbert.fill_mask("the [MASK]", folder, device="cpu")  # the dtype of a CPU is float32
    assert reads == ["BertModel", "BertForMaskedLM"]
    np.testing.assert_array_equal(next(iter(fastbert.embed_stream([TEXT], folder, **FP32))), vectors[0])
    assert len(reads) == 2
    fastbert.embed([TEXT], folder, device="cpu", dtype=torch.bfloat16)
    assert reads[2:] == ["BertModel"]
    fastbert.clear_cache()
    fastbert.embed([TEXT], folder, **FP32)
    assert reads[3:] == ["BertModel"]


def rewrite(folder: str) -> None:
    """Other weights of the same shapes under the same names."""
    model = transformers.BertForPreTraining.from_pretrained(folder)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.mul_(-1.0)
    model.save_pretrained(folder)


def test_a_checkpoint_that_is_rewritten_is_read_again(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["BertForPreTraining"], tmp_path / "model")
    before = fastbert.embed(TEXT, folder, **FP32)
    encoder = fastbert.Encoder(folder, **FP32)
    np.testing.assert_array_equal(encoder.embed(TEXT), before)
    rewrite(folder)
    after = fastbert.embed(TEXT, folder, **FP32)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(fastbert.embed(TEXT, pair_of(folder, "BertForPreTraining")), after, atol=1e-5)
    assert len(residents._kept) == 1
    # An Encoder stays what it was, and does not mix the two.
    np.testing.assert_array_equal(encoder.embed(TEXT), before)
    with pytest.raises(InputError, match=r"expected .*model as it was when its first weights were read, got other files"):
        encoder.fill_mask("the [MASK]")


def test_settings_beside_the_weights_count_as_its_files(checkpoints, tmp_path):
    from tests.inference.sentence_folders import build, edit

    folder = build(checkpoints["BertModel"], tmp_path / "model", pooling="mean")
    mean = fastbert.embed(TEXT, folder, **FP32)
    (settings,) = (tmp_path / "model").glob("1_Pooling/config.json")
    edit(settings, pooling_mode="cls")
    assert np.abs(fastbert.embed(TEXT, folder, **FP32) - mean).max() > 1e-2


def test_few_are_kept_and_all_are_released(checkpoints, tmp_path):
    folders = [shutil.copytree(checkpoints["BertModel"], tmp_path / str(number)) for number in range(residents.KEPT + 2)]
    models = []
    for folder in folders:
        fastbert.embed(TEXT, folder, **FP32)
        kept = residents.resident(folder, **FP32)
        models.append(weakref.ref(next(iter(kept._loaded.values())).model))
        del kept
        fastbert.embed(TEXT, folders[0], **FP32)  # the latest use counts
        with pytest.raises(InputError):
            fastbert.embed(TEXT, tmp_path / "nothing here")
    gc.collect()
    assert [model() is not None for model in models] == [True, False, False, True, True, True]
    fastbert.clear_cache()
    gc.collect()
    assert not any(model() for model in models)


def test_a_checkpoint_that_cannot_be_loaded_displaces_none(checkpoints, tmp_path, reads):
    fastbert.embed(TEXT, checkpoints["BertModel"], **FP32)
    for number in range(residents.KEPT + 1):
        folder = shutil.copytree(checkpoints["BertModel"], tmp_path / str(number))
        with pytest.raises(InputError, match="expected a checkpoint of BertForTokenClassification"):
            fastbert.tag(TEXT, folder)
    fastbert.embed(TEXT, checkpoints["BertModel"], **FP32)
    assert reads == ["BertModel"]


def test_a_given_model_is_not_kept(checkpoints):
    pair = pair_of(checkpoints["BertModel"], "BertModel")
    fastbert.embed(TEXT, pair)
    assert not residents._kept
    model = weakref.ref(pair[0])
    del pair
    gc.collect()
    assert model() is None


def test_a_given_model_may_change(checkpoints):
    pair = pair_of(checkpoints["BertModel"], "BertModel")
    encoder = fastbert.Encoder(pair)
    before = encoder.embed(TEXT)
    pair[0].train()
    with pytest.raises(InputError, match=r"expected a model in eval mode, .* call model\.eval\(\)"):
        encoder.embed(TEXT)
    pair[0].eval()
    with torch.no_grad():
        pair[0].embeddings.word_embeddings.weight.mul_(-1.0)
    assert np.abs(encoder.embed(TEXT) - before).max() > 1e-2


def test_weights_that_were_read_in_inference_mode_serve_outside(checkpoints):
    with torch.inference_mode():
        fastbert.embed(TEXT, checkpoints["BertModel"], **FP32)
    model = next(iter(residents.resident(checkpoints["BertModel"], **FP32)._loaded.values())).model
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_many_threads_on_one_encoder(checkpoints, sentences):
    """Calls that cut at other lengths, and other tasks, on one tokenizer."""
    classifier = fastbert.Encoder(pair_of(checkpoints["BertForSequenceClassification"], "BertForSequenceClassification"))
    tagger = fastbert.Encoder(checkpoints["BertForTokenClassification"], **FP32)
    several = fastbert.Encoder(checkpoints["BertForPreTraining"], **FP32)
    sentences = sentences[:20]
    pairs = list(zip(sentences, sentences[1:]))
    jobs = [
        *(lambda length=length: classifier.classify(pairs, top=None, max_length=length) for length in (4, 9, 17, 64)),
        *(lambda pooling=pooling: classifier.embed(sentences, pooling=pooling) for pooling in ("cls", "mean")),
        *(lambda length=length: tagger.tag(sentences, max_length=length, stride=3) for length in (12, 30, 64)),
        *(lambda prompt=prompt: several.embed(sentences, prompt=prompt) for prompt in ("", "the question ", "a long answer ")),
        lambda: several.fill_mask([f"{text} [MASK]" for text in sentences], top=2),
        lambda: several.next_sentence(pairs),
    ]
    fresh = fastbert.Encoder(checkpoints["BertForPreTraining"], **FP32)  # its weights are read by all threads at once
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts that are cut
        expected = [job() for job in jobs]
        jobs += [lambda: fresh.embed(sentences)] * 2
        expected += [several.embed(sentences)] * 2
        together = threading.Barrier(len(jobs))

        def run(job):
            together.wait()
            return [job() for _ in range(3)]

        assert len(jobs) == 16
        with ThreadPoolExecutor(len(jobs)) as threads:
            found = list(threads.map(run, jobs))
    for results, right in zip(found, expected):
        for result in results:
            assert same(result, right)


def test_a_note_is_a_warning_at_the_line_of_the_call(checkpoints):
    encoder = fastbert.Encoder(checkpoints["BertModel"], **FP32)
    for call in (lambda: encoder.embed(""), lambda: fastbert.embed("", checkpoints["BertModel"], **FP32)):
        with pytest.warns(UserWarning, match="empty texts") as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("kind", ["folder", "tokenizer", "plain", "class", "alone", "other", "three", "device"])
def test_what_cannot_be_used_is_said_at_once(checkpoints, tmp_path, kind):
    folder = checkpoints["BertModel"]
    model, tokenizer = pair_of(folder, "BertModel")
    plain = transformers.BertModel.from_pretrained(folder)
    options = {}
    if kind == "tokenizer":
        shutil.copytree(folder, tmp_path / "a", ignore=shutil.ignore_patterns("tokenizer*", "vocab*"))
    given, message = {
        "folder": (tmp_path / "none", "which does not exist"),
        "tokenizer": (tmp_path / "a", "expected the tokenizer that .* was trained with, got none"),
        "plain": (
            (plain, tokenizer),
            r"transformers' BertModel: load it with fastbert\.BertModel, or swap",
        ),
        "class": ((torch.nn.Linear(2, 2), tokenizer), "expected a model of class BertModel or .*, got Linear"),
        "alone": (model, "expected a name, a folder, .* got BertModel: give its tokenizer too"),
        "other": (3, "expected a name, a folder, .* got int"),
        "three": ((model, tokenizer, 3), "got a tuple of 3"),
        "device": ((model, tokenizer), "expected no device or dtype beside a loaded model"),
    }[kind]
    if kind == "device":
        options = {"device": "cpu"}
    with pytest.raises(InputError, match=message) as error:
        fastbert.Encoder(given, **options)
    assert "\n" not in str(error.value)


def test_another_task_is_refused_when_it_is_asked_for(checkpoints):
    encoder = fastbert.Encoder(checkpoints["BertForMaskedLM"], **FP32)
    assert repr(encoder) == f"Encoder({checkpoints['BertForMaskedLM']!r}, device='cpu', dtype=torch.float32)"
    with pytest.raises(InputError, match="expected a checkpoint of BertForSequenceClassification, got one of BertForMaskedLM"):
        encoder.classify(TEXT)
    assert encoder.embed(TEXT).shape == (32,)
