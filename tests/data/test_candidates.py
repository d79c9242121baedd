"""Drawn candidates: wrong by the rule of identity, for every right answer of a context."""

import random
import unicodedata

import pytest

from polyjax.data.candidates import TRIES, add_candidates, read_candidates
from polyjax.data.identity import text_key
from polyjax.data.rows import RankConfig, Rows, ranked_among
from polyjax.errors import InputError
from polyjax.types import Example


def examples(pairs) -> list[Example]:
    return [Example(str(i), (context,), (label,), 0, str(i)) for i, (context, label) in enumerate(pairs)]


ACCENTED = ["café crème", "déjà vu", "naïve", "über", "señor", "façade", "résumé", "piñata", "jalapeño", "ö"]


def test_a_label_is_no_wrong_candidate_of_itself_however_it_is_encoded():
    forms = ["NFC", "NFD"]
    rows = examples(
        (
            f"say {i}",
            unicodedata.normalize(forms[i % 2], ACCENTED[i % 10]).upper()[: 99 - i % 3] + "\u200b" * (i % 3),
        )
        for i in range(200)
    )
    for row in add_candidates(rows, n_candidates=10, seed=0):
        assert len({text_key(text) for text in row.candidates}) == 10


@pytest.mark.parametrize(
    "labels",
    [["👍", "👎", "❤", "😂"], ["दिन", "दान", "दीन", "दून"], ["ที", "ทุ", "ทิ", "ทู"], ["C", "C++", "C#", "F#"]],
)
def test_labels_that_differ_in_signs_only_are_ranked_against_each_other(labels):
    rows = examples((f"question {i}", labels[i % 4]) for i in range(40))
    for row in add_candidates(rows, n_candidates=4, seed=0):
        assert sorted(row.candidates) == sorted(labels)


class Counted(random.Random):
    """Counts the draws of all."""

    n = 0

    def randrange(self, *args):
        Counted.n += 1
        return super().randrange(*args)


def test_rare_labels_are_drawn_beside_a_frequent_one(monkeypatch):
    """Draws of the frequent one are not repeated for ever: for 100,000 rows it took minutes."""
    monkeypatch.setattr("polyjax.data.candidates.random.Random", Counted)
    rows = examples((f"question {i}", "common" if i >= 20 else f"rare {i}") for i in range(20_000))
    found = add_candidates(rows[:20], n_candidates=20, seed=0, pool=rows)
    assert Counted.n <= 20 * (TRIES * 20 + 1)
    for row in found:
        assert len(set(row.candidates)) == 20
    assert found == add_candidates(rows[:20], n_candidates=20, seed=0, pool=rows)


def asked(n_contexts: int, n_answers: int) -> list[Example]:
    pairs = [
        (f"q {c}" if a % 2 else f"Q  {c}", f"answer {c} {a}")
        for a in range(n_answers)
        for c in range(n_contexts)
    ]
    return examples(pairs)


@pytest.mark.parametrize("candidates", ["sampled", "batch"])
def test_no_right_answer_of_a_context_is_a_wrong_candidate(candidates):
    rows = asked(8, 5)
    right = {c: {f"answer {c} {a}" for a in range(5)} for c in range(8)}
    found = ranked_among(Rows(rows), RankConfig(candidates=candidates, n=12)).examples
    assert [row.id for row in found] == [row.id for row in rows]
    for row in found:
        assert len(row.candidates) == 12
        wrong = [text for i, text in enumerate(row.candidates) if i != row.label]
        assert not set(wrong) & right[int(row.context[0].split()[1])]


def test_rows_of_the_pool_name_right_answers_too():
    rows = asked(8, 5)
    for row in add_candidates(rows[:8], n_candidates=30, seed=0, pool=rows):
        wrong = [text for i, text in enumerate(row.candidates) if i != row.label]
        assert not any(text.startswith(f"answer {row.id} ") for text in wrong)
    with pytest.raises(InputError) as caught:
        add_candidates(rows[:8], n_candidates=37, seed=0, pool=rows)
    assert caught.value.argument == "task.n_candidates" and caught.value.fix == "use `task.n_candidates` 36"


def test_a_batch_of_nothing_but_right_answers_is_refused():
    with pytest.raises(InputError) as caught:
        ranked_among(Rows(asked(1, 5)), RankConfig(candidates="batch", n=3))
    assert caught.value.argument == "rank.n"
    with pytest.raises(InputError) as caught:
        ranked_among(Rows(asked(2, 2)), RankConfig(candidates="batch", n=5))
    assert caught.value.argument == "rank.n" and caught.value.got == 5


def test_fixed_candidates_are_different_texts(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("Yes\nno\nyes \ncafé\ncafe\u0301\nC++\nC\n", encoding="utf-8")
    assert read_candidates(path) == ["Yes", "no", "café", "C++", "C"]
    rows = ranked_among(Rows(asked(3, 1)), RankConfig(candidates="fixed", file=path))
    assert list(rows.shared) == ["Yes", "no", "café", "C++", "C"]


@pytest.mark.parametrize(
    ("settings", "argument"),
    [({"n": 1}, "rank.n"), ({"candidates": "fixed"}, "rank.file"), ({"file": "x"}, "rank.file")],
)
def test_settings_of_ranking_that_cannot_work(settings, argument, tmp_path):
    with pytest.raises(InputError) as caught:
        RankConfig(**settings | ({"file": tmp_path / "x"} if "file" in settings else {}))
    assert caught.value.argument == argument
