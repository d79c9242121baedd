"""Joining, truncation, special tokens, buckets."""

import numpy as np
import pytest

from polyjax import InputError
from polyjax.data.text import TextConfig, TextEncoder


class Letters:
    """A tokenizer whose tokens are letters: a = 10, b = 11, ..."""

    vocab_size, pad_id, start_id, end_id, separator_ids, mask_id = 50, 0, 1, 2, (3,), 4

    def __init__(self):
        self.calls = 0

    def encode(self, texts):
        self.calls += 1
        return [[ord(letter) - ord("a") + 10 for letter in text] for text in texts]

    def save(self, folder):
        raise AssertionError("not saved here")


@pytest.fixture
def text() -> TextEncoder:
    return TextEncoder(
        Letters(), TextConfig(max_turns=3, context_tokens=8, candidate_tokens=5, buckets=(4, 8, 16))
    )


def test_context_joins_turns_with_separators(text):
    assert text.context(["a", "bc"]).tolist() == [1, 10, 3, 11, 12, 2]


def test_context_keeps_the_last_turns_and_cuts_on_the_left(text):
    assert text.context(["zzz", "a", "b", "c"]).tolist() == [1, 10, 3, 11, 3, 12, 2]
    assert text.context(["abcd", "efgh"]).tolist() == [1, 13, 3, 14, 15, 16, 17, 2]


def test_candidate_is_cut_on_the_right_and_keeps_its_end(text):
    assert text.candidate("abcdef").tolist() == [1, 10, 11, 12, 2]


def test_empty_texts_are_start_and_end(text):
    assert text.candidate("").tolist() == [1, 2]
    assert text.context([""]).tolist() == [1, 2]


def test_pair_has_one_start_and_two_segments(text):
    pair = text.pair(text.context(["a"]), text.candidate("b"))
    assert (pair[0].tolist(), pair[1]) == ([1, 10, 2, 11, 2], 3)
    tokens = text.pad_pairs([pair])
    assert tokens.ids.tolist() == [[1, 10, 2, 11, 2, 0, 0, 0]]
    assert tokens.segments.tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]


def test_padding_fills_the_bucket(text):
    tokens = text.pad_contexts([np.array([1, 10, 2]), np.array([1, 10, 11, 12, 2])])
    assert tokens.ids.tolist() == [[1, 10, 2, 0, 0, 0, 0, 0], [1, 10, 11, 12, 2, 0, 0, 0]]
    np.testing.assert_array_equal(tokens.mask, tokens.ids != 0)


def test_the_limit_is_the_last_bucket(text):
    assert text.pad_candidates([text.candidate("abcdef")]).ids.shape == (1, 5)


def test_a_prepared_text_is_not_tokenised_again(text):
    text.prepare(["ab", "c", "ab"])
    calls = text.tokenizer.calls
    assert text.candidate("ab").tolist() == [1, 10, 11, 2]
    assert text.tokenizer.calls == calls


def test_longer_than_the_positions_is_refused():
    config = TextConfig(context_tokens=128, candidate_tokens=48)
    config.check_positions(128, paired=False)
    with pytest.raises(InputError, match="context_tokens is 128, longer than the encoder's 100 positions"):
        config.check_positions(100, paired=False)
    with pytest.raises(InputError, match="is 175, longer than the encoder's 128 positions"):
        config.check_positions(128, paired=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_turns": 0}, "max_turns must be at least 1"),
        ({"candidate_tokens": 2}, "candidate_tokens must be at least 3"),
        ({"buckets": (8, 4)}, "buckets must be increasing"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TextConfig(**changes)
