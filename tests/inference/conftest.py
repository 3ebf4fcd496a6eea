"""Tiny checkpoints, one per head, and the commands of inference."""

import pytest
import torch
import typer

from fastbert.cli import inference as cli
from tests.inference.tiny_checkpoints import WORDS, save


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Class name -> folder."""
    root = tmp_path_factory.mktemp("checkpoints")
    tags = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    labels = {
        "BertForSequenceClassification": ("negative", "neutral", "positive"),
        "BertForTokenClassification": tags,
    }
    found = {}
    for name in (
        "BertModel",
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForQuestionAnswering",
    ):
        names = labels.get(name)
        options = {} if names is None else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
        found[name] = save(root / name, name, **options)
    return found


@pytest.fixture(scope="session")
def sentences() -> list[str]:
    """Texts of many lengths up to the limit, some twice as long words as others."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 50, (60,), generator=generator).tolist()
    picks = [torch.randint(len(WORDS), (length,), generator=generator).tolist() for length in lengths]
    return [" ".join(WORDS[word] for word in pick) for pick in picks]


@pytest.fixture(scope="session")
def app() -> typer.Typer:
    """The commands of inference alone."""
    found = typer.Typer(pretty_exceptions_enable=False)
    for command in (cli.embed, cli.fill_mask, cli.classify, cli.tag, cli.answer):
        found.command()(command)
    found.command("next")(cli.next_sentence)
    return found


@pytest.fixture
def texts(sentences) -> list[str]:
    return [*sentences[:12], "", "The CAT lost my Card", "dog " * 100]
