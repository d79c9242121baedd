"""Hard negatives: by the rules, as brute force finds them, kept when killed, and trained on."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import polyjax
from golden import make_mining
from polyjax import (
    BiConfig,
    CrossConfig,
    EncoderConfig,
    Example,
    InputError,
    ModelConfig,
    Ranker,
    make_scorer,
)
from polyjax.cli import main as cli
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.identity import text_key
from polyjax.data.mining import RULES, MiningConfig, choose
from polyjax.data.tasks.jsonl import OwnDataConfig, parse
from polyjax.data.text import TextConfig
from polyjax.interop.huggingface import minilm_folder
from polyjax.recipes import mining
from polyjax.runs import ModelCard, write_model
from polyjax.runtime.journal import Journal

GOLDEN = Path(__file__).parent / "golden" / "mining.json"
WORDS = "printer lamp phone screen router keyboard mouse fan".split()
FAULTS = "hums blinks smokes freezes beeps leaks".split()
ROWS = [{"context": f"my {a} {b}", "label": f"fix the {b} {a}"} for a in WORDS for b in FAULTS]
ROWS += [
    {"context": "my printer hums", "label": "call us"},
    {"context": "MY printer hums", "label": "oil it"},
]
ROWS[3] |= {"answers": ["fix the beeps fan"]}
ROWS[5] |= {"negatives": ["fix the hums fan", "nonsense"]}
LISTED = [*ROWS]
LISTED[2] = ROWS[2] | {"candidates": [ROWS[2]["label"], "oil it", "fix the hums fan"]}
TEXT = TextConfig(context_tokens=16, candidate_tokens=16, buckets=(16, 32))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories of an untrained bi- and an untrained cross-encoder."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE)
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2, mlp_dim=32, n_positions=40
    )
    for name, head in {"bi": BiConfig(score_scale=3.0), "cross": CrossConfig(reduction="mean")}.items():
        scorer = make_scorer(shape, head, rngs=nnx.Rngs(0))
        card = ModelCard(model=ModelConfig(encoder=shape, head=head), text=TEXT)
        write_model(folder / name, scorer, card, tokenizer, config={"converted": "from nothing"})
    return folder


@pytest.fixture(scope="module")
def bi(runs):
    return Ranker.load(runs / "bi")


@pytest.fixture(scope="module")
def cross(runs):
    return Ranker.load(runs / "cross")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LISTED))
    return path


Chosen = list[list[tuple[int, float]]]


def chosen(
    contexts: np.ndarray, candidates: np.ndarray, rules: MiningConfig
) -> list[list[tuple[int, float]]]:
    """Places and scores of the negatives, where candidate i is right for context i."""
    found = []
    for i, scores in enumerate(contexts @ candidates.T):
        best = np.argsort(-scores, kind="stable")[: rules.depth + 1]
        places, _ = choose(scores[best], {"right answer": best == i}, float(scores[i]), rules, row=i)
        found.append([(int(best[j]), float(scores[best[j]])) for j in places])
    return found


def assert_alike(mine: Chosen, other: Chosen) -> None:
    """The same negatives in the same order, their scores but for rounding."""
    assert [[j for j, _ in row] for row in mine] == [[j for j, _ in row] for row in other]
    for one, another in zip(mine, other, strict=True):
        np.testing.assert_allclose([s for _, s in one], [s for _, s in another], atol=2e-6)


@pytest.mark.parametrize("name", make_mining.RULES)
def test_they_are_those_of_sentence_transformers(name):
    golden = json.loads(GOLDEN.read_text())
    contexts, candidates = (np.array(golden[side], np.float32) for side in ("contexts", "candidates"))
    rules = MiningConfig(range_max=make_mining.DEPTH, **make_mining.RULES[name])
    expected = [[(j, score) for j, score in row] for row in golden["negatives"][name]]
    assert sum(map(len, expected)) > 60
    assert_alike(chosen(contexts, candidates, rules), expected)


@pytest.mark.parametrize("name", make_mining.RULES)
def test_they_are_those_of_the_sentence_transformers_that_is_installed(name):
    pytest.importorskip("sentence_transformers", reason="needs torch and sentence-transformers")
    pytest.importorskip("datasets", reason="mine_hard_negatives needs it")
    contexts, candidates = make_mining.vectors()
    rules = MiningConfig(range_max=make_mining.DEPTH, **make_mining.RULES[name])
    expected = make_mining.mined(contexts, candidates, make_mining.RULES[name])
    assert_alike(chosen(contexts, candidates, rules), expected)


def brute_force(
    score, rows: list[Example], texts: list[str], rules: MiningConfig, again=None
) -> list[list[str]]:
    """Every candidate scored, and the rules in plain Python; ``again`` scores what is found once more."""
    found = []
    for row in rows:
        same = [r for r in rows if [*map(text_key, r.context)] == [*map(text_key, row.context)]]
        right_texts = {t for r in same for t in (r.label_text, *r.answers)}
        right = set(map(text_key, right_texts))
        listed = {text_key(t) for t in (*row.candidates, *row.negatives)}
        scores = score(row.context, texts)
        order = sorted(range(len(texts)), key=lambda j: -scores[j])[: rules.depth + len(right | listed)]
        scores = (again or score)(row.context, texts)
        label = min((again or score)(row.context, sorted(right_texts)))
        share = None if rules.relative_margin is None else rules.relative_margin * abs(label)
        left = [
            j
            for j in sorted(order, key=lambda j: -scores[j])
            if text_key(texts[j]) not in right | listed
            and not (rules.absolute_margin is not None and scores[j] > label - rules.absolute_margin)
            and not (share is not None and scores[j] > label - share)
            and not (rules.max_score is not None and scores[j] > rules.max_score)
            and not (rules.min_score is not None and scores[j] < rules.min_score)
        ]
        found.append([texts[j] for j in left[rules.range_min : rules.depth][: rules.n_negatives]])
    return found


RULE_SETS = {
    "best": {"relative_margin": None},
    "default": {},
    "range": {"relative_margin": None, "range_min": 3, "range_max": 9, "n_negatives": 6},
    "absolute": {"relative_margin": None, "absolute_margin": 0.02, "n_negatives": 3},
    "scores": {"relative_margin": 0.01, "max_score": 24.0, "min_score": 23.0, "n_negatives": 4},
}


@pytest.mark.parametrize("rules", RULE_SETS.values(), ids=RULE_SETS)
def test_negatives_are_those_of_brute_force(bi, file, rules):
    task = OwnDataConfig(train=file)
    train = list(task.read("train").examples)
    texts = mining.candidates_of(train)
    assert len(texts) > 30
    mined = polyjax.mine(bi, file, **rules, quiet=True)
    expected = brute_force(bi.score, train, texts, MiningConfig(**rules))
    assert any(expected)
    rows = {row.id: row for row in mined.rows}
    assert [row.id for row in mined.rows] == [row.id for row in parse(file)]
    for row, texts in zip(train, expected, strict=True):
        after = rows[row.id]
        assert after.negatives == (*row.negatives, *texts)
        scored = [*after.candidates, *after.negatives]
        np.testing.assert_allclose(after.scores, bi.score(row.context, scored), rtol=1e-5, atol=1e-5)
    held_out = [row for row in parse(file) if row.id not in {row.id for row in train}]
    assert held_out and all(rows[row.id] == row for row in held_out)
    assert mined.skipped.rows == len(train) and mined.skipped.negatives == sum(map(len, expected))


def test_a_cross_encoder_scores_once_more(bi, cross, file):
    rules = {"n_negatives": 4, "range_max": 12, "relative_margin": 0.02}
    train = list(OwnDataConfig(train=file).read("train").examples)
    mined = {row.id: row for row in polyjax.mine(bi, file, rescore=cross, **rules, quiet=True).rows}
    texts = mining.candidates_of(train)
    expected = brute_force(bi.score, train, texts, MiningConfig(**rules), again=cross.score)
    assert sum(map(len, expected)) > len(train)
    assert expected != brute_force(bi.score, train, texts, MiningConfig(**rules))
    for row, negatives in zip(train, expected, strict=True):
        assert mined[row.id].negatives == (*row.negatives, *negatives)
        scores = cross.score(row.context, [*row.candidates, *mined[row.id].negatives])
        np.testing.assert_allclose(mined[row.id].scores, scores, rtol=1e-4, atol=1e-5)


def test_right_answers_of_a_context_are_no_negatives(bi):
    rows = [
        {"id": str(i), "context": context, "label": label}
        for i, (context, label) in enumerate([("hi", "hello"), ("HI ", "good day"), ("bye", "see you")] * 9)
    ]
    mined = polyjax.mine(bi, rows, relative_margin=None, quiet=True)
    seen = Counter()
    for row in mined.rows:
        for text in row.negatives:
            seen[row.context[0].strip().lower(), text] += 1
    assert set(seen) == {("hi", "see you"), ("bye", "hello"), ("bye", "good day")}
    assert mined.skipped.rules["right answer"] > 0


def test_candidates_of_a_file_and_of_a_list(bi, tmp_path):
    texts = ["open it", "close it", "Open  IT", "fix the hums printer"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    of_file = polyjax.mine(bi, ROWS, candidates=tmp_path / "texts.txt", relative_margin=None, quiet=True)
    of_list = polyjax.mine(bi, ROWS, candidates=texts, relative_margin=None, quiet=True)
    assert of_file.rows == of_list.rows
    assert {t for row in of_list.rows for t in row.negatives} - {"nonsense", "fix the hums fan"} == {
        "open it",
        "close it",
        "fix the hums printer",
    }


def test_a_random_draw_is_that_of_its_seed(bi):
    rules = {"sampling": "random", "n_negatives": 3, "range_max": 12, "relative_margin": None, "quiet": True}
    one, same = (polyjax.mine(bi, ROWS, seed=1, **rules).rows for _ in range(2))
    other = polyjax.mine(bi, ROWS, seed=2, **rules).rows
    top = {
        row.id: row for row in polyjax.mine(bi, ROWS, **rules | {"sampling": "top", "n_negatives": 12}).rows
    }
    assert one == same != other
    assert all(set(row.negatives) <= set(top[row.id].negatives) for row in (*one, *other))


def test_the_table_counts_each_candidate_once(bi):
    mined = polyjax.mine(
        bi, ROWS, relative_margin=0.01, max_score=24.0, range_min=1, n_negatives=2, quiet=True
    )
    found = mined.skipped
    assert set(found.rules) <= set(RULES) and 0 < found.rules["range_min"] <= found.rows
    text = str(mined)
    looked = found.negatives + sum(found.rules.values())
    assert (
        f"{looked:,}" in text
        and "relative_margin" in text
        and text.splitlines()[-1].split()[-1] == str(found.short)
    )


def test_it_is_written_whole_and_resumes(runs, file, tmp_path, monkeypatch, capsys):
    """Killed after two of its pieces, the same command does the others and writes the same file."""
    monkeypatch.setattr(mining, "ROWS_AT_ONCE", 8)
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    polyjax.mine(runs / "bi", file, whole, quiet=True)
    add, n = Journal.add, []

    def killed(self, results):
        n.append(len(results))
        if len(n) == 3:
            raise KeyboardInterrupt
        add(self, results)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            polyjax.mine(runs / "bi", file, parts, quiet=True)
    work = tmp_path / "parts.jsonl.mining"
    assert not parts.exists() and len((work / "negatives.jsonl").read_text().splitlines()) == 1 + 16
    with (work / "negatives.jsonl").open("a") as cut:
        cut.write('[["cut off in the')
    encoded = []
    encode = mining.make_index
    monkeypatch.setattr(mining, "make_index", lambda *given: encoded.append(given[2]) or encode(*given))
    done = []
    monkeypatch.setattr(Journal, "add", lambda self, results: done.extend(results) or add(self, results))
    capsys.readouterr()
    again = polyjax.mine(runs / "bi", file, parts, quiet=True)
    assert parts.read_bytes() == whole.read_bytes() and not work.exists()
    assert len(done) == again.skipped.rows - 16 and "encoding" not in capsys.readouterr().err
    # Where it is complete, it is read.
    done.clear()
    assert polyjax.mine(runs / "bi", file, parts, quiet=True) == dataclasses.replace(again, rows=parse(parts))
    assert not done
    with pytest.raises(InputError) as refused:
        polyjax.mine(runs / "bi", file, parts, n_negatives=2, quiet=True)
    assert refused.value.argument == "out" and "`n_negatives` (was" in refused.value.problem
    parts.write_text(parts.read_text().replace("lamp", "lamb"))
    with pytest.raises(InputError) as refused:
        polyjax.mine(runs / "bi", file, parts, quiet=True)
    assert "has changed" in refused.value.problem


def test_the_command_writes_what_trains(runs, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "mine.jsonl", tmp_path / "mined.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [
        "mine",
        str(runs / "bi"),
        "--task",
        f"jsonl:{file}",
        "--out",
        str(out),
        "--relative-margin",
        "None",
    ]
    monkeypatch.setattr("sys.argv", ["polyjax", *command])
    cli.main()
    printed = capsys.readouterr().out
    assert "right answer" in printed and f"next: polyjax train --task jsonl:{out}" in printed
    before, after = OwnDataConfig(train=file), OwnDataConfig(train=out)
    for split in ("train", "valid", "test"):
        assert [row.id for row in before.read(split).examples] == [
            row.id for row in after.read(split).examples
        ]
    run = polyjax.fit(
        out,
        arch="bi",
        encoder="tiny",
        loss="kl",
        steps=2,
        text={"context_tokens": 16, "candidate_tokens": 16, "buckets": (16,)},
        batch={"batch_size": 8},
        train={"validate_every_steps": 2},
        rank={"candidates": "sampled", "n": 3},
        run_dir=tmp_path / "run",
        quiet=True,
    )
    assert run.test.model["n"] > 0


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"n_negatives": 0}, "n_negatives"),
        ({"range_min": 4, "range_max": 5}, "range_max"),
        ({"relative_margin": -1.0}, "relative_margin"),
        ({"absolute_margin": float("nan")}, "absolute_margin"),
        ({"max_score": float("nan")}, "max_score"),
        ({"candidates": []}, "candidates"),
        ({"out": ""}, "out"),
        ({"out": "."}, "out"),
        ({"out": "missing/file.jsonl"}, "out"),
        ({"out": "file.csv"}, "out"),
        ({"out": "file"}, "out"),
        ({"min_score": 0.9, "max_score": 0.1}, "min_score"),
        ({"min_score": float("inf")}, "min_score"),
        ({"rescore": True}, "rescore"),
    ],
)
def test_what_cannot_work_is_refused(bi, changes, argument):
    with pytest.raises(InputError) as refused:
        polyjax.mine(bi, ROWS, **changes, quiet=True)
    assert refused.value.argument == argument


TYPES = """
import polyjax
rows = [{"context": f"q{i}", "label": f"l{i}"} for i in range(60)]
cases = {"n_negatives": "7", "max_score": "x", "seed": 1.5, "sampling": "best", "relative_margin": True}
import numpy as np

numpy = {"n_negatives": np.int64(2), "seed": np.int64(3), "absolute_margin": np.float32(0.125), "quiet": True}
ranker = polyjax.Ranker.from_encoder("minilm")
made = polyjax.mine(ranker, rows, "x.jsonl", **numpy)
python = {"n_negatives": 2, "seed": 3, "absolute_margin": 0.125, "quiet": True}
assert polyjax.mine(ranker, rows, "x.jsonl", **python).rows == made.rows
for argument, value in {**cases, "out": 5}.items():
    try:
        polyjax.mine(ranker, rows, **{argument: value})
    except polyjax.InputError as error:
        assert error.argument == argument, (argument, error)
    else:
        raise AssertionError(argument)
"""


def test_arguments_of_other_types_are_named(tmp_path):
    """In a process of its own: the tests check the types of calls."""
    done = subprocess.run(
        [sys.executable, "-c", TYPES], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said_before_mining(bi, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="out: .* cannot be written: Permission denied"):
        polyjax.mine(bi, ROWS, tmp_path / "out.jsonl", quiet=True)


def test_a_cross_encoder_cannot_search(cross):
    with pytest.raises(InputError) as refused:
        polyjax.mine(cross, ROWS, quiet=True)
    assert refused.value.argument == "model"


def test_the_margin_of_a_negative_score_is_below_it():
    rules = MiningConfig(relative_margin=0.1)
    right = {"right answer": np.array([True, False, False])}
    places, skipped = choose(np.array([-1.0, -1.05, -1.2]), right, -1.0, rules, row=0)
    assert places.tolist() == [2] and skipped["relative_margin"] == 1


def test_python_names_models_as_the_commands_do(tmp_path):
    mined = polyjax.mine("minilm", ROWS[:8], n_negatives=1, relative_margin=None, quiet=True)
    assert mined.skipped.negatives == sum(len(row.negatives) for row in mined.rows) - 2 > 0
    results = polyjax.evaluate("minilm", ROWS, quiet=True)
    assert next(iter(results.values()))["n"] == len(ROWS)
