"""From the logits of a sentence's windows to a tag per word, and from tags to entities with their place in the text.

A tag is O, or a mark with the type of an entity, as B-PER, or alone, as B. Marks are B and I in IOB1 and IOB2 (BIO); B, I, E
and S in BIOES; and B, I, L and U in BILOU, where L and U mean what E and S do.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .windows import WordWindow, best_windows

OUTSIDE = "O"
NO_TYPE = "_"  # the type of a mark alone, as seqeval calls it
SCHEMES = {"BIO": "BI", "BIOES": "BIES", "BILOU": "BILU"}
TAGS = "O, or B, I, E, S, L or U, alone or as B-TYPE"
_AS_BIOES = {"L": "E", "U": "S"}


@dataclass(frozen=True)
class Span:
    """An entity: label, text[start:end], and the mean probability of its words' tags where one is known."""

    label: str
    start: int
    end: int
    text: str
    probability: float | None = None


def is_tag(tag: str) -> bool:
    """Whether it is one of TAGS."""
    return tag == OUTSIDE or (tag[:1] in tuple("BIESLU") and (len(tag) == 1 or (tag[1] == "-" and len(tag) > 2)))


def tag_type(tag: str) -> str:
    """The type of a tag's entity, NO_TYPE of a mark alone; O of O."""
    return tag if tag == OUTSIDE else tag[2:] or NO_TYPE


def scheme_of(tags: Iterable[str]) -> str:
    """The first of SCHEMES that has all marks of the tags. Raises ValueError where none has, or one is no tag."""
    found = set(tags)
    odd = sorted(tag for tag in found if not is_tag(tag))
    if odd:
        raise ValueError(f"expected tags ({TAGS}), got {odd[0]!r}")
    marks = {tag[0] for tag in found} - {OUTSIDE}
    for name, known in SCHEMES.items():
        if marks <= set(known):
            return name
    raise ValueError(f"expected tags of one scheme, {', '.join(SCHEMES)}, got the marks {', '.join(sorted(marks))}")


def all_tags(tags: Iterable[str]) -> list[str]:
    """O and every mark of the tags' scheme with every type that occurs: the labels of a model that is trained on them."""
    found = set(tags)
    endings = sorted({tag[1:] for tag in found if tag != OUTSIDE})
    return [OUTSIDE, *(mark + ending for ending in endings for mark in SCHEMES[scheme_of(found)])]


def as_bioes(tag: str) -> str:
    """The tag with E and S for L and U of BILOU, which seqeval's lenient count does not know."""
    return _AS_BIOES.get(tag[:1], tag[:1]) + tag[1:]


def word_logits(windows: Sequence[WordWindow], logits: Sequence[np.ndarray], num_words: int) -> np.ndarray:
    """The logits of each word's first piece, float64 (num_words, labels), from the window where it has most context.

    logits: (tokens, labels) per window. A word that has no pieces (a blank, a control character) has a row of NaN.
    Raises ValueError where logits and windows do not fit.
    """
    if not windows or len(windows) != len(logits):
        raise ValueError(f"expected logits for each of at least one window, got {len(logits)} for {len(windows)}")
    found = np.full((num_words, logits[0].shape[-1]), np.nan)
    for word, place in enumerate(best_windows(windows, num_words)):
        if place is not None:
            number, token = place
            found[word] = logits[number][token]
    return found


def word_tags(logits: np.ndarray, labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(tags, probabilities float64 (words,)) of what `word_logits` gives; every word gets a tag.

    A word without pieces gets the tag inside the entity that goes on around it, else O; its probability is 1.
    """
    known = ~np.isnan(logits).any(-1) if len(logits) else np.zeros(0, bool)
    best = np.where(known, np.argmax(np.where(known[:, None], logits, 0.0), -1), -1) if len(logits) else known
    tags = [labels[int(one)] if one >= 0 else "" for one in best]
    shifted = np.exp(logits - logits.max(-1, keepdims=True)) if len(logits) else logits
    probabilities = np.where(known, shifted.max(-1) / shifted.sum(-1), 1.0) if len(logits) else np.zeros(0)
    after = OUTSIDE
    following = []
    for tag in reversed(tags):
        after = tag or after
        following.append(after)
    following.reverse()
    inside = {label for label in labels if label[:1] == "I"} if all(map(is_tag, labels)) else set()
    for place, tag in enumerate(tags):
        if not tag:
            before, within = tags[place - 1] if place else OUTSIDE, "I" + following[place][1:]
            tags[place] = within if within in inside and _goes_on(before, following[place]) else OUTSIDE
    return tags, probabilities


def spans(
    tags: Sequence[str], offsets: Sequence[tuple[int, int]], text: str, probabilities: Iterable[float] | None = None
) -> list[Span]:
    """The entities of tags, as seqeval and conlleval find them; a tag that nothing comes before begins one whatever its mark.

    offsets: where each word begins and ends in the text, in characters. L and U are read as E and S. The label of a mark alone
    is NO_TYPE.
    """
    shares = list(probabilities) if probabilities is not None else None
    runs: list[tuple[str, int, int]] = []  # label, first word, last word
    previous = OUTSIDE
    for word, tag in enumerate(tags):
        if _goes_on(previous, tag):
            runs[-1] = runs[-1][0], runs[-1][1], word
        elif tag != OUTSIDE:
            runs.append((tag_type(tag), word, word))
        previous = tag
    found = []
    for label, first, last in runs:
        start, end = offsets[first][0], offsets[last][1]
        mean = None if shares is None else float(np.mean(shares[first : last + 1]))
        found.append(Span(label, start, end, text[start:end], mean))
    return found


def _goes_on(before: str, tag: str) -> bool:
    """Whether the tag is of the same entity as the one before it."""
    return as_bioes(before)[:1] in ("B", "I") and as_bioes(tag)[:1] in ("I", "E") and tag_type(before) == tag_type(tag)


def bio_tags(entities: Sequence[tuple[int, int, str]], offsets: Sequence[tuple[int, int]]) -> list[str]:
    """A BIO tag per word. entities: (start, end, label) in characters, none over another.

    A word belongs to the entity that covers any of its characters, the first where there are two.
    """
    tags = [OUTSIDE] * len(offsets)
    for start, end, label in sorted(entities):
        mark = "B-"
        for word, (begin, stop) in enumerate(offsets):
            if begin < end and stop > start and tags[word] == OUTSIDE:
                tags[word] = mark + label
                mark = "I-"
    return tags
