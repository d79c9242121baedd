"""What is cut, and what becomes equal by it, is counted; labels that are all one are refused."""

import pytest
from test_text import Letters

from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.truncation import TRIAL_STEPS, check_losses, loss_notes, losses
from polyjax.errors import InputError
from polyjax.types import Example


def encoder(candidate_tokens: int) -> TextEncoder:
    return TextEncoder(
        Letters(), TextConfig(context_tokens=12, candidate_tokens=candidate_tokens, buckets=(8, 12, 16))
    )


def rows(*labels: str, context: tuple[str, ...] = ("ab",)) -> list[Example]:
    return [Example(str(i), context, (label,), 0, "") for i, label in enumerate(labels)]


def test_what_is_cut_and_what_becomes_equal_is_counted():
    text = encoder(6)
    found = losses(
        [*rows("abcd", "abcde", "abcdf", "abx", "ABX"), *rows("ab", context=("abcdefghijk",))], text
    )
    assert (found.rows, found.cut_contexts, found.cut_labels) == (6, 1, 2)
    assert found.labels == 5 and found.token_rows == 3
    first, second = loss_notes(found)
    assert first == "1 of 6 training contexts are cut to 12 tokens, 2 labels to 6"
    assert second.startswith("warning: 5 different training labels are 3 for the model")


def test_a_text_that_just_fits_is_not_cut():
    text = encoder(6)
    for length in range(1, 14):
        letters = "abcdefghijklm"[:length]
        assert text.cuts_candidate(letters) == (length > 4) == (len(text.candidate(letters)) < length + 2)
        assert text.cuts_context((letters,)) == (len(text.context((letters,))) < length + 2)
    assert loss_notes(losses(rows("ab", "cd"), text)) == []


def test_labels_that_are_all_one_row_of_tokens_are_refused_before_training():
    found = losses(rows("abcdx", "abcdy", "abcdz"), encoder(6))
    with pytest.raises(InputError) as caught:
        check_losses(found, steps=TRIAL_STEPS + 1)
    assert (caught.value.argument, caught.value.got) == ("text.candidate_tokens", 6)
    check_losses(found, steps=TRIAL_STEPS)
    check_losses(losses(rows("abcdx", "abcdy", "b"), encoder(6)), steps=1000)
    check_losses(losses(rows("abcdx", "ABCDX"), encoder(6)), steps=1000)  # one label: another matter
