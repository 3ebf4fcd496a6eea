"""Windows of long inputs: nothing is lost, and every position is kept."""

import random

import numpy as np
import pytest

from fastbert.tasks.windows import answer_tokens, best_windows, question_windows, split_words, word_windows
from fastbert.utils.errors import InputError

WORDS = "the king of france was born in paris , anna unbelievableness played rome 1234 . ann's city".split()


def test_windows_of_a_context_are_those_of_the_whole_text_cut_with_overlap(tokenizer):
    rng = random.Random(0)
    context = " ".join(rng.choice(WORDS) for _ in range(120))
    question = "who was born in paris ?"
    windows = list(question_windows(tokenizer, [question], [context], max_length=40, stride=12))
    whole = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    asked = tokenizer(question, add_special_tokens=False)["input_ids"]
    step, at = 40 - 3 - len(asked) - 12, 0
    assert len(windows) > 5
    for number, window in enumerate(windows):
        part = whole["input_ids"][at : at + step + 12]
        assert window.input_ids.tolist() == [2, *asked, 3, *part, 3]
        assert window.token_type_ids.tolist() == [0] * (len(asked) + 2) + [1] * (len(part) + 1)
        kept = window.offsets[window.offsets[:, 0] >= 0]
        assert kept.tolist() == [list(pair) for pair in whole["offset_mapping"][at : at + step + 12]]
        assert len(window) <= 40
        assert not window.question_cut
        at += step
        assert number == len(windows) - 1 or len(window) == 40
    assert at + 12 >= len(whole["input_ids"])


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_no_longer_than_the_stride_is_whole_in_some_window(tokenizer, seed):
    rng = random.Random(seed)
    context = "  ".join(rng.choice(WORDS) for _ in range(80))
    pieces = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    windows = list(question_windows(tokenizer, ["who ?"], [context], max_length=32, stride=8))
    for first in range(len(pieces)):
        for length in range(1, 9):
            if first + length > len(pieces):
                break
            start, end = pieces[first][0], pieces[first + length - 1][1]
            spans = [(window, answer_tokens(window, start, end)) for window in windows]
            found = [(window, span) for window, span in spans if span]
            assert found
            for window, (begin, stop) in found:
                assert (window.offsets[begin, 0], window.offsets[stop, 1]) == (start, end)


def test_an_answer_that_a_window_cuts_is_not_in_it(tokenizer):
    context = "anna was the queen of england"
    windows = list(question_windows(tokenizer, ["who ?"], [context], max_length=9, stride=1))

    def found(answer: str) -> list[bool]:
        start = context.index(answer)
        return [answer_tokens(window, start, start + len(answer)) is not None for window in windows]

    # the windows are "anna was the" and "the queen of england"
    assert found("was the queen") == [False, False]
    assert found("anna was the") == [True, False]
    assert found("the queen of") == [False, True]
    assert found("the") == [True, True]


def test_an_answer_inside_a_word_is_the_pieces_that_hold_it(tokenizer):
    window = next(iter(question_windows(tokenizer, ["who ?"], ["unbelievableness !"], max_length=32, stride=4)))
    first, last = answer_tokens(window, 4, 8)  # "liev" of un ##believ ##able ##ness
    assert window.offsets[first].tolist() == [2, 8]
    assert (first, last) == (first, first)


def test_a_long_question_is_cut_and_marked(tokenizer):
    windows = list(
        question_windows(
            tokenizer, ["who " * 90, "who ?"], ["anna was born"] * 2, max_length=64, stride=16, max_question_length=20
        )
    )
    assert [(window.example, window.question_cut) for window in windows] == [(0, True), (1, False)]
    assert windows[0].input_ids.tolist().count(tokenizer.convert_tokens_to_ids("who")) == 20
    # Where the context would not move on, the question gives way further.
    windows = list(question_windows(tokenizer, ["who " * 90], ["anna was born in rome " * 9], max_length=32, stride=16))
    assert {len(window) for window in windows[:-1]} == {32}
    pieces = tokenizer("anna was born in rome " * 9, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    seen = {tuple(pair) for window in windows for pair in window.offsets.tolist() if pair[0] >= 0}
    assert seen == {tuple(pair) for pair in pieces}


@pytest.mark.parametrize(("max_length", "stride"), [(32, 31), (32, 28), (10, 64), (32, -1)])
def test_a_stride_without_room_is_refused(tokenizer, max_length, stride):
    with pytest.raises(InputError, match=f"got a stride of {stride} and a max_length of {max_length}"):
        list(question_windows(tokenizer, ["who ?"], ["anna"], max_length=max_length, stride=stride))


def test_every_word_with_pieces_is_read_at_its_first_piece_where_it_has_most_context(tokenizer):
    rng = random.Random(1)
    sentences = [[rng.choice([*WORDS, "\u200b", " "]) for _ in range(count)] for count in (1, 7, 150, 0, 60)]
    windows = list(word_windows(tokenizer, sentences, max_length=24, stride=10))
    for number, words in enumerate(sentences):
        of_sentence = [window for window in windows if window.example == number]
        found = best_windows(of_sentence, len(words))
        for word, position in zip(words, found):
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            assert (position is None) == (not pieces)
            if position is not None:
                window, token = of_sentence[position[0]], position[1]
                assert window.input_ids[token] == pieces[0]
        for at, position in enumerate(found):
            rooms = {
                (one, token): min(token - 1, len(window) - 2 - token)
                for one, window in enumerate(of_sentence)
                for token in np.flatnonzero(window.words == at).tolist()
            }
            assert position is None or rooms[position] == max(rooms.values())
    assert len([window for window in windows if window.example == 2]) > 8


def test_inner_pieces_at_the_start_of_a_window_are_no_first_pieces(tokenizer):
    words = ["anna"] * 3 + ["unbelievableness"] * 12
    windows = list(word_windows(tokenizer, [words], max_length=13, stride=3))
    inner = set(tokenizer.convert_tokens_to_ids(["##believ", "##able", "##ness", "##a"]))
    begins_inside = [window for window in windows if window.input_ids[1] in inner]
    assert begins_inside
    for window in windows:
        assert not any(window.words[token] >= 0 for token in range(len(window)) if window.input_ids[token] in inner)


def test_a_word_twice_in_a_row_is_two_words(tokenizer):
    (window,) = word_windows(tokenizer, [["anna", "anna", "rome"]], max_length=24, stride=4)
    assert window.words.tolist() == [-1, 0, -1, 1, -1, 2, -1]


def test_words_of_a_text_are_its_parts(tokenizer):
    text = "Anna's  CITY:\tParis, unbelievable\u200b!"
    ((words, offsets),) = split_words(tokenizer, [text])
    assert words == ["Anna", "'", "s", "CITY", ":", "Paris", ",", "unbelievable", "!"]
    assert [text[start:end] for start, end in offsets] == words
