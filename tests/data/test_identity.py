"""The rule of when two texts are one, on random Unicode and on what languages have."""

import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyjax.data.identity import (
    IGNORABLE,
    different,
    digests,
    other_answers,
    text_hash,
    text_key,
    with_answers,
)
from polyjax.types import Example

AWKWARD = (
    "aAßẞıİiIſKkΣσςǰŉﬁ"  # cases that fold to others, or to several letters
    "e\u0301\u0327\u0345\u05b0\u0f71\u0f72\u0f74ᾳᾼά"  # marks have an order; one folds to a letter
    "\u034f\u00ad\u200b\u200c\u200d\ufeff\ufe0f\u2060\U000e0067\u115f\u1160"  # ignorable
    " \t\n\r\x0b\x0c\x1c\x85\xa0\u2000\u2028\u3000"  # white space
    "\u1100\u1161\u11a8각दिनที👍❤\U0001f468\U0001f469\ud800!.+-#"
)
"""Characters that normalisation, folding and removal act upon, often next to each other."""
TEXTS = st.text(st.one_of(st.sampled_from(AWKWARD), st.characters(exclude_categories=())), max_size=12)
SPACES = st.text(st.sampled_from(" \t\n\r\x0b\u2003\u2028\u3000\x85"), min_size=1, max_size=3)
IGNORED = st.sampled_from([c for c in AWKWARD if IGNORABLE.fullmatch(c)])


def one(first: str, second: str) -> bool:
    return text_key(first) == text_key(second)


@given(TEXTS, st.sampled_from(["NFC", "NFD"]))
def test_normal_forms_are_one_text(text, form):
    assert one(text, unicodedata.normalize(form, text))


@given(TEXTS)
def test_cases_are_one_text(text):
    assert one(text, text.casefold())
    assert one(text, text.lower())
    if "ı" not in text:  # the one letter whose capital folds to another: i and ı are two
        assert one(text, text.upper())


@given(st.lists(TEXTS, min_size=1, max_size=4), st.data())
def test_white_space_is_collapsed(parts, data):
    text = " ".join(parts)
    spaced = data.draw(SPACES).join(parts)
    assert one(text, spaced) and one(text, f"{data.draw(SPACES)}{text}{data.draw(SPACES)}")


@given(TEXTS, IGNORED, st.integers(0, 12))
def test_ignorable_characters_count_nowhere(text, ignored, place):
    assert one(text, text[:place] + ignored + text[place:])


@given(TEXTS)
def test_a_key_is_its_own_key(text):
    """With this, to have equal keys is reflexive, symmetric and transitive, and each class has a member."""
    key = text_key(text)
    assert text_key(key) == key and one(text, key) and text_hash(key) == text_hash(text)
    assert key == key.strip() and "  " not in key and not IGNORABLE.search(key)


@given(TEXTS, TEXTS, TEXTS)
def test_it_is_an_equivalence(a, b, c):
    assert one(a, a) and one(a, b) == one(b, a)
    assert one(a, c) or not (one(a, b) and one(b, c))
    # Related texts, so that the premises hold as well as fail.
    upper, decomposed = b.casefold(), unicodedata.normalize("NFD", f" {b}\n")
    assert one(upper, b) and one(b, decomposed) and one(upper, decomposed)


DISTINCT = [
    ["दिन", "दान", "दीन", "दून", "दन", "दिंन"],  # Hindi vowel signs, anusvara
    ["ที", "ทุ", "ทิ", "ทู", "ท", "ท่", "ท้"],  # Thai vowel signs, tone marks
    ["کتاب", "کِتاب"],  # Arabic vowel marks
    ["שלום", "שָׁלוֹם"],  # Hebrew points
    ["か", "が", "カ", "ｶ"],  # kana: voicing, katakana, half width
    ["👍", "👎", "❤", "😂", "👍🏽", "🇫🇷", "🇩🇪", ""],
    ["C", "C++", "C#", "F#", "C--", ".c"],
    ["1+1", "1-1", "1*1", "1/1", "11", "1 1", "1.1", "1,1"],
    ["resume", "résumé", "resumé"],
    ["uber", "über", "ueber", "ubér"],
    ["yes", "yes!", "yes?", "yes.", "'yes'", "y-e-s", "ye s"],
    [":)", ":(", ";)", "?", "!", "..."],
    ["i", "ı"],
    ["x²", "x2", "x₂"],  # compatibility forms are other texts
    ["№", "no"],
    ["½", "1/2", "1⁄2"],
    ["a", "а", "α"],  # Latin, Cyrillic, Greek
    ["\x00a", "a", "a\x00", "\ud800a", "\udfffa"],
]


@pytest.mark.parametrize("texts", DISTINCT, ids=lambda texts: ascii(texts[0]))
def test_what_differs_in_anything_else_is_another_text(texts):
    assert len({text_key(text) for text in texts}) == len(texts)
    assert len({text_hash(text) for text in texts}) == len(texts)


SAME = [
    ["café crème", "CAFE\u0301 CRE\u0300ME", " café\u00a0\ncrème\u200b"],
    ["straße", "STRASSE", "Stra\u00adße", "STRAẞE"],
    ["ΣΊΣΥΦΟΣ", "σίσυφος", "σίσυφοσ"],
    ["ﬁne", "fine", "FINE"],
    ["\u212bngström", "Ångström", "A\u030angstro\u0308m"],
    ["각", "\u1100\u1161\u11a8"],
    ["❤", "❤\ufe0f"],
    ["👨\u200d👩\u200d👧", "👨👩👧"],  # the joiner is zero-width: the rule removes it
    ["می\u200cخواهم", "میخواهم"],
    ["α\u0345\u0301", "α\u0345\u034f\u0301", "Α\u0301Ι"],
    ["\ufeff\u200e", "", "\n"],
    ["İ", "i\u0307"],
]


@pytest.mark.parametrize("texts", SAME, ids=lambda texts: ascii(texts[0]))
def test_what_differs_in_nothing_else_is_the_same_text(texts):
    assert len({text_key(text) for text in texts}) == 1


def test_every_character_that_has_other_forms():
    found = 0
    for code in range(sys.maxunicode + 1):
        letter = chr(code)
        forms = {letter, letter.casefold(), letter.lower(), unicodedata.normalize("NFD", letter)}
        if len(forms) > 1:
            found += 1
            assert len({text_key(form) for form in forms}) == 1, ascii(letter)
            assert text_key(text_key(letter)) == text_key(letter), ascii(letter)
    assert found > 14_000


def test_the_table_of_ignorable_characters():
    """What this Python's Unicode data say of it: format characters that are shown are left in."""
    shown = [*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD]
    shown += [*range(0xFFF9, 0xFFFC), *range(0x13430, 0x13440)]
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) == "Cf":
            assert bool(IGNORABLE.fullmatch(chr(code))) == (code not in shown), hex(code)
    assert sum(bool(IGNORABLE.fullmatch(chr(code))) for code in range(sys.maxunicode + 1)) == 4174
    for letter in map(chr, range(0x20000)):
        assert not IGNORABLE.search(letter.casefold()) or IGNORABLE.fullmatch(letter)


def rows(*pairs: tuple[str | tuple[str, ...], str]) -> list[Example]:
    contexts = [(context,) if isinstance(context, str) else context for context, _ in pairs]
    labels = [label for _, label in pairs]
    return [Example(str(i), c, (a,), 0, "") for i, (c, a) in enumerate(zip(contexts, labels, strict=True))]


GROUPED = rows(
    ("where is it?", "here"),
    ("Where  is it?", "there"),
    ("where is it?\u200b", "HERE"),
    ("where is it", "nowhere"),  # a sign less: another context
    (("hi", "you"), "yes"),
    (("hi you",), "no"),  # other turns: another context
    ("alone", "one"),
    ("alone", "One "),  # one right answer, twice
)


def test_rows_of_one_context_share_their_right_answers():
    assert other_answers(GROUPED) == {0: {"there"}, 1: {"here"}, 2: {"there"}}
    named = [*GROUPED[3:], Example("x", ("z",), ("a", "b"), 1, "", ("c", "B"))]
    assert other_answers(named) == {5: {"c"}}
    assert other_answers([]) == {}


def test_rows_are_completed_with_the_right_answers_of_their_context():
    found = with_answers(GROUPED[:1] + GROUPED[6:], GROUPED)
    assert [row.answers for row in found] == [("there",), (), ()]
    assert found[1:] == GROUPED[6:]
    again = with_answers(found, GROUPED)
    assert again == found, "what is there already is not added"


def test_digests_tell_rows_apart_as_the_rule_does():
    found = digests(GROUPED)
    assert found.rows.dtype == np.uint64 and len(set(found.rows.tolist())) == 6
    assert found.rows[0] == found.rows[2] and found.rows[6] == found.rows[7]
    assert len(set(found.contexts.tolist())) == 5 and found.several.tolist() == [found.contexts[0]]
    turned = digests(rows((("a", "b"), "c"), (("a",), "b\nc"), (("a\nb",), "c"), (("a", "b c"), "")))
    assert len(set(turned.rows.tolist())) == 4, "the borders between turns and label count"
    assert len(digests([]).rows) == 0


def test_each_text_once():
    assert different(["b", "a", "B ", "c\u200b", "C", "c!"]) == ["b", "a", "c\u200b", "c!"]
