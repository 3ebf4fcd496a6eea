"""The comparison of sentence vectors, on few sentences: who takes part, and what the record holds."""

import json

import pytest
import torch


def test_the_record_holds_the_seconds_of_every_contender_and_vectors_that_agree(tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    from benchmarks.studies.embedding import EQUAL_TO, main

    (tmp_path / "sentences.txt").write_text("A dog runs.\n\nThe cat, which was old, slept in the sun all day long.\nNo.\n" * 4)
    main(tmp_path / "sentences.txt", sentences=8, rounds=2, batch_size=4, out=tmp_path / "record.json")
    record = json.loads((tmp_path / "record.json").read_text())
    contenders = {"sentence-transformers", "transformers, input order", "fastbert.embed"}
    assert record["sentences"] == 8
    for name in ("seconds", "processor_seconds"):
        assert record[name].keys() == contenders
        assert all(len(values) == 2 and min(values) > 0 for values in record[name].values())
    assert record["differences"].keys() == contenders
    assert max(record["differences"].values()) <= EQUAL_TO
    assert record["conditions"]["threads"] == torch.get_num_threads()
    assert "8 sentences of sentences.txt" in capsys.readouterr().out
