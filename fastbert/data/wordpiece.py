"""A WordPiece vocabulary from text, saved as transformers' BertTokenizer (Devlin et al. 2019, §3; Wu et al. 2016, §4.1).

The library `tokenizers` counts and merges. By itself it numbers the characters in the order of a randomly seeded hash map, so
two runs give two vocabularies; here every character has its number before training, so one input gives one vocabulary.
"""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastbert.utils.errors import DataError, InputError
from fastbert.utils.existing_outputs import exists_error, foreign_folder_error, visible_names
from fastbert.utils.files import name_file
from fastbert.utils.locks import locked_replacement

from .documents import Report, Source, open_sources, total_size

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json")
PREFIX = "##"
MODEL_MAX_LENGTH = 512
MAX_HANGUL_SHARE = 1e-3  # of the characters, up to which accents are stripped by default


def train_wordpiece(
    names: Sequence[str],
    out: str | Path,
    *,
    vocab_size: int,
    cased: bool = False,
    strip_accents: bool | None = None,
    min_frequency: int = 2,
    character_coverage: float = 0.9999,
    overwrite: bool = False,
    report: Report | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains a vocabulary and saves the tokenizer in `out`, a new or empty folder, whole or not at all.

    names: files and data sets, see `documents`. vocab_size: entries, special tokens and characters included; the text may give
    fewer. cased: keep capitals. strip_accents: é becomes e; None does so where capitals are removed too, unless more than
    MAX_HANGUL_SHARE of the characters are Hangul, whose syllables would be split into letters. min_frequency: of a pair to be
    merged and of a character to be kept. character_coverage: share of the text whose characters are kept, the most frequent
    first; a word with another character becomes [UNK]. overwrite: replace a tokenizer in `out`. say: called with a line for
    the user.

    Returns vocab_size, characters (kept), characters_left_out, documents, sentences, strip_accents.
    Raises DataError for options out of range, text that cannot be read, a vocabulary too small for the characters; InputError
    for a folder that holds something else, or a tokenizer without overwrite, or that another run writes to.
    """
    report = report or (lambda stage, done, total, documents: None)
    if vocab_size <= len(SPECIAL_TOKENS):
        raise DataError(f"expected a vocabulary of more than the {len(SPECIAL_TOKENS)} special tokens, got {vocab_size}")
    if min_frequency < 1:
        raise DataError(f"expected a least frequency of 1 or more, got {min_frequency}")
    if not 0 < character_coverage <= 1:
        raise DataError(f"expected a character coverage above 0 and at most 1, got {character_coverage}")
    if cased and strip_accents:
        raise DataError("expected accents to be kept with capitals, got both cased and strip_accents")
    out = Path(out)
    with locked_replacement(out, say):
        _check_folder(out, overwrite)
        sources = open_sources(names)

        # Accents are stripped from the counts, not from the text: only its end decides whether they are.
        counts, documents, sentences = _count_characters(sources, report)
        if strip_accents is None:
            strip_accents = not cased and _hangul_share(counts) <= MAX_HANGUL_SHARE
        normalizer = _normalizer(cased, strip_accents)
        alphabet, left_out = _alphabet(counts, normalizer, min_frequency, character_coverage)
        continuing = [PREFIX + character for character in alphabet if _continues(character)]
        needed = len(SPECIAL_TOKENS) + len(alphabet) + len(continuing)
        if vocab_size < needed:
            raise DataError(
                f"expected a vocabulary of at least {needed} for this text ({len(SPECIAL_TOKENS)} special tokens, "
                f"{len(alphabet)} characters, {len(continuing)} of them inside words too), got {vocab_size}"
            )
        vocabulary = _train(sources, normalizer, alphabet, continuing, vocab_size, min_frequency, documents, report)
        _save(out, vocabulary, cased, strip_accents)
        return {
            "vocab_size": len(vocabulary),
            "characters": len(alphabet),
            "characters_left_out": left_out,
            "documents": documents,
            "sentences": sentences,
            "strip_accents": strip_accents,
        }


def _check_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"expected a folder to write to, got the file {out}")
    names = visible_names(out)
    if others := [name for name in names if name not in FILES]:
        raise foreign_folder_error(out, "tokenizer", others[0])
    if names and not overwrite:
        raise exists_error(out, "is finished", resumable=False)


def _count_characters(sources: Sequence[Source], report: Report) -> tuple[Counter[str], int, int]:
    """(count of each character, documents, sentences)."""
    counts: Counter[str] = Counter()
    documents = sentences = 0
    total = total_size(sources)
    before = 0
    for source in sources:
        for document in source:
            documents += 1
            sentences += len(document.sentences)
            for sentence in document.sentences:
                counts.update(sentence)
            report("characters", before + document.read, total, documents)
        before += source.size or 0
    return counts, documents, sentences


def _hangul_share(counts: Counter[str]) -> float:
    hangul = sum(count for character, count in counts.items() if "\uac00" <= character <= "\ud7a3")
    return hangul / max(sum(counts.values()), 1)


def _normalizer(cased: bool, strip_accents: bool) -> Any:
    from tokenizers.normalizers import BertNormalizer

    return BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=strip_accents, lowercase=not cased)


def _alphabet(counts: Counter[str], normalizer: Any, min_frequency: int, coverage: float) -> tuple[list[str], int]:
    """(kept characters, as the normalizer leaves them, by code point; how many others there are)."""
    seen: Counter[str] = Counter()
    for character, count in counts.items():
        for part in normalizer.normalize_str(character):
            if not part.isspace():
                seen[part] += count
    kept: list[str] = []
    covered = 0
    enough = coverage * sum(seen.values())
    for character, count in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if count < min_frequency or covered >= enough:
            break
        kept.append(character)
        covered += count
    return sorted(kept), len(seen) - len(kept)


def _continues(character: str) -> bool:
    """Whether it can be inside a word: each punctuation mark and Chinese character is a word by itself."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    spaced = BertNormalizer(clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False)
    return len(BertPreTokenizer().pre_tokenize_str(spaced.normalize_str(f"a{character}a"))) == 1


def _train(
    sources: Sequence[Source],
    normalizer: Any,
    alphabet: list[str],
    continuing: list[str],
    vocab_size: int,
    min_frequency: int,
    documents: int,
    report: Report,
) -> list[str]:
    """The vocabulary in the order of its ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    def sentences() -> Iterator[list[str]]:
        for number, document in enumerate((document for source in sources for document in source), 1):
            yield document.sentences
            report("words", number, documents, number)
        report("merges", 0, None, documents)

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Special tokens are numbered in this order; initial_alphabet and its limit exclude other characters.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *continuing],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=PREFIX,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if [number for _, number in vocabulary] != list(range(len(vocabulary))):
        raise RuntimeError("expected the trainer to number the vocabulary without gaps")
    return [token for token, _ in vocabulary]


def _save(out: Path, vocabulary: list[str], cased: bool, strip_accents: bool) -> None:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        do_lower_case=not cased,
        strip_accents=strip_accents,
        model_max_length=MODEL_MAX_LENGTH,
    )
    partial, old = out.with_name(f".{out.name}.{os.getpid()}"), out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        tokenizer.save_pretrained(partial)
        if out.exists():
            out.rename(old)
        partial.rename(out)
    except OSError as error:
        name_file(error, out)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
