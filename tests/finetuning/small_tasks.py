"""A tiny checkpoint, whose large weights learn in few steps, and small files of every task that can be learned."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from fastbert.finetuning.data import DataOptions
from fastbert.finetuning.options import Options, Setting
from fastbert.tasks.features import Feature

WORDS = "red green blue dog cat bird runs sleeps sings in paris rome anna bob who where ? .".split()
TINY = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    initializer_range=0.2,
)
FAST = Setting(batch_size=8, learning_rate=5e-3, epochs=6, dropout=0.0)
COLORS, ANIMALS, PEOPLE, CITIES = ["red", "green", "blue"], ["dog", "cat", "bird"], ["anna", "bob"], ["paris", "rome"]


def write_checkpoint(folder: Path, library: Any = transformers, class_name: str = "BertModel", **values: Any) -> Path:
    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), **{**TINY, **values})
    getattr(library, class_name)(config).save_pretrained(folder)
    return folder


def sentence(rng: random.Random) -> tuple[str, str, str]:
    color, animal = rng.choice(COLORS), rng.choice(ANIMALS)
    filler = " ".join(rng.choice(["in", "runs", "sings", "."]) for _ in range(rng.randint(0, 6)))
    return color, animal, f"{color} {animal} {filler}".strip()


def write_files(folder: Path, task: str, count: int = 64) -> tuple[Path, Path]:
    """(training, evaluation) files of a task."""
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder, "train", task, random.Random(0), count), _write(folder, "eval", task, random.Random(1), count // 2)


def _write(folder: Path, part: str, task: str, rng: random.Random, count: int) -> Path:
    rows = [sentence(rng) for _ in range(count)]
    if task == "classify":
        return _text(folder / f"{part}.csv", "text,label\n" + "".join(f"{text},{color}\n" for color, _, text in rows))
    if task == "pair":
        lines = [f"{text}\t{other}\t{'same' if color == other else 'other'}" for color, _, text in rows for other in COLORS[:2]]
        return _text(folder / f"{part}.tsv", "\n".join(["premise\thypothesis\tlabel", *lines]))
    if task == "regression":
        scores = {"red": 0.5, "green": 2.0, "blue": 3.5}
        return _text(
            folder / f"{part}.csv", "sentence1,sentence2,score\n" + "".join(f"{t},{a},{scores[c]}\n" for c, a, t in rows)
        )
    if task == "choice":
        lines = [json.dumps({"context": text, "choices": COLORS, "label": COLORS.index(color)}) for color, _, text in rows]
        return _text(folder / f"{part}.jsonl", "\n".join(lines))
    if task == "tag":
        sentences = []
        for _, animal, _ in rows:
            person, city = rng.choice(PEOPLE), rng.choice(CITIES)
            sentences.append(f"{person} B-PER\nin O\n{city} B-LOC\n{city} I-LOC\n{animal} O\n")
        return _text(folder / f"{part}.conll", "\n".join(sentences))
    assert task in ("qa", "qa2")
    paragraphs = []
    for number, (_, animal, _) in enumerate(rows):
        person, city = rng.choice(PEOPLE), rng.choice(CITIES)
        context = f"the {animal} sleeps . {person} sings in {city} . "
        asked = [
            {"id": f"{number}-a", "question": "who ?", "answers": [{"text": person, "answer_start": context.index(person)}]},
            {"id": f"{number}-b", "question": "where ?", "answers": [{"text": city, "answer_start": context.index(city)}]},
        ]
        if task == "qa2":
            asked.append({"id": f"{number}-c", "question": "blue ?", "answers": [], "is_impossible": True})
        paragraphs.append({"context": context, "qas": asked})
    return _text(folder / f"{part}.json", json.dumps({"data": [{"paragraphs": paragraphs}]}))


def _text(file: Path, content: str) -> Path:
    file.write_text(content, encoding="utf-8")
    return file


def padded(features: list[Feature]) -> dict[str, torch.Tensor]:
    """A batch of features as transformers takes it."""
    rows = [sequence for feature in features for sequence in feature.sequences]
    longest = max(len(ids) for ids, _ in rows)

    def fill(arrays: list[np.ndarray], value: int) -> torch.Tensor:
        return torch.tensor(np.array([np.pad(one, (0, longest - len(one)), constant_values=value) for one in arrays])).long()

    batch = {
        "input_ids": fill([ids for ids, _ in rows], 0),
        "token_type_ids": fill([types for _, types in rows], 0),
        "attention_mask": fill([np.ones_like(ids) for ids, _ in rows], 0),
    }
    if len(features[0].sequences) > 1:
        batch = {name: value.view(len(features), -1, longest) for name, value in batch.items()}
    for name, value in features[0].labels.items():
        values = [feature.labels[name] for feature in features]
        if isinstance(value, np.ndarray):
            batch[name] = fill(values, -100)
        else:
            batch[name] = torch.tensor(values, dtype=torch.float32 if isinstance(value, float) else torch.int64)
    return batch


def options_of(kind: str, tmp_path: Path, checkpoint: str, setting: Setting = FAST, count: int = 64, **values: Any) -> Options:
    """A fine-tuning on small files. kind: as of `write_files`, or 'regression'."""
    train, evaluation = write_files(tmp_path / "files", kind, count)
    name = {"regression": "pair", "qa2": "qa"}.get(kind, kind)
    return Options(name, checkpoint, DataOptions(train, evaluation, max_length=32), tmp_path / "out", setting, **values)


def printed(console: Any) -> str:
    return console.file.getvalue()
