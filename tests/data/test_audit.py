"""The audit counts right, and warns in plain words."""

import json
import math

import numpy as np
import pytest
import transformers

from fastbert.data import audit
from fastbert.data.audit_report import audit_warnings
from fastbert.data.prepare import prepare
from fastbert.data.shards import Shards


def test_the_audit_counts_right(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("ba ke\nli mo nu\n\nba ke\n\nre re 漢\nba ke\nsi\n")
    meta = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", seq_len=16, workers=1, duplicates=3)
    found = json.loads((tmp_path / "out" / "meta.json").read_text())["audit"]
    assert found == json.loads(json.dumps(meta.audit))
    assert (found["documents"], found["one_sentence_documents"]) == (3, 1)
    assert (found["sentences"], found["duplicate_lines"]) == (6, 2)
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    tokens = [t for line in (tmp_path / "a.txt").read_text().split("\n") for t in words.tokenize(line)]
    assert found["tokens"] == len(tokens)
    assert found["unknown_tokens"] == tokens.count("[UNK]") == 1
    counts = [tokens.count(token) for token in set(tokens) - {"[UNK]"}]
    assert found["entropy"] == pytest.approx(-sum(c / sum(counts) * math.log(c / sum(counts)) for c in counts))
    assert found["ln_vocab_size"] == math.log(len(words))
    data = Shards(tmp_path / "out")
    assert found["samples"] == len(data)
    assert found["fill_rate"] == pytest.approx(data.lengths.mean() / 16)
    assert sum(count for _, count in found["length_histogram"]) == len(data)
    assert found["length_histogram"][-1][0] == 16
    assert found["random_rate"] == np.mean([data[index].is_random_next for index in range(len(data))])
    assert found["random_interval"][0] < found["random_rate"] < found["random_interval"][1] or found["random_rate"] == 1


def test_wilson_interval_against_published_values():
    assert audit.wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)  # Newcombe 1998, method 3
    assert audit.wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert audit.wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_distinct_hashes_are_counted_in_pieces(monkeypatch):
    monkeypatch.setattr(audit, "PIECE", 100)
    values = np.random.default_rng(0).integers(0, 2**64, 950, np.uint64, endpoint=False)
    values[:5] = [0, 2**64 - 1, 0, 2**63, 2**64 - 1]
    many = np.concatenate([values, values[:300]])
    assert audit._count_distinct(many) == len(set(many.tolist()))
    ends = np.cumsum(np.arange(1000) % 3 + 1)
    assert audit._count_ones(ends) == 334
    assert audit._count_distinct(np.empty(0, np.uint64)) == 0


def test_warnings_are_plain_words(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("ba ke li\n\n" * 5 + "漢 漢\n\n")
    meta = prepare([str(tmp_path / "a.txt")], tokenizer, tmp_path / "out", seq_len=128, workers=1)
    said = "\n".join(audit_warnings(meta.audit))
    for part in (
        "67% of the lines occur in the text more than once (4 repetitions)",
        "6 of 6 documents with one sentence, which can never give a pair where B follows A",
        "only 6 documents",
        "of the tokens are [UNK]",
        "B is random in 100% of the samples",
        "of the sequence length on average",
    ):
        assert part in said
    good = dict(meta.audit, duplicate_lines=0, one_sentence_documents=0, documents=100, unknown_tokens=0, random_rate=0.5)
    assert audit_warnings(dict(good, fill_rate=0.9)) == []
