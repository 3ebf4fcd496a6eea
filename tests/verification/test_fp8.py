"""`fastbert verify --dtype fp8`: what it measures, its verdict and exit status, on tiny checkpoints."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from typer.testing import CliRunner

from fastbert.cli.app import app
from fastbert.kernels import fp8
from fastbert.utils.checkpoints import open_checkpoint
from fastbert.utils.errors import InputError
from fastbert.verification import fp8 as fp8_check

if fp8.unsupported_reason(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
    pytest.skip(fp8.unsupported_reason(torch.device("cuda")), allow_module_level=True)
WORDS = "the cat sat on a mat and saw dogs run far away from old red houses in rain".split()


CLASSES = [
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertLMHeadModel",
]


@pytest.fixture(scope="module", params=CLASSES)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        num_labels=2 if request.param == "BertForQuestionAnswering" else 3,
        max_position_embeddings=32,
        initializer_range=0.1,
        is_decoder=request.param == "BertLMHeadModel",
    )
    getattr(transformers, request.param)(config).save_pretrained(folder)
    return folder


def texts(count):
    g = torch.Generator().manual_seed(3)
    return [
        " ".join(WORDS[index] for index in torch.randint(0, len(WORDS), (length,), generator=g))
        for length in torch.randint(2, 12, (count,), generator=g).tolist()
    ]


def run(checkpoint, *options):
    return CliRunner().invoke(app, ["verify", str(checkpoint), "--dtype", "fp8", *map(str, options)])


def test_the_report(checkpoint, tmp_path):
    text, report = tmp_path / "text.txt", tmp_path / "report.json"
    text.write_text("\n".join(texts(60)))
    outcome = run(checkpoint, "--text", text, "--json", report, "--cosine", 0)
    found = json.loads(report.read_text())
    assert found["texts"] == found["calibration texts"] == 30
    assert (found["products in fp8"], found["products"], found["kept"]) == (8, 8, {})
    rows = {row["what"]: row for row in found["findings"]}
    assert 0.98 < rows[fp8_check.MEANS]["mean"] < 1.0
    assert rows["state of each token, embeddings"]["mean"] == pytest.approx(1.0)
    last = {
        "BertForMaskedLM": "likeliest token of each mask",
        "BertForSequenceClassification": "likeliest class",
        "BertForQuestionAnswering": "likeliest end",
        "BertLMHeadModel": "likeliest next token",
    }
    label = last.get(found["class"])
    assert label is None or (label in rows and 0.5 < rows[label]["mean"] <= 1.0)
    assert found["passed"] == all(row["passed"] for row in found["findings"])
    assert outcome.exit_code == (0 if found["passed"] else 1)
    assert ("WITHIN" if found["passed"] else "OUTSIDE") in outcome.output


def test_a_cosine_keeps_products_and_the_report_names_them(checkpoint, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(texts(60)))
    outcome = run(checkpoint, "--text", text, "--calibrate", text, "--cosine", 0.99995)
    assert "off the cosine" in outcome.output, outcome.output


def test_a_report_outside_a_limit_fails():
    within = fp8_check.Finding("a", 3, 0.9995, 0.996, 0.999, 0.995)
    assert fp8_check.QuantizationReport((within,), 4, 8, 0.5, {}).passed
    assert not fp8_check.QuantizationReport((within,), 0, 8, 0.0, {}).passed, "nothing in fp8 is no success"
    for mean, worst in ((0.998, 0.996), (0.9995, 0.994), (float("nan"), 0.996)):
        assert not fp8_check.Finding("a", 3, mean, worst, 0.999, 0.995).passed


def test_bad_options(checkpoint, tmp_path):
    one = tmp_path / "one.txt"
    one.write_text("the cat\n")
    assert "at least two texts" in run(checkpoint, "--text", one).output
    assert run(checkpoint, "--cosine", 1.5).exit_code == 2
    assert run(checkpoint, "--full").exit_code == 2
    for option in (["--calibrate", str(one)], ["--cosine", "0.9"]):
        assert CliRunner().invoke(app, ["verify", str(checkpoint), *option]).exit_code == 2
    with pytest.raises(InputError, match="at least two"):
        fp8_check.halves(["one"])
    assert open_checkpoint(str(checkpoint)).class_name.startswith("Bert")
