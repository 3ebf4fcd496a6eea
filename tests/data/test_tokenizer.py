"""Tokenizers that text cannot be prepared with."""

import pytest

from fastbert.data.prepare import prepare
from fastbert.utils.errors import DataError
from tests.data.small_text import SMALL, WORDS


@pytest.mark.parametrize("missing", ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"])
def test_rejects_a_vocabulary_without_a_special_token(text, tmp_path, missing):
    vocabulary = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".") if token != missing]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "words" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(DataError, match=rf"{missing[1:-1].lower()}_token, got none for '\{missing}' in"):
        prepare([text], tmp_path / "words", tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()
