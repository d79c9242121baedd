"""What is cut, and what becomes equal by it, is counted; labels that are all one are refused."""

import dataclasses

import pytest
from test_text import Letters

from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.truncation import (
    TRIAL_STEPS,
    candidate_losses,
    check_losses,
    losses,
    ranked_losses,
)
from polyjax.errors import InputError
from polyjax.types import Example


class Counting(Letters):
    """Counts the texts that it encodes."""

    def __init__(self):
        super().__init__()
        self.encoded: list[str] = []

    def encode(self, texts):
        self.encoded += texts
        return super().encode(texts)


def encoder(candidate_tokens: int, **options) -> TextEncoder:
    config = TextConfig(context_tokens=12, candidate_tokens=candidate_tokens, buckets=(8, 12, 16), **options)
    return TextEncoder(Counting(), config)


def rows(*labels: str, context: tuple[str, ...] = ("ab",)) -> list[Example]:
    return [Example(str(i), context, (label,), 0, "") for i, label in enumerate(labels)]


def test_what_is_cut_and_what_becomes_equal_is_counted():
    text = encoder(6)
    found = losses(
        [*rows("abcd", "abcde", "abcdf", "abx", "ABX"), *rows("ab", context=("abcdefghijk",))], text
    )
    assert (found.rows, found.cut_contexts, found.cut_candidates) == (6, 1, 2)
    assert found.different == 5 and found.token_rows == 3
    first, second = found.notes()
    assert first == "1 of 6 training contexts are cut to 12 tokens, 2 of 6 labels to 6"
    assert second.startswith("warning: 5 different training labels are 3 for the model")


def test_a_text_that_just_fits_is_not_cut():
    for prompt in ("", "abc"):
        text = encoder(6, candidate_prompt=prompt, context_prompt=prompt)
        for length in range(1, 14):
            letters = "abcdefghijklm"[:length]
            n = length + len(prompt) + 2
            assert text.cuts_candidate(letters) == (n > 6) == (len(text.candidate(letters)) < n)
            assert text.cuts_context((letters,)) == (len(text.context((letters,))) < n)
    assert losses(rows("ab", "cd"), encoder(6)).notes() == []


def test_rows_to_rank_count_their_candidates_and_the_ties_that_no_model_wins():
    listed = [
        Example("0", ("ab",), ("abcdx", "abcdy", "b"), 0, ""),
        Example("1", ("abcdefghijk",), ("c", "abcdx", "abcdy"), 0, ""),
        Example("2", ("ab",), ("abcdx", "abcdy", "c"), 0, "", answers=("ABCDY",)),
    ]
    text = encoder(6)
    found = ranked_losses(listed, text, split="test")
    assert (found.rows, found.cut_contexts, found.candidates, found.cut_candidates) == (3, 1, 4, 2)
    assert (found.different, found.token_rows, found.ties) == (4, 3, 1)
    cut, equal = found.notes()
    assert cut == "1 of 3 test contexts are cut to 12 tokens, 2 of 4 candidates to 6"
    assert equal == (
        "warning: 4 different test candidates are 3 for the model: the others have the same tokens; in 1 of "
        "3 rows a wrong one ties with the label"
    )
    shared = ranked_losses(rows("abcdx", "abcdz", "c"), text, split="test", shared=["ABCDX", "abcdy", "c"])
    assert (shared.candidates, shared.cut_candidates, shared.token_rows, shared.ties) == (4, 3, 3, 1)


def test_texts_that_pairs_cut_together_are_counted_as_pairs():
    text = encoder(6, pair_tokens=10)  # three marks leave seven tokens for both
    one = Example("0", ("abcdef",), ("ab", "abcdefghij"), 0, "")
    found = ranked_losses(
        [one, dataclasses.replace(one, context=("ab",), candidates=("ab", "ba"))], text, split="test"
    )
    assert (found.cut_contexts, found.cut_candidates, found.limit) == (1, 1, 10)
    assert losses(rows("abcdef"), text).cut_candidates == 1


def test_counting_tokenises_nothing_twice():
    text = encoder(6)
    texts = ["abcdx", "abcdy", "b"]
    text.prepare(texts)
    found = candidate_losses(texts, text)
    assert found.notes() == [
        "2 of 3 candidates are cut to 6 tokens",
        "warning: 3 different candidates are 2 for the model: the others have the same tokens",
    ]
    assert text.tokenizer.encoded == texts
    listed = [Example("0", ("ab",), ("abcdx", "c"), 0, "")]
    ranked_losses(listed, text, split="test")
    text.prepare(["ab", "abcdx", "c"])
    assert text.tokenizer.encoded == [*texts, "ab", "c"]


def test_labels_that_are_all_one_row_of_tokens_are_refused_before_training():
    found = losses(rows("abcdx", "abcdy", "abcdz"), encoder(6))
    with pytest.raises(InputError) as caught:
        check_losses(found, steps=TRIAL_STEPS + 1)
    assert (caught.value.argument, caught.value.got) == ("text.candidate_tokens", 6)
    check_losses(found, steps=TRIAL_STEPS)
    check_losses(losses(rows("abcdx", "abcdy", "b"), encoder(6)), steps=1000)
    check_losses(losses(rows("abcdx", "ABCDX"), encoder(6)), steps=1000)  # one label: another matter
