"""From the logits of a sentence's windows to a tag per word, and from tags to entities with their position in the text.

A tag is O, or a mark with the type of an entity, such as B-PER, or a mark alone, such as B. Marks are B and I in IOB1 and IOB2
(BIO); B, I, E and S in BIOES; and B, I, L and U in BILOU, where L and U mean E and S.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .windows import WordWindow, best_windows

OUTSIDE = "O"
NO_TYPE = "_"  # the type of a mark alone, as in seqeval
SCHEMES = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU"}
TAGS = "O, or B, I, E, S, L or U, alone or as B-TYPE"
_AS_BIOES = {"L": "E", "U": "S"}


@dataclass(frozen=True)
class Span:
    """An entity. text: that of start to end. probability: the mean over its words' tags, where these are known."""

    label: str
    start: int
    end: int
    text: str
    probability: float | None = None


def is_tag(tag: str) -> bool:
    """Whether it has the form of a tag, see TAGS."""
    return tag == OUTSIDE or (tag[:1] in tuple("BIESLU") and (len(tag) == 1 or (tag[1] == "-" and len(tag) > 2)))


def tag_type(tag: str) -> str:
    """The type of a tag's entity: NO_TYPE for a mark alone, O for O."""
    return tag if tag == OUTSIDE else tag[2:] or NO_TYPE


def scheme_of(tags: Iterable[str]) -> str:
    """The first of SCHEMES that has all marks of the tags. Raises ValueError where none has them, and for an invalid tag."""
    found = set(tags)
    invalid = sorted(tag for tag in found if not is_tag(tag))
    if invalid:
        raise ValueError(f"expected tags ({TAGS}), got {invalid[0]!r}")
    marks = {tag[0] for tag in found} - {OUTSIDE}
    for name, known in SCHEMES.items():
        if marks <= set(known):
            return name
    raise ValueError(f"expected tags of one scheme, {', '.join(SCHEMES)}, got the marks {', '.join(sorted(marks))}")


def all_tags(tags: Iterable[str]) -> list[str]:
    """The labels of a model trained on these tags: O, and every mark of their scheme with every type that occurs."""
    found = set(tags)
    endings = sorted({tag[1:] for tag in found if tag != OUTSIDE})
    return [OUTSIDE, *(mark + ending for ending in endings for mark in SCHEMES[scheme_of(found)])]


def as_bioes(tag: str) -> str:
    """The tag with the marks L and U of BILOU replaced by E and S, which seqeval's default mode knows."""
    return _AS_BIOES.get(tag[:1], tag[:1]) + tag[1:]


def word_logits(windows: Sequence[WordWindow], logits: Sequence[np.ndarray], num_words: int) -> np.ndarray:
    """The logits of each word's first piece, float64 (num_words, labels), from the window where it has most context.

    logits: (tokens, labels) per window. A word without pieces (a blank, a control character) has a row of NaN.
    Raises ValueError for another number of logits than windows, and for none.
    """
    if not windows or len(windows) != len(logits):
        raise ValueError(f"expected logits for each of at least one window, got {len(logits)} for {len(windows)}")
    found = np.full((num_words, logits[0].shape[-1]), np.nan)
    for word, position in enumerate(best_windows(windows, num_words)):
        if position is not None:
            window, token = position
            found[word] = logits[window][token]
    return found


def word_tags(logits: np.ndarray, labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(tags, probabilities float64 (words,)) of the result of `word_logits`.

    A word without pieces gets the inside tag of an entity that continues after it, else O; its probability is 1.
    """
    known = ~np.isnan(logits).any(-1) if len(logits) else np.zeros(0, bool)
    best = np.where(known, np.argmax(np.where(known[:, None], logits, 0.0), -1), -1) if len(logits) else known
    tags = [labels[int(label)] if label >= 0 else "" for label in best]
    shifted = np.exp(logits - logits.max(-1, keepdims=True)) if len(logits) else logits
    probabilities = np.where(known, shifted.max(-1) / shifted.sum(-1), 1.0) if len(logits) else np.zeros(0)
    after = OUTSIDE
    following = []
    for tag in reversed(tags):
        after = tag or after
        following.append(after)
    following.reverse()
    inside = {label for label in labels if label[:1] == "I"} if all(map(is_tag, labels)) else set()
    for word, tag in enumerate(tags):
        if not tag:
            before, within = tags[word - 1] if word else OUTSIDE, "I" + following[word][1:]
            tags[word] = within if within in inside and _continues(before, following[word]) else OUTSIDE
    return tags, probabilities


def spans(
    tags: Sequence[str], offsets: Sequence[tuple[int, int]], text: str, probabilities: Iterable[float] | None = None
) -> list[Span]:
    """The entities of tags, as seqeval and conlleval find them: a tag that continues no entity begins one, whatever its mark.

    offsets: (start, end) of each word in the text, in characters. probabilities: of the words' tags. L and U are read as E and
    S. The label of a mark alone is NO_TYPE.
    """
    of_words = list(probabilities) if probabilities is not None else None
    runs: list[tuple[str, int, int]] = []  # label, first word, last word
    previous = OUTSIDE
    for word, tag in enumerate(tags):
        if _continues(previous, tag):
            runs[-1] = runs[-1][0], runs[-1][1], word
        elif tag != OUTSIDE:
            runs.append((tag_type(tag), word, word))
        previous = tag
    found = []
    for label, first, last in runs:
        start, end = offsets[first][0], offsets[last][1]
        mean = None if of_words is None else float(np.mean(of_words[first : last + 1]))
        found.append(Span(label, start, end, text[start:end], mean))
    return found


def _continues(before: str, tag: str) -> bool:
    """Whether a tag belongs to the entity of the tag before it."""
    return as_bioes(before)[:1] in ("B", "I") and as_bioes(tag)[:1] in ("I", "E") and tag_type(before) == tag_type(tag)


def bio_tags(entities: Sequence[tuple[int, int, str]], offsets: Sequence[tuple[int, int]]) -> list[str]:
    """A BIO tag per word. entities: (start, end, label) in characters, without overlap. offsets: as in `spans`.

    A word belongs to the first entity that covers any of its characters.
    """
    tags = [OUTSIDE] * len(offsets)
    for start, end, label in sorted(entities):
        mark = "B-"
        for word, (begin, stop) in enumerate(offsets):
            if begin < end and stop > start and tags[word] == OUTSIDE:
                tags[word] = mark + label
                mark = "I-"
    return tags
