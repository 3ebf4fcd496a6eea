"""A text of few words, its tokenizer, and what `prepare` makes of it."""

import pytest

from fastbert.data import tokenize_documents
from fastbert.data.prepare import prepare
from fastbert.data.wordpiece import train_wordpiece
from tests.data.small_text import SMALL, contents, make_text


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(make_text(150))
    return str(file)


@pytest.fixture(scope="session")
def tokenizer(text, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer") / "words"
    train_wordpiece([text], folder, vocab_size=150)
    return str(folder)


@pytest.fixture(scope="session")
def expected(text, tokenizer, tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected") / "out"
    prepare([text], tokenizer, out, **SMALL)
    return contents(out)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(tokenize_documents, "BATCH_CHARACTERS", 5000)
