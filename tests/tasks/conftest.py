"""A tokenizer of few pieces, under which words fall apart."""

import pytest
import transformers

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , ? ! ' - the a an of in is was who what where when did play born city king queen paris "
    "london rome france england ann ##a bob un ##believ ##able ##ness ##s ##ing ##ed 1 2 3 4 5 6 7 8 9 0 ##1 ##2 ##3 ##4 ##5"
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> transformers.PreTrainedTokenizerBase:
    letters = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    vocabulary = list(dict.fromkeys([*PIECES.split(), *letters, "##6", "##7", "##8", "##9", "##0"]))
    file = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    file.write_text("\n".join(vocabulary) + "\n")
    return transformers.BertTokenizer(vocab=str(file))
