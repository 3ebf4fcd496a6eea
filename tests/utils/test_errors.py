"""The errors that a user can act on."""

from fastbert.utils.errors import MAX_MESSAGE_CHARACTERS, Resumable, in_one_line


def test_the_message_of_a_stop_is_not_an_error_of_the_disk():
    assert not isinstance(Resumable("", 130), OSError)


def test_a_message_of_many_lines_becomes_a_short_one():
    assert in_one_line(ValueError("one\n  two\n")) == "one two"
    assert in_one_line(KeyError()) == "KeyError"
    assert len(in_one_line(ValueError("word " * 1000))) <= MAX_MESSAGE_CHARACTERS
