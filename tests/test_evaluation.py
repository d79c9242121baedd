"""What an evaluation writes agrees with an independent library, and can be read again."""

import json
import unicodedata

import ir_measures
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, Success

from conftest import HEADS, tiny
from polyjax import make_scorer
from polyjax.data.candidates import add_candidates
from polyjax.data.identity import text_key
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError
from polyjax.evaluation.baselines import check_tfidf, tfidf_ranking
from polyjax.evaluation.candidates import check_candidates
from polyjax.evaluation.rankings import (
    evaluate,
    rank_listed,
    rank_shared,
    trec_names,
    write_examples,
)
from polyjax.inference.scorer import TextScorer
from polyjax.types import Example
from train.toy import Letters


@pytest.fixture
def written(tmp_path, rng):
    examples = [
        Example(
            f"row {i}", ("hi", f"turn {i}"), tuple(f"text {j} ☕" for j in range(20)), i % 20, str(i // 3)
        )
        for i in range(200)
    ]
    scores = rng.standard_normal((200, 20)).astype(np.float32)
    scores[np.arange(200), np.arange(200) % 20] += 1.5
    evaluation = rank_listed("a model", examples, scores)
    write_examples(tmp_path / "out", examples, evaluation)
    return tmp_path / "out", examples, evaluation, scores


def test_figures_agree_with_ir_measures(written):
    folder, _, evaluation, _ = written
    qrels = ir_measures.read_trec_qrels(str(folder / "qrels.trec"))
    run = ir_measures.read_trec_run(str(folder / "run.trec"))
    ks = (1, 2, 5, 10, 19)
    figures = ir_measures.calc_aggregate([RR, *(Success @ k for k in ks)], list(qrels), list(run))
    assert figures[RR] == pytest.approx(evaluation.ranking.mrr, abs=1e-6)
    for k in ks:
        assert figures[Success @ k] == pytest.approx(evaluation.ranking.recall(k), abs=1e-9)
    assert 0.2 < evaluation.ranking.recall(1) < 0.8


def test_rows_can_be_read_again(written):
    folder, examples, evaluation, given = written
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [e.id for e in examples]
    for row, example, rank, scores in zip(rows, examples, evaluation.ranking.ranks, given, strict=True):
        assert (tuple(row["context"]), tuple(row["candidates"])) == (example.context, example.candidates)
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-6)
        assert row["rank"] == rank and row["label"] == example.label
        assert row["best"][0] == example.candidates[int(np.argmax(scores))]


def questions(n: int, shared: list[str], *, among: bool) -> list[Example]:
    labels = [shared[7 * i % len(shared)] if among else f"answer {i}" for i in range(n)]
    return [Example(str(i), (f"turn {i}",), (label,), 0, str(i)) for i, label in enumerate(labels)]


def in_parts(examples, shared, scores, own):
    for start in range(0, len(examples), 7):
        places = np.arange(start, min(start + 7, len(examples)))
        yield places, scores[places], own[places]


@pytest.mark.parametrize("among", [False, True])
def test_shared_candidates_rank_as_listed_ones(among, rng, tmp_path):
    """The label joins the shared candidates, or is one of them; the rest is as if all were listed."""
    shared = [f"document {i}" for i in range(50)]
    examples = questions(40, shared, among=among)
    scores, own = rng.integers(0, 30, (40, 50)).astype(np.float32), np.full(40, 27.0, np.float32)
    found = rank_shared("a model", examples, shared, in_parts(examples, shared, scores, own))
    listed = [
        Example(
            e.id,
            e.context,
            tuple(shared) if among else (*shared, e.label_text),
            shared.index(e.label_text) if among else 50,
            e.group,
        )
        for e in examples
    ]
    expected = rank_listed("a model", listed, scores if among else np.column_stack([scores, own]))
    np.testing.assert_array_equal(found.ranking.ranks, expected.ranking.ranks)
    assert found.ranking.n_candidates == expected.ranking.n_candidates == 50 + (not among)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    np.testing.assert_array_equal(found.best, expected.best)
    np.testing.assert_array_equal(found.scores, expected.scores)

    write_examples(tmp_path, examples, found, shared=shared)
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert [row["rank"] for row in rows] == found.ranking.ranks.tolist()
    assert all(
        row["label"] == e.label_text and len(row["best"]) == 10 for row, e in zip(rows, examples, strict=True)
    )
    qrels = ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec"))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    assert len(run) == 40 * (50 + (not among)), "as many lines as candidates"
    figures = ir_measures.calc_aggregate([Success @ 50], list(qrels), run)
    assert figures[Success @ 50] >= found.ranking.recall(50)


def test_figures_of_shared_candidates_agree_with_ir_measures(rng, tmp_path):
    shared = [f"document {i}" for i in range(3000)]
    examples = questions(60, shared, among=False)
    scores, own = (
        rng.standard_normal((60, 3000)).astype(np.float32),
        rng.uniform(1.5, 4, 60).astype(np.float32),
    )
    found = rank_shared("a model", examples, shared, in_parts(examples, shared, scores, own))
    write_examples(tmp_path, examples, found, shared=shared)
    qrels = ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec"))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    assert len(run) == 60 * 1000
    ks = (1, 10, 100, 1000)
    figures = ir_measures.calc_aggregate([Success @ k for k in ks], list(qrels), run)
    for k in ks:
        assert figures[Success @ k] == pytest.approx(found.ranking.recall(k), abs=1e-9)
    assert 0.1 < found.ranking.recall(1) < found.ranking.recall(100) <= 1.0


def test_a_label_joins_the_shared_candidates_only_where_it_is_none_of_them(tmp_path):
    shared = ["a", "b", "c"]
    examples = [Example(str(i), ("hi",), (label,), 0, "") for i, label in enumerate(["b", "z"])]
    scores, own = np.array([[3, 2, 1], [3, 2, 1]], np.float32), np.array([9, 2], np.float32)
    found = rank_shared("model", examples, shared, [(np.arange(2), scores, own)])
    assert found.ranking.ranks.tolist() == [2, 3], "its own score counts nothing; a tie counts against it"
    assert found.ranking.n_candidates == 4
    expected = [np.log(np.exp([3, 2, 1]).sum()) - 2, np.log(np.exp([3, 2, 1, 2]).sum()) - 2]
    assert found.loss == pytest.approx(np.mean(expected))
    write_examples(tmp_path, examples, found, shared=shared)
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert [line.split()[2] for line in lines] == ["#0", "#1", "#2", "#0", "#1", "1#label", "#2"]
    assert (tmp_path / "qrels.trec").read_text() == "0 0 #1 1\n1 0 1#label 1\n"


@pytest.mark.parametrize(
    "head", ["poly-unit-shared", "poly-first", "poly-multihead", "bi-mean", "cross-first"]
)
@pytest.mark.parametrize("among", [False, True])
def test_a_scorer_ranks_shared_candidates_as_listed_ones(head, among):
    scorer = make_scorer(tiny(), HEADS[head], rngs=nnx.Rngs(0))
    text = TextEncoder(Letters(), TextConfig(context_tokens=16, candidate_tokens=8, buckets=(8, 16, 24)))
    words = ["".join(chr(97 + (i * k) % 23) for k in (1, 3, 7)) for i in range(23)]
    shared, labels = words[:13], words[3:13] if among else words[13:]
    examples = [Example(str(i), ("a" * (i + 1), "bc"), (w,), 0, str(i)) for i, w in enumerate(labels)]
    scorer = TextScorer(scorer, text)
    found = evaluate("model", scorer, examples, shared=shared)
    candidates = [tuple(shared) if among else (*shared, e.label_text) for e in examples]
    listed = [
        Example(e.id, e.context, c, c.index(e.label_text), e.group)
        for e, c in zip(examples, candidates, strict=True)
    ]
    expected = evaluate("model", scorer, listed)
    np.testing.assert_array_equal(found.ranking.ranks, expected.ranking.ranks)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)


def test_much_is_encoded_in_batches_padded_to_their_own_longest_text(monkeypatch):
    """Each text once, in full batches but for the last, and to the vectors that it has alone."""
    monkeypatch.setattr("polyjax.inference.scorer.CPU_TOKENS_PER_BATCH", 64)
    text = TextEncoder(Letters(), TextConfig(candidate_tokens=40, buckets=(16, 40)))
    scorer = TextScorer(make_scorer(tiny(), HEADS["bi-mean"], rngs=nnx.Rngs(0)), text)
    texts = ["abcdefghij"[: 1 + i % 10] * (1 + i % 3) for i in range(300)]
    plan = list(scorer.candidate_plan(texts))
    longest = [max(len(text.candidate(texts[i])) for i in places) for places, _ in plan]
    assert sorted(np.concatenate([places for places, _ in plan])) == list(range(300))
    for (places, length), n in zip(plan, longest, strict=True):
        assert length == -(-n // 8) * 8 and len(places) <= max(64 // length, 1)
    full = [len(places) == max(64 // length, 1) for places, length in plan]
    assert sum(full) >= len(plan) - 1
    half = len(plan) // 2
    assert abs(np.mean(longest[:half]) / np.mean(longest[half:]) - 1) < 0.2, "as fast in the end as before"
    vectors = scorer.encode_candidates(texts)
    monkeypatch.setattr("polyjax.inference.batching.MANY_BATCHES", 10**9)
    assert {length for _, length in scorer.candidate_plan(texts)} <= {16, 40}, "few have few shapes"
    np.testing.assert_allclose(vectors, scorer.encode_candidates(texts), atol=1e-5)


def test_a_copy_of_the_label_among_the_shared_candidates_ties_with_it():
    """Two texts that are cut to the same tokens have the same score, and a tie counts against the label."""
    scorer = TextScorer(
        make_scorer(tiny(), HEADS["poly-unit-shared"], rngs=nnx.Rngs(0)),
        TextEncoder(Letters(), TextConfig(context_tokens=16, candidate_tokens=4, buckets=(4, 16))),
    )
    shared = ["abcd", "bacd", "cdef", "dcba"]
    for copy in shared:
        example = Example("0", ("ab",), (copy + "x",), 0, "0")
        found = evaluate("model", scorer, [example], shared=shared)
        alone = evaluate("model", scorer, [example], shared=[t for t in shared if t != copy])
        assert found.ranking.ranks[0] == alone.ranking.ranks[0] + 1


def test_baselines_of_shared_candidates():
    shared = [f"document about {word}" for word in ("tea", "wine", "milk", "beer", "rum")]
    examples = [
        Example(word, (f"what of {word}",), (f"a {word} text",), 0, word) for word in ("juice", "water")
    ]
    fit_on = [*shared, *(e.context[0] for e in examples), *(e.label_text for e in examples)]
    result = tfidf_ranking(examples, fit_on, shared=shared)
    assert (result.name, result.n_candidates, result.recall(1)) == ("TF-IDF", 6, 1.0)


def test_rows_with_nothing_but_a_label_are_no_ranking():
    examples = [Example(str(i), ("hi",), ("yes",), 0, "") for i in range(3)]
    with pytest.raises(InputError, match="the rows list no candidates but their label") as caught:
        check_candidates(examples, (), source="valid")
    assert caught.value.argument == "valid" and "`rank.candidates`" in caught.value.fix
    with pytest.raises(InputError, match="the split is empty"):
        check_candidates([], ("a",), source="valid")


def test_white_space_at_a_labels_ends_makes_it_no_other_candidate():
    examples = [Example("0", ("hi",), ("b ",), 0, "")]
    scores, own = np.array([[3, 4, 1]], np.float32), np.array([4], np.float32)
    found = rank_shared("model", examples, ["a", "b", "c"], [(np.arange(1), scores, own)])
    assert found.ranking.ranks.tolist() == [1] and found.ranking.n_candidates == 3


def listed(*candidates: str, label: int = 0, answers: tuple[str, ...] = ()) -> Example:
    return Example("0", ("hi",), candidates, label, "", answers)


@pytest.mark.parametrize(
    ("example", "scores", "rank"),
    [
        (listed("a", "x", "y", "a"), [1, 0, 0, 1], 1),
        (listed("x", "caf\u00e9", "Cafe\u0301 ", label=1), [0, 1, 1], 1),
        (listed("x", "yes", "YES\u200b", label=1), [0.5, 0, 1], 1),  # the best placed copy counts
        (listed("x", "yes", "YES", label=1), [2, 0, 1], 2),
        (listed("x", "C++", "C", label=1), [0, 1, 1], 2),  # another text: a tie counts against the label
        (listed("x", "a", "b", label=1, answers=("B",)), [0.5, 0, 1], 1),
        (listed("x", "a", "b", "c", label=1, answers=("b", "c")), [0.5, 0, 0.2, 0.3], 2),
        (listed("x", "a", "b", label=1, answers=("not listed",)), [0, 1, 1], 2),
    ],
)
def test_one_text_is_one_answer_and_the_best_placed_right_one_counts(example, scores, rank):
    scores = np.array([scores], np.float32)
    assert rank_listed("model", [example], scores).ranking.ranks.tolist() == [rank]
    # As shared candidates, each text once: the same, with the best score of its copies.
    best: dict[str, float] = {}
    for text, score in zip(example.candidates, scores[0].tolist(), strict=True):
        best[text_key(text)] = max(score, best.get(text_key(text), -1.0))
    shared, values = list(best), np.array([list(best.values())], np.float32)
    found = rank_shared("model", [example], shared, [(np.arange(1), values, np.zeros(1, np.float32))])
    assert found.ranking.ranks.tolist() == [rank]


def test_the_loss_leaves_other_right_answers_out_as_training_does():
    example = listed("x", "a", "b", "A", label=1, answers=("b",))
    scores = np.array([[0.0, 1.0, 3.0, 1.0]], np.float32)
    expected = np.log(np.exp(0.0) + np.exp(1.0)) - 1.0
    assert rank_listed("model", [example], scores).loss == pytest.approx(expected, rel=1e-6)
    parts = [(np.arange(1), scores[:, :3], np.zeros(1, np.float32))]
    assert rank_shared("model", [example], ["x", "a", "b"], parts).loss == pytest.approx(expected, rel=1e-6)


def test_shared_candidates_that_are_one_text_are_refused():
    with pytest.raises(InputError, match="candidates 0 and 2 are the same text") as caught:
        check_candidates([listed("b")], ["caf\u00e9", "b", "CAFE\u0301"], source="test")
    assert caught.value.argument == "shared"


@pytest.mark.parametrize("shared", [False, True])
def test_scores_that_are_nan_are_refused(shared):
    examples = [listed("x", "a", "b", label=1)] * 3
    scores = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0], [0.0, np.nan, np.nan]], np.float32)
    with pytest.raises(InputError, match=r"not numbers \(NaN\) in 2 of 3 rows; use float32"):
        if shared:
            rank_shared("model", examples, ["x", "a", "b"], [(np.arange(3), scores, scores[:, 1])])
        else:
            rank_listed("model", examples, scores)


def test_trec_files_have_a_name_for_each_row_and_all_that_is_right(tmp_path):
    ids = ["a b", "a_b", "a  b", "c", "c", "\u2003"]
    examples = [Example(id_, ("q",), ("x", "y", "X", "z"), 0, "", ("z",)) for id_ in ids]
    scores = np.array([[2, 1, 0, 3], [1, 3, 2, 0]] * 3, np.float32)
    evaluation = rank_listed("m", examples, scores)
    write_examples(tmp_path, examples, evaluation)
    run = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert all(len(line) == 6 for line in run)
    pairs = [(line[0], line[2]) for line in run]
    assert len(set(pairs)) == len(pairs) == 24 and len({line[0] for line in run}) == 6
    assert {"a_b", "c"} < {line[0] for line in run}, "ids without white space are kept"
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec")))
    assert len(qrels) == 18
    metrics = ir_measures.calc_aggregate(
        [RR], qrels, list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    )
    assert metrics[RR] == pytest.approx(evaluation.ranking.mrr) == 0.75


@given(st.lists(st.text(alphabet="ab_~2 \t\u2003", max_size=4), max_size=12))
def test_trec_names_differ_where_places_do(ids):
    names = trec_names(ids)
    assert len(set(names)) == len(ids) and all(name.split() == [name] for name in names)
    assert all(id_ in names for id_ in ids if id_.split() == [id_])


WORDS = {
    "Chinese": "打印机 坏了 怎么 修理 屏幕 黑 电源 开关 检查 路由器 重启 键盘 清洁 风扇 噪音 电池",
    "Thai": "เครื่อง พิมพ์ เสีย ซ่อม หน้าจอ มืด สวิตช์ ไฟ ตรวจสอบ เราเตอร์ แป้นพิมพ์ พัดลม เสียง เปลี่ยน",
    "Javanese": "ꦏꦗ ꦒꦩꦤ ꦭꦏꦸ ꦱꦮꦃ ꦥꦝꦁ ꦧꦠꦸ ꦮꦼꦒꦶ ꦚꦩꦸꦏ ꦝꦲꦂ ꦢꦭꦤ ꦗꦫꦤ ꦠꦶꦏꦸꦱ ꦱꦥꦶ ꦩꦤꦸꦏ",
    "Japanese": "プリンター 壊れた どう 修理 画面 黒い 電源 スイッチ 確認 ルーター キーボード 掃除 ファン",
}


@pytest.mark.parametrize("language", WORDS)
def test_tfidf_of_texts_without_spaces_is_of_characters(language, rng):
    words = WORDS[language].split()
    rows = []
    for i in range(60):
        some = rng.choice(words, 5, replace=False).tolist()
        rows.append(
            Example(str(i), ("".join(some) + "？",), ("".join([some[1], some[4], some[0]]),), 0, str(i))
        )
    rows = add_candidates(rows, n_candidates=10, seed=0)
    result = tfidf_ranking(rows, [text for row in rows for text in (*row.context, row.label_text)])
    assert result.name == "TF-IDF of characters" and result.recall(1) > 0.6


@pytest.mark.parametrize(
    ("consonants", "marks"),
    [
        ("कखगघचछजझटठडढणतथदधनपफबभमयरलव", "ािीुूेो"),
        ("கஙசஜஞடணதநபமயரல", "ாிீுூ"),
        ("بتثجحخدذرزسشصضطظعغ", "\u064e\u064f\u0650"),
        ("אבגדהוזחטיכלמנ", "\u05b0\u05b7\u05b8"),
    ],
    ids=["Hindi", "Tamil", "Arabic", "Hebrew"],
)
def test_tfidf_does_not_end_a_word_at_its_vowel_signs(consonants, marks, rng):
    """Its words would be single letters, which are left out."""

    def word() -> str:
        return "".join(rng.choice(list(consonants)) + rng.choice(list(marks)) for _ in range(2))

    words = [word() for _ in range(300)]
    rows = []
    for i in range(60):
        some = rng.choice(words, 6, replace=False).tolist()
        context, label = " ".join(some[:4]), " ".join([some[3], some[1], some[4]])
        rows.append(Example(str(i), (context,), (label,), 0, str(i)))
    rows = add_candidates(rows, n_candidates=10, seed=0)
    result = tfidf_ranking(rows, [text for row in rows for text in (*row.context, row.label_text)])
    assert result.name == "TF-IDF" and result.recall(1) > 0.9


@pytest.mark.parametrize(
    "words", ["안녕 세상 커피 산책 음악 기차 정원", "café déjà naïve señor façade piñata"]
)
def test_tfidf_knows_texts_that_are_one(words):
    """Composed and decomposed letters, as files from different systems have them, and either case."""
    rows = []
    for i, word in enumerate(words.split()):
        context, label = unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word).upper()
        rows.append(Example(str(i), (context,), (label,), 0, ""))
    rows = add_candidates(rows, n_candidates=5, seed=0)
    fit_on = [text for row in rows for text in (*row.context, row.label_text)]
    assert tfidf_ranking(rows, fit_on).recall(1) == 1


def test_a_row_without_a_wrong_candidate_is_refused():
    """Every model would have it right."""
    rows = [Example("1", ("q",), ("a", "b"), 0, "1"), Example("2", ("hi",), ("a", "A "), 0, "2")]
    with pytest.raises(InputError, match="test: 1 rows have no wrong candidate, the first is '2'"):
        check_candidates(rows, (), source="test")
    answered = [Example("1", ("q",), ("a",), 0, "1", answers=("b",))]
    with pytest.raises(InputError, match="no wrong candidate"):
        check_candidates(answered, ("a", "b"), source="test")
    assert check_candidates(answered, ("a", "c"), source="test") == 2


def test_the_baseline_is_compared_with_chance_among_all_right_ones():
    """Half of the rows is more than a third, but less than two thirds."""
    contexts = ["pear", "fig"] * 4
    rows = [
        Example(str(i), (c,), ("pear", "plum", "fig"), 0, str(i), ("plum",)) for i, c in enumerate(contexts)
    ]
    result = tfidf_ranking(rows, ["apple pear plum fig"])
    assert result.recall(1) == 0.5 and result.name == "TF-IDF (below chance)"


def test_a_baseline_below_chance_says_so():
    rows = [Example(str(i), ("apple",), (f"pear {i}", "apple"), 0, str(i)) for i in range(9)]
    assert tfidf_ranking(rows, ["apple pear"]).name == "TF-IDF (below chance)"


def test_a_missing_scikit_learn_is_found_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs scikit-learn"):
        check_tfidf()
