"""What a task is tested on is known again in a corpus, however it is written there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyjax.data.corpora.leakage import LONG_TURN, WORDS, HeldOut, held_out_of, word_keys
from polyjax.data.tasks.jsonl import OwnDataConfig

TALK = (
    "Hi there",
    "Thank you",
    "One two three four five six seven eight nine ten",
    "and then we went to see it",
)


@pytest.mark.parametrize(
    ("turns", "known"),
    [
        (("x", "hi  THERE", "thank you", "y"), True),
        (("x", TALK[2], "y"), True),
        (("Thank you", "Hi there", "bye"), False),
        (("hi , there !", "thank you ."), False),
        (("hi , there ! thank you ; one - two - three", TALK[2][14:], TALK[3]), True),
        ((" ".join(TALK[:3]), TALK[3]), True),
        (("\n".join(TALK), "a reply"), True),
        (("before it, " + " ".join(TALK[1:]) + " and after"), True),
        (("two three four five six seven eight", "and then we went"), False),
    ],
    ids=[
        "two turns",
        "a long turn",
        "short turns",
        "punctuation makes another turn",
        "punctuation between words",
        "joined",
        "lines",
        "within",
        "a part of one",
    ],
)
def test_a_conversation_is_known_again(turns, known):
    assert ((turns if isinstance(turns, tuple) else (turns,)) in HeldOut([TALK])) == known


def test_what_says_nothing_has_no_keys():
    assert len(word_keys(("?", "!"))) == len(word_keys(())) == 0
    assert ("a", "b") not in HeldOut()


words = st.lists(st.sampled_from([f"w{i}" for i in range(40)]), min_size=1, max_size=30)


def by_definition(turns, other):
    """The same question, asked of the words themselves."""

    def parts(turns):
        flat = [word for turn in turns for word in turn]
        runs = {tuple(flat[i : i + WORDS]) for i in range(len(flat) - WORDS + 1)}
        pairs = {(tuple(a), tuple(b)) for a, b in zip(turns, turns[1:], strict=False)}
        return runs | pairs | {("long", tuple(turn)) for turn in turns if len(turn) >= LONG_TURN}

    return not parts(turns).isdisjoint(parts(other))


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=4), st.lists(words, min_size=1, max_size=4), st.data())
def test_it_is_the_definition(turns, other, data):
    if data.draw(st.booleans()):  # a piece of one in the other
        flat = [word for turn in turns for word in turn]
        start = data.draw(st.integers(0, len(flat)))
        other = [*other, flat[start : start + data.draw(st.integers(1, 20))] or ["x"]]
    as_texts = [" ".join(turn) for turn in turns], [" ".join(turn) for turn in other]
    assert (as_texts[1] in HeldOut([as_texts[0]])) == by_definition(turns, other)


def test_a_tasks_rows_are_those_to_validate_and_test_on(tmp_path):
    for split in ("train", "valid", "test"):
        line = '{"context": "%s asks %d", "label": "and gets %s %d"}\n'
        (tmp_path / f"{split}.jsonl").write_text("".join(line % (split, i, split, i) for i in range(25)))
    paths = {split: tmp_path / f"{split}.jsonl" for split in ("train", "valid", "test")}
    found = held_out_of(OwnDataConfig(**paths))
    for split, known in (("train", False), ("valid", True), ("test", True)):
        assert ((f"{split} asks 3", f"and gets {split} 3") in found) == known
    both = HeldOut([("a b", "c d")]) | HeldOut([("e f", "g h")])
    assert ("a b", "c d") in both and ("e f", "g h") in both
    assert both.digest == HeldOut([("e f", "g h"), ("a b", "c d")]).digest != found.digest
    assert np.all(np.diff(both.keys.astype(object)) > 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("cafe\u0301", "CAFÉ"),
        ("straße", "STRASSE"),
        ("a\u200bb\ufe0f", "ab"),
        ("a\u00a0 b", "A b"),
    ],
)
def test_turns_that_are_one_by_the_rule_are_known(one, other):
    assert (other, "yes") in HeldOut([(one, "yes")])


@pytest.mark.parametrize(
    ("one", "other"),
    [("C++", "C#"), ("1+1", "1-1"), ("की", "का"), ("👍", "👎"), ("cafe", "café"), ("ก่อน", "ก้อน")],
)
def test_turns_that_are_two_by_the_rule_are_not(one, other):
    assert (other, "yes") not in HeldOut([(one, "yes")])
    around = [f"w{i}" for i in range(12)]  # nor in a run of words, symbols and vowel signs apart
    assert (" ".join([*around, other]),) not in HeldOut([(" ".join([*around, one]),)]) or one in (
        "C++",
        "1+1",
    )


def test_half_a_surrogate_pair_is_a_character_like_others():
    assert ("\ud83d x", "yes") in HeldOut([("\ud83d X", "yes")])
