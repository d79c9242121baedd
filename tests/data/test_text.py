"""Joining, truncation, special tokens, buckets."""

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from polyjax import InputError
from polyjax.data.text import TextConfig, TextEncoder, longest_first


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


class Paired(Letters):
    """With a template as RoBERTa's: two end tokens between texts, no segments."""

    between_ids, pair_segments = (2,), False


def test_a_template_says_what_is_between_two_texts():
    text = TextEncoder(Paired(), TextConfig(context_tokens=8, candidate_tokens=5))
    row, first = text.pair(text.context(["a"]), text.candidate("b"))
    assert (row.tolist(), first) == ([1, 10, 2, 2, 11, 2], 6)
    assert text.pair_length(3, 3) == 6
    assert text.pad_pairs([(row, first)]).segments.sum() == 0


@pytest.mark.parametrize(
    ("first", "second", "kept"), [("abcdef", "gh", "abcd+gh"), ("ab", "cdefgh", "ab+cdef")]
)
def test_the_longer_text_of_a_pair_is_cut_first(first, second, kept):
    text = TextEncoder(Letters(), TextConfig(context_tokens=3, candidate_tokens=3, pair_tokens=9))
    row, n = text.pair(text.context([first]), text.candidate(second))
    a, b = ([ord(letter) - 87 for letter in part] for part in kept.split("+"))
    assert row.tolist() == [1, *a, 2, *b, 2] and n == len(a) + 2
    assert len(row) == text.config.pair_limit()
    lengths = text.context_length([first]), text.candidate_length(second)
    assert lengths == (len(first) + 2, len(second) + 2) and text.pair_length(*lengths) == len(row)


@given(first=st.integers(0, 40), second=st.integers(0, 40), room=st.integers(2, 40))
def test_longest_first_is_that_of_the_tokenizers(first, second, room):
    words = tokenizers.Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.enable_truncation(room, strategy="longest_first")
    ids = words.encode("a " * first, "b " * second).ids
    assert longest_first(first, second, room) == (ids.count(1), ids.count(2))


def test_of_a_single_text_the_end_is_cut_where_asked_for():
    config = TextConfig(context_tokens=5, cut="end")
    text = TextEncoder(Letters(), config)
    assert text.context(["abcdef"]).tolist() == [1, 10, 11, 12, 2]
    assert text.context(["abc", "def"]).tolist() == [1, 13, 14, 15, 2]  # of several turns the oldest tokens


PROMPTS = {"context_prompt": "qq", "candidate_prompt": "p", "prompts": (("query", "qq"), ("document", "p"))}


def test_prompts_are_put_before_what_is_read():
    text = TextEncoder(Letters(), TextConfig(max_turns=2, context_tokens=9, candidate_tokens=4, **PROMPTS))
    q, p = ord("q") - 87, ord("p") - 87
    assert text.context(["z", "a", "b"]).tolist() == [1, q, q, 10, 3, 11, 2]
    assert text.context(["abcdefgh"]).tolist() == [1, q, q, 13, 14, 15, 16, 17, 2]  # it is not cut off
    assert text.candidate("abc").tolist() == [1, p, 10, 2]
    assert text.context_length(["z", "a", "b"]) == 7 and text.candidate_length("abc") == 4


def test_prepared_texts_are_tokenised_once_with_their_prompts():
    text = TextEncoder(Letters(), TextConfig(**PROMPTS))
    text.prepare(["a", "b"])
    text.context(["a", "b"]), text.candidate("b"), text.context(["b"])
    assert text.tokenizer.calls == 1


def test_prompts_that_do_not_count_are_attended_to_and_not_pooled():
    text = TextEncoder(Letters(), TextConfig(buckets=(8,), pool_prompts=False, **PROMPTS))
    contexts = text.pad_contexts([text.context(["ab"]), text.context(["c"])])
    assert contexts.mask.sum(1).tolist() == [6, 5]
    # start and two letters of the prompt; the end counts
    assert contexts.pooled.tolist() == [
        [False] * 3 + [True] * 3 + [False] * 2,
        [False] * 3 + [True] * 2 + [False] * 3,
    ]
    assert (
        text.pad_candidates([text.candidate("ab")]).read[0].tolist() == [False] * 2 + [True] * 3 + [False] * 3
    )
    plain = TextEncoder(Letters(), TextConfig(buckets=(8,), **PROMPTS)).pad_contexts([contexts.ids[0, :6]])
    assert plain.pooled is None and (plain.read == plain.mask).all()


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"max_turns": 0}, "max_turns"),
        ({"candidate_tokens": 2}, "candidate_tokens"),
        ({"pair_tokens": 5}, "pair_tokens"),
        ({"buckets": (8, 8)}, "buckets"),
    ],
)
def test_settings_that_cannot_work_are_named(changes, argument):
    with pytest.raises(InputError) as error:
        TextConfig(**changes)
    assert error.value.argument == f"text.{argument}"


@pytest.mark.parametrize(
    ("config", "paired", "argument"),
    [
        (TextConfig(context_tokens=80), False, "text.context_tokens"),
        (TextConfig(candidate_tokens=80, context_tokens=40), False, "text.candidate_tokens"),
        (TextConfig(context_tokens=50, candidate_tokens=20), True, "text.context_tokens"),
        (TextConfig(pair_tokens=80), True, "text.pair_tokens"),
    ],
)
def test_longer_sequences_than_positions_are_refused(config, paired, argument):
    with pytest.raises(InputError) as error:
        config.check_positions(64, paired=paired)
    assert error.value.argument == argument
