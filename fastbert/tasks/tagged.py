"""Examples of the task `tag`: sentences with a tag per word, from CoNLL, or from JSON with tags or with spans of characters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastbert.utils.errors import InputError

from .conll import Conll
from .formats import CONLL_TOO, TAGGED, format_of
from .lines import Lines, opened
from .rows import Row, Table, read_table
from .tags import TAGS, bio_tags, is_tag, scheme_of
from .windows import split_words

SPAN_NAMES = ("slots", "spans", "entities", "labels", "label")
TAG_NAMES = ("tags", "ner_tags", "labels", "slots")
WORD_NAMES = ("tokens", "words")


@dataclass(frozen=True)
class TaggedExample:
    """A sentence. tags: one per word, or None where labels are not read. offsets: (start, end) of each word in the text."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    text: str
    offsets: tuple[tuple[int, int], ...]
    line: int


@dataclass(frozen=True)
class Tagged:
    """The examples of a file.

    format: of the file, in words. mixed_words: words that the end of a span cuts; a whole word belongs to the span. characters:
    whether every word is a single character, blanks included.
    """

    file: Path
    format: str
    examples: tuple[TaggedExample, ...]
    mixed_words: int = 0
    characters: bool = False


def read_tagged(file: Path, tokenizer: Any, *, labelled: bool = True, format_: str | None = None) -> Tagged:
    """Reads all sentences of a file.

    CoNLL: a word per line, its first column the word, its last the tag, separated by tabs or blanks; a blank line ends a
    sentence; `-DOCSTART-` and comments are ignored, see `conll`. JSON and JSONL: "tokens" with "tags", or "text" with spans as
    [start, end, label] or {"start", "end", "label"} under one of SPAN_NAMES, split into words by `tokenizer`. The tags of a
    file are of one scheme, see `tags`.
    labelled: False reads no tags. format_: one of TAGGED, None for that of the suffix; .txt, .tsv and .tab are CoNLL too.
    Raises InputError, with file and line, where words and tags differ in number, a tag is invalid, a span is not within its
    text or overlaps another, or a text is empty.
    """
    kind = format_of(file, TAGGED, format_, dict.fromkeys(CONLL_TOO, "conll"))
    if kind == "conll":
        found = _conll(file, labelled)
    else:
        found = _json(read_table(file, format_=kind), kind.upper(), tokenizer, labelled)
    if not found.examples:
        raise InputError(f"expected sentences in {file}, got none")
    try:
        scheme_of(tag for example in found.examples for tag in example.tags or ())
    except ValueError as error:
        raise InputError(f"{error} in {file}") from error
    return found


def with_offsets(words: Sequence[str], characters: bool = False) -> tuple[str, tuple[tuple[int, int], ...]]:
    """(text, offsets of the words): the words joined by blanks, or, where they are characters, by nothing."""
    separator = "" if characters else " "
    offsets, start = [], 0
    for word in words:
        offsets.append((start, start + len(word)))
        start += len(word) + len(separator)
    return separator.join(words), tuple(offsets)


def split_characters(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """(characters, offsets): the words for a model that tags characters."""
    return list(text), [(start, start + 1) for start in range(len(text))]


def _conll(file: Path, labelled: bool) -> Tagged:
    with opened(file) as handle:
        lines = Lines(handle, str(file))
        conll = Conll(lines, lines.sample()[0], str(file), labelled=labelled)
        sentences = list(conll)
    characters = bool(sentences) and all(len(word) == 1 for sentence in sentences for word in sentence.columns[0])
    examples = []
    for sentence in sentences:
        words, tags = sentence.columns[0], sentence.columns[-1] if labelled else None
        text, offsets = with_offsets(words, characters)
        examples.append(TaggedExample(words, tags, text, offsets, sentence.line))
    separator, unit = "tabs" if conll.separator == "\t" else "blanks", "character" if characters else "word"
    kind = f"CoNLL, {conll.columns} columns with {separator}, a {unit} a line"
    return Tagged(file, kind, tuple(examples), characters=characters)


def _json(table: Table, kind: str, tokenizer: Any, labelled: bool) -> Tagged:
    rows = table.rows
    word_column = next((name for name in WORD_NAMES if name in table.columns), None)
    if word_column is not None:
        tag_column = next((name for name in TAG_NAMES if name in table.columns), None)
        if labelled and tag_column is None:
            raise table.error(rows[0], f"tags as one of {', '.join(TAG_NAMES)}", ", ".join(table.columns))
        return _tokens(table, kind, word_column, tag_column if labelled else None)
    if "text" not in table.columns:
        raise table.error(rows[0], "text, or tokens", ", ".join(table.columns))
    column = next((name for name in SPAN_NAMES if name in table.columns), None)
    if labelled and column is None:
        raise table.error(rows[0], f"spans as one of {', '.join(SPAN_NAMES)}", ", ".join(table.columns))
    for row in rows:
        text = row.values.get("text")
        if not isinstance(text, str) or not text.strip():
            raise table.error(row, "text", "an empty one" if isinstance(text, str) else repr(text))
    examples, mixed = [], 0
    for row, (words, offsets) in zip(rows, split_words(tokenizer, [row.values["text"] for row in rows])):
        tags = None
        if labelled and column is not None:
            entities = _spans(table, row, column)
            tags = tuple(bio_tags(entities, offsets))
            edges = {edge for start, end, _ in entities for edge in (start, end)}
            mixed += sum(any(start < edge < end for edge in edges) for start, end in offsets)
        examples.append(TaggedExample(tuple(words), tags, row.values["text"], tuple(offsets), row.line))
    return Tagged(table.file, f"{kind}, spans in {column}" if labelled else f"{kind}, text", tuple(examples), mixed)


def _tokens(table: Table, kind: str, word_column: str, tag_column: str | None) -> Tagged:
    examples = []
    for row in table.rows:
        words = row.values.get(word_column)
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
            raise table.error(row, f"a list of words as {word_column}", repr(words)[:80])
        tags = None
        if tag_column is not None:
            tags = row.values.get(tag_column)
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise table.error(row, f"a list of tags, as text, as {tag_column}", repr(tags)[:80])
            if len(tags) != len(words):
                raise table.error(row, f"{len(words)} tags, one per word", str(len(tags)))
            for tag in tags:
                if not is_tag(tag):
                    raise table.error(row, f"a tag ({TAGS})", repr(tag))
        text, offsets = with_offsets(words)
        examples.append(TaggedExample(tuple(words), None if tags is None else tuple(tags), text, offsets, row.line))
    return Tagged(table.file, f"{kind}, {word_column}" + (f" with {tag_column}" if tag_column else ""), tuple(examples))


def _spans(table: Table, row: Row, column: str) -> list[tuple[int, int, str]]:
    """(start, end, label) of each span of a row, in order. Raises InputError for invalid or overlapping ones."""
    text, value = row.values["text"], row.values.get(column)
    if not isinstance(value, list):
        raise table.error(row, f"a list of spans as {column}", repr(value)[:80])
    found = []
    for span in value:
        start = end = label = None
        if isinstance(span, dict):
            start, end, label = span.get("start"), span.get("end"), span.get("label", span.get("entity", span.get("type")))
        elif isinstance(span, list) and len(span) == 3:
            start, end, label = span
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(label, str) or not label:
            raise table.error(row, "spans as [start, end, label]", repr(span)[:80])
        if not 0 <= start < end <= len(text):
            raise table.error(row, f"a span inside of the text, 0 to {len(text)}", f"{start} to {end}")
        found.append((start, end, label))
    found.sort()
    for before, after in zip(found, found[1:]):
        if after[0] < before[1]:
            raise table.error(row, "spans that do not overlap", f"{list(before)} and {list(after)}")
    return found
