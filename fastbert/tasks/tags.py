"""From the logits of a sentence's windows to a tag per word, and from tags to entities with their place in the text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .windows import WordWindow, best_windows

OUTSIDE = "O"


@dataclass(frozen=True)
class Span:
    """An entity: label, text[start:end], and the mean probability of its words' tags where one is known."""

    label: str
    start: int
    end: int
    text: str
    probability: float | None = None


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
    for place, tag in enumerate(tags):
        if not tag:
            before = tags[place - 1] if place else OUTSIDE
            inside = following[place].startswith("I-") and before[2:] == following[place][2:]
            tags[place] = following[place] if inside else OUTSIDE
    return tags, probabilities


def spans(
    tags: Sequence[str], offsets: Sequence[tuple[int, int]], text: str, probabilities: Iterable[float] | None = None
) -> list[Span]:
    """The entities of BIO tags, as seqeval finds them: I- that follows no tag of its type begins an entity, as B- does.

    offsets: where each word begins and ends in the text, in characters.
    """
    shares = list(probabilities) if probabilities is not None else None
    runs: list[tuple[str, int, int]] = []  # label, first word, last word
    previous = OUTSIDE
    for word, tag in enumerate(tags):
        if tag != OUTSIDE:
            label = tag[2:]
            if tag.startswith("I-") and previous != OUTSIDE and previous[2:] == label:
                runs[-1] = label, runs[-1][1], word
            else:
                runs.append((label, word, word))
        previous = tag
    found = []
    for label, first, last in runs:
        start, end = offsets[first][0], offsets[last][1]
        mean = None if shares is None else float(np.mean(shares[first : last + 1]))
        found.append(Span(label, start, end, text[start:end], mean))
    return found


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
