"""The settings of folders that sentence-transformers saves: followed as its own classes do, or refused."""

import json
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from fastbert.inference.embedding import Embedding, embed, embed_stream
from fastbert.utils.errors import InputError
from tests.inference.sentence_folders import FP32, MODES, PROMPTS, SentenceTransformer, build, compare, edit, models
from tests.inference.tiny_checkpoints import SPECIAL, WORDS, save

runner = CliRunner()


def test_prompts(checkpoints, texts, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a", prompts=PROMPTS)
    plain = compare(folder, texts)
    named = compare(folder, texts, prompt_name="query")
    assert np.abs(named - plain).max() > 1e-2
    compare(folder, texts, prompt_name="document")  # it has every folder, with nothing in it
    compare(folder, texts, prompt="please ")
    default = build(checkpoints["BertModel"], tmp_path / "b", prompts=PROMPTS, default_prompt_name="passage")
    with_default = compare(default, texts)
    assert np.abs(with_default - plain).max() > 1e-2
    np.testing.assert_array_equal(compare(default, texts, prompt=""), plain)
    compare(default, texts, prompt_name="query")
    with pytest.raises(InputError, match=r"a prompt of .*, which are 'document', 'passage', 'query', got 'title'"):
        embed("the cat", folder, prompt_name="title")
    with pytest.raises(InputError, match="expected a prompt or the name of one, got both: 'x' and 'query'"):
        embed("the cat", folder, prompt="x", prompt_name="query")
    with pytest.raises(InputError, match="expected a prompt of fewer tokens than the limit of 64 leaves to texts, got 81"):
        embed("the cat", folder, prompt="dog " * 80)
    edit(tmp_path / "b" / "config_sentence_transformers.json", default_prompt_name="title")
    with pytest.raises(InputError, match="got 'title'"):
        embed("the cat", default)


def test_a_prompt_is_put_before_texts_of_any_checkpoint(checkpoints):
    folder = checkpoints["BertModel"]
    np.testing.assert_array_equal(embed("the cat", folder, prompt="a dog "), embed("a dog the cat", folder))
    (one,) = embed_stream(["the cat"], folder, prompt="a dog ", truncate_dim=5)
    np.testing.assert_array_equal(one, embed("the cat", folder, prompt="a dog ", truncate_dim=5))
    with pytest.raises(InputError, match="which are none, got 'query'"):
        embed("the cat", folder, prompt_name="query")


@pytest.mark.parametrize("pooling", [*MODES, ("cls", "weightedmean", "max", "mean", "lasttoken")])
def test_the_prompt_can_be_left_out_of_the_pooling(checkpoints, texts, tmp_path, pooling):
    with_it = build(checkpoints["BertModel"], tmp_path / "a", pooling=pooling, prompts=PROMPTS)
    head = models.Pooling(32, pooling, include_prompt=False)
    without = build(checkpoints["BertModel"], tmp_path / "b", pooling=head, prompts=PROMPTS, default_prompt_name="query")
    found = compare(without, texts)
    other = compare(with_it, texts, prompt_name="query")
    assert (np.abs(found - other).max() > 1e-3) == (pooling != "lasttoken")
    compare(without, texts, prompt="")


def test_a_prompt_that_melts_into_the_text_is_an_error(checkpoints, tmp_path):
    head = models.Pooling(32, "mean", include_prompt=False)
    folder = build(checkpoints["BertModel"], tmp_path / "a", pooling=head)
    with pytest.raises(
        InputError, match="expected tokens after those of the prompt 'ca', got none in row 2: end the prompt in"
    ):
        embed(["the cat", "t"], folder, prompt="ca")


def cased(folder: Path) -> str:
    """Its vocabulary is in lower case, its tokenizer leaves the case as it is."""
    save(folder, "BertModel")
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"), do_lower_case=False)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_do_lower_case(texts, tmp_path):
    base = cased(tmp_path / "cased")
    plain = build(base, tmp_path / "a")
    vectors = compare(plain, texts)
    edit(tmp_path / "a" / "sentence_bert_config.json", do_lower_case=True)
    lowered = compare(plain, texts)
    assert np.abs(lowered - vectors).max() > 1e-2
    compare(build(base, tmp_path / "b", transformer={"do_lower_case": True}), texts)
    compare(build(save(tmp_path / "lower", "BertModel"), tmp_path / "c", transformer={"do_lower_case": True}), texts)


@pytest.mark.parametrize("limit", [7, 40])
def test_max_seq_length_comes_before_the_tokenizers_own(checkpoints, texts, tmp_path, limit):
    folder = build(checkpoints["BertModel"], tmp_path / "a", transformer={"max_seq_length": 20})
    compare(folder, texts)
    assert Embedding(folder).limit == 20
    file = tmp_path / "a" / "sentence_bert_config.json"
    edit(file, max_seq_length=limit)
    compare(folder, texts)
    assert Embedding(folder).limit == limit
    edit(file, max_seq_length=None)
    compare(folder, texts)
    edit(file, max_seq_length=12, tokenizer_args={"model_max_length": 9})
    compare(folder, texts)
    edit(file, tokenizer_args=..., processing_kwargs={"text": {"max_length": 11}})
    compare(folder, texts)
    assert Embedding(folder).limit == 11
    edit(file, processing_kwargs=..., max_seq_length=0)
    with pytest.raises(InputError, match=r"expected max_seq_length of at least 1 in sentence_bert_config\.json of .*, got 0"):
        embed("the cat", folder)


def test_a_model_in_a_folder_of_its_own(checkpoints, texts, tmp_path):
    """As old versions lay it out; every command finds it."""
    import fastbert

    folder = Path(build(checkpoints["BertModel"], tmp_path / "a", models.Normalize(), transformer={"max_seq_length": 15}))
    (folder / "0_Transformer").mkdir()
    for file in list(folder.iterdir()):
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json", "README.md"):
            file.rename(folder / "0_Transformer" / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    for path in ("0_Transformer", "0_Transformer/"):
        modules[0]["path"] = path
        modules[0]["type"] = "sentence_transformers.models.Transformer"
        modules[1]["type"] = "sentence_transformers.models.Pooling"
        modules[2]["type"] = "sentence_transformers.models.Normalize"
        (folder / "modules.json").write_text(json.dumps(modules))
        edit(folder / "0_Transformer" / "sentence_bert_config.json", max_seq_length=15, do_lower_case=False)
        compare(str(folder), texts)
        assert Embedding(str(folder)).limit == 15
    rows = fastbert.verify(str(folder), texts=texts[:3], dtype=torch.float32, heads=False, kernels=False)
    assert all(row.passed for row in rows)


def test_what_changes_no_vector_is_passed_over(checkpoints, texts, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a", similarity_fn_name="dot")
    edit(tmp_path / "a" / "config_sentence_transformers.json", requirements={"sentence_transformers": ">=2"})
    edit(
        tmp_path / "a" / "sentence_bert_config.json",
        unpad_inputs=False,
        model_args={"attn_implementation": "eager"},
        tokenizer_args={},
        config_args={"trust_remote_code": True},
        processing_kwargs={"text": {"padding": True}},
        query_length=None,
    )
    modules = json.loads((tmp_path / "a" / "modules.json").read_text())
    modules[0]["kwargs"] = ["task"]
    (tmp_path / "a" / "modules.json").write_text(json.dumps(modules))
    compare(folder, texts)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config_sentence_transformers.json", {"query_prefix": "q "}, r"expected settings that fastbert knows .*query_prefix$"),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, r"a SentenceTransformer .* SparseEncoder"),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, r"got a CrossEncoder: classify scores its pairs"),
        ("config_sentence_transformers.json", {"activation_fn": "torch.nn.Identity"}, r"got activation_fn$"),
        ("config_sentence_transformers.json", {"truncate_dim": "8"}, r"expected truncate_dim of at least 1 in .*, got '8'"),
        ("config_sentence_transformers.json", {"prompts": ["q"]}, r"expected prompts by name in .*, got \['q'\]"),
        ("config_sentence_transformers.json", {"prompts": {"q": 1}}, r"expected prompts\.q of type str in .*, got 1"),
        ("sentence_bert_config.json", {"pad_left": True}, r"sentence_bert_config\.json of .*, got pad_left$"),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, r"expected do_lower_case of type bool .*, got 'yes'"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, r"expected transformer_task to be 'feature"),
        ("sentence_bert_config.json", {"query_expansion": {"length": 32}}, r"expected query_expansion to be None"),
        ("sentence_bert_config.json", {"tokenizer_name_or_path": "other"}, r"expected tokenizer_name_or_path to be None"),
        ("sentence_bert_config.json", {"model_args": {"gain": 2}}, r"got model_args\.gain$"),
        ("sentence_bert_config.json", {"processor_kwargs": {"strip_accents": True}}, r"got processor_kwargs\.strip_accents$"),
        ("sentence_bert_config.json", {"processing_kwargs": {"common": {"x": 1}}}, r"got processing_kwargs\.common$"),
        (
            "sentence_bert_config.json",
            {"processing_kwargs": {"text": {"add_special_tokens": False}}},
            r"got processing_kwargs\.text\.add_special_tokens$",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            r"expected a modality_config of text alone, by forward and its last_hidden_state, in .*pooler_output",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, r"expected pooling_mode of mean, .*, got attention"),
        ("1_Pooling/config.json", {"temperature": 2}, r"in 1_Pooling/config\.json of .*, got temperature$"),
        ("2_Dense/config.json", {"scale": 2}, r"in 2_Dense/config\.json of .*, got scale$"),
        ("2_Dense/config.json", {"in_features": 31}, r"expected in_features 32 in 2_Dense/config\.json of .*, got 31"),
        ("2_Dense/config.json", {"activation_function": "my.Own"}, r"expected an activation of torch\.nn .*, got 'my\.Own'"),
        (
            "2_Dense/config.json",
            {"activation_function": "torch.nn.modules.activation.Threshold"},
            r"expected an activation of torch\.nn without options",
        ),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.linear.Linear"}, r"got 'torch\.nn\.modules\.linear"),
        ("2_Dense/config.json", {"module_input_name": "sparse"}, r"expected module_input_name and module_output_name t"),
        ("2_Dense/config.json", {"bias": False}, r"expected the weights of Dense in 2_Dense in .*, got: Error"),
    ],
)
def test_what_is_not_known_is_refused_by_name(checkpoints, tmp_path, file, values, message):
    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Dense(32, 16))
    assert embed("the cat", folder).shape == (16,)
    edit(tmp_path / "a" / file, **values)
    with pytest.raises(InputError, match=message) as refused:
        embed("the cat", folder)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "a") in str(refused.value)


def test_any_value_of_a_setting_is_refused_or_means_the_same(checkpoints, texts, tmp_path):
    chain = [models.Dense(32, 16), models.Normalize(), models.LayerNorm(16)]
    folder = build(checkpoints["BertModel"], tmp_path / "a", *chain, transformer={"max_seq_length": 20}, prompts=PROMPTS)
    more = {
        "config_sentence_transformers.json": ["truncate_dim", "requirements"],
        "sentence_bert_config.json": ["max_seq_length", "do_lower_case", "processing_kwargs", "model_args", "tokenizer_args"],
        "1_Pooling/config.json": ["pooling_mode_cls_token"],
        "2_Dense/config.json": ["use_residual"],
        "3_Normalize/config.json": [],
        "4_LayerNorm/config.json": [],
    }
    refusals, followed = [], 0
    for name, keys in more.items():
        file = tmp_path / "a" / name
        before = file.read_text()
        for key in (*json.loads(before), *keys):
            for value in (None, True, 7, "x", [], {"x": 1}):
                edit(file, **{key: value})
                try:
                    found = embed(texts[1:3], folder, **FP32)
                    expected = SentenceTransformer(folder, device="cpu").encode(texts[1:3])
                except InputError as error:
                    refusals.append(str(error))
                    continue
                except (TypeError, AttributeError) as error:
                    refusals.append("" if "sentence_transformers" in str(error.__traceback__.tb_next.tb_frame) else "\nours")
                    continue
                finally:
                    file.write_text(before)
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=f"{name} {key} {value!r}")
                followed += 1
    assert not [line for line in refusals if "\n" in line]
    assert followed > 20


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            {"type": "sentence_transformers.models.WordWeights"},
            r"expected modules among Transformer, Pooling, .*, got WordWeights",
        ),
        ({"type": "sentence_transformers.models.WeightedLayerPooling"}, "got WeightedLayerPooling"),
        ({"type": "sentence_transformers.base.modules.router.Router"}, "got Router"),
        (
            {"type": "custom_st.Pooling"},
            r"expected modules of sentence-transformers in modules\.json .*, got custom_st\.Pooling",
        ),
        ({"path": "../1_Pooling"}, r"expected the path of a folder inside .*, got '\.\./1_Pooling'"),
        ({"path": "/etc"}, "got '/etc'"),
        ({"weight": 2}, r"expected idx, name, path and type of each module in modules\.json .*, got weight"),
    ],
)
def test_modules_that_are_not_known_are_refused_by_name(checkpoints, tmp_path, module, message):
    folder = build(checkpoints["BertModel"], tmp_path / "a")
    modules = json.loads((tmp_path / "a" / "modules.json").read_text())
    (tmp_path / "a" / "modules.json").write_text(json.dumps([modules[0], modules[1] | module]))
    with pytest.raises(InputError, match=message):
        embed("the cat", folder)


def test_modules_in_an_order_that_makes_no_vectors(checkpoints, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a")
    file = tmp_path / "a" / "modules.json"
    modules = json.loads(file.read_text())
    for content, message in (
        (modules[:1], "expected a module Pooling in modules.json of .*, got none"),
        (modules[1:], r"expected one module Transformer, and first, in modules\.json of .*, got Pooling"),
        ([modules[0], modules[0], modules[1]], "got Transformer, Transformer, Pooling"),
        ([], r"expected a list of modules in modules\.json of .*, got \[\]"),
        ({"0": modules[0]}, "expected a list of modules"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            embed("the cat", folder)
    file.write_text("[{")
    with pytest.raises(InputError, match=r"expected JSON in modules\.json in .*, got"):
        embed("the cat", folder)


def test_no_code_of_a_weight_file_is_run(checkpoints, tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Dense(32, 16))
    (tmp_path / "a" / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"expected model\.safetensors or pytorch_model\.bin in 2_Dense of .*, got neither"):
        embed("the cat", folder)
    torch.save({"linear.weight": Harm()}, tmp_path / "a" / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(InputError, match="expected the weights of Dense in 2_Dense"):
        embed("the cat", folder)
    (tmp_path / "a" / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(InputError, match="expected the weights of Dense in 2_Dense"):
        embed("the cat", folder)
    assert not (tmp_path / "harm").exists()


def test_the_command_follows_prompts_and_says_what_it_does(app, checkpoints, tmp_path):
    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Dense(32, 16), prompts=PROMPTS, truncate_dim=4)

    def vector(*options: str) -> tuple[np.ndarray, str]:
        done = runner.invoke(app, ["embed", "--model", folder, "--precision", "float32", *options, "the cat"])
        assert done.exit_code == 0, done.output
        return np.float32(json.loads(done.stdout)["embedding"]), done.stderr

    plain, printed = vector()
    assert "mean pooling, Dense to 16 (Tanh), cut to 4, not normalised, 4 dimensions, at most 64 tokens" in printed
    assert "prompt" not in printed
    named, printed = vector("--prompt-name", "query")
    assert "prompt 'the question: '" in printed
    np.testing.assert_allclose(named, embed("the cat", folder, prompt_name="query", **FP32), atol=1e-6)
    np.testing.assert_array_equal(vector("--prompt", PROMPTS["query"])[0], named)
    assert np.abs(named - plain).max() > 1e-3
    assert len(vector("--truncate-dim", "3")[0]) == 3
    assert vector("--pooling", "lasttoken")[1].count("lasttoken pooling") == 1
    done = runner.invoke(app, ["embed", "--model", folder, "--prompt", "a", "--prompt-name", "query", "the cat"])
    assert done.exit_code == 2
    assert done.stderr == "fastbert: expected a prompt or the name of one, got both: 'a' and 'query'\n"


def test_another_prompt_or_head_is_another_run(app, checkpoints, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    folder = build(checkpoints["BertModel"], tmp_path / "a", models.Dense(32, 32), prompts=PROMPTS)
    file, out = tmp_path / "a.txt", tmp_path / "a.npy"
    file.write_text("the cat\n" * 50)
    arguments = ["embed", "--model", folder, "--file", str(file), "--out", str(out), "--batch-tokens", "16"]
    with monkeypatch.context() as patched:
        patched.setattr(Embedding, "forward", lambda self, batch: (_ for _ in ()).throw(KeyboardInterrupt))
        assert runner.invoke(app, arguments).exit_code == 130
    another = f"with which {out} was started, got "
    assert another in runner.invoke(app, [*arguments, "--resume", "--prompt-name", "query"]).stderr
    config, weights = (tmp_path / "a" / "2_Dense" / name for name in ("config.json", "model.safetensors"))
    before = config.read_text(), load_file(weights)
    edit(config, activation_function="torch.nn.modules.activation.GELU")
    assert another in runner.invoke(app, [*arguments, "--resume"]).stderr
    config.write_text(before[0])
    save_file({name: value + 1 for name, value in before[1].items()}, weights)
    assert another in runner.invoke(app, [*arguments, "--resume"]).stderr
    save_file(before[1], weights)
    assert runner.invoke(app, [*arguments, "--resume"]).exit_code == 0
    assert np.load(out).shape == (50, 32)


HOSTILE = ["İstanbul Ünlü café 한국어 [SEP] the [MASK] [mask]", "x" * 80, "  the \t cat\n sat ", "the\x00cat", "中文 the 文"]


@pytest.mark.parametrize("seed", range(12))
def test_settings_together_on_hostile_texts(checkpoints, texts, tmp_path, seed):
    rng = random.Random(seed)
    modes = rng.sample(MODES, rng.choice([1, 1, 2, 3]))
    base = cased(tmp_path / "cased") if rng.random() < 0.5 else checkpoints["BertModel"]
    chain, size = [], 32 * len(modes)
    for kind in rng.choices(["dense", "normalize", "norm", "dropout"], k=rng.randint(0, 3)):
        if kind == "dense":
            activation, out = rng.choice([torch.nn.Tanh, torch.nn.Identity, torch.nn.SiLU])(), rng.choice([16, size])
            chain.append(models.Dense(size, out, rng.random() < 0.5, activation, use_residual=rng.random() < 0.5))
            size = out
        else:
            chain.append(
                models.LayerNorm(size) if kind == "norm" else models.Normalize() if kind == "normalize" else models.Dropout()
            )
    transformer = {"max_seq_length": rng.choice([None, 9, 20, 50]), "do_lower_case": rng.random() < 0.5}
    folder = build(
        base,
        tmp_path / "a",
        *chain,
        pooling=models.Pooling(32, tuple(modes), include_prompt=rng.random() < 0.5),
        transformer=transformer,
        prompts=PROMPTS,
        default_prompt_name=rng.choice([None, "query", "passage"]),
        truncate_dim=rng.choice([None, 8]),
    )
    call = rng.choice([{}, {"prompt_name": "query"}, {"prompt": "please . "}, {"prompt": ""}])
    expected = SentenceTransformer(folder, device="cpu").encode(texts + HOSTILE, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = embed(texts + HOSTILE, folder, **FP32, **call)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_words_of_the_tests_are_in_the_vocabulary():
    """Else every text were unknown words, and every vector right."""
    assert {"the", "cat", "question", "answer", "long", "please"} <= set(WORDS)
    assert len(SPECIAL) == 5
