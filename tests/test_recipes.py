"""The paper's recipes, the presets' lengths by task, and what --dry-run says."""

import importlib
import json
import re
from pathlib import Path

import pytest

import test_experiments
from conftest import shared_data
from polyjax import BiConfig, CrossConfig, InputError, PolyConfig
from polyjax.cli.training_flags import parse_run
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import convai2, dstc7, ubuntu_v2
from polyjax.recipes.evaluate import chosen_rank

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("task", ["convai2", "dstc7", "ubuntu_v2", "wikipedia_search"])
@pytest.mark.parametrize("arch", ["bi", "poly", "cross"])
def test_recipes_hold_the_project_pages_settings(task, arch):
    """ParlAI, projects/polyencoder/README.md: its flags, by our names."""
    config = parse_run(["--recipe", f"{task}-{arch}"], prog="run")
    optim, train, encoder = config.optim, config.train, config.encoder
    assert (optim.optimizer, optim.learning_rate, optim.clip, optim.weight_decay) == (
        "adamax",
        5e-5,
        0.1,
        0.0,
    )
    assert (optim.decay, optim.plateau_patience, optim.plateau_factor) == ("plateau", 0, 0.4)
    assert optim.warmup_steps == {"bi": 100, "poly": 100, "cross": 1000}[arch] and optim.head_rate == 1.0
    assert config.batch.batch_size == {"bi": 512, "poly": 256, "cross": 16}[arch]
    assert train.epochs == {"bi": 10, "poly": 8, "cross": 12}[arch] and train.validate_every_epochs == 0.5
    assert train.validate_examples == {"bi": 8000, "poly": 8000, "cross": 2500}[arch]
    assert (train.best_by, train.time_limit, train.trainable) == ("recall@1", 200_000, "all")
    assert (config.text.max_turns, config.text.context_tokens, config.text.candidate_tokens) == (20, 360, 72)
    assert (encoder.output_scaling, encoder.dropout, encoder.attention_dropout) == (0.06, 0.1, 0.1)
    expected = {
        "bi": BiConfig(reduction="mean"),
        "poly": PolyConfig(n_codes=64, reduction="mean", codes_std=1.0),
        "cross": CrossConfig(reduction="first"),
    }
    assert config.head == expected[arch]
    source = config.batch.source("pairs" if arch == "cross" else "dual")
    listed = task in ("convai2", "dstc7")
    assert source == ("batch" if arch != "cross" else "inline" if listed else "sampled")
    assert config.batch.n_negatives == 15
    assert str(config.folder) == f"runs/{task}-{arch}-paper"


def test_who_says_how_long_to_train_gets_that():
    """However few the rows are; otherwise few rows end the demo's updates."""
    parse = parse_run
    assert parse([], prog="run").train.most_epochs == 5
    assert parse(["--train.steps=500"], prog="run").train.most_epochs == 0
    assert parse(["--train.steps", "0", "--train.epochs", "30"], prog="run").train.most_epochs == 0
    assert parse(["--train.steps", "500", "--train.most-epochs", "3"], prog="run").train.most_epochs == 3


def test_a_cross_encoder_may_learn_from_any_candidates():
    config = parse_run(["--arch", "cross", "--batch.candidates", "inline"], prog="run")
    assert config.batch.source("pairs") == "inline"


def test_evaluation_ranks_as_the_run_did_or_as_asked():
    chosen, config = chosen_rank, RankConfig
    sampled = config(candidates="sampled", n=30)
    assert chosen(sampled, config()) == sampled
    assert chosen(sampled, config(n=50)) == config(candidates="sampled", n=50)
    assert chosen(sampled, config(candidates="batch", n=5)) == config(candidates="batch", n=5)
    with pytest.raises(InputError, match="rank.n: has no effect"):
        chosen(config(), config(n=50))


def test_bert_recipes_start_from_a_folder():
    config = parse_run(["--recipe", "dstc7-poly-bert", "--encoder", "/some/bert"], prog="run")
    assert config.encoder.name == "/some/bert" and config.encoder.output_scaling == 1.0
    assert config.train.trainable == "all-but-embeddings" and config.tokenizer.kind == "pretrained"
    assert config.optim.learning_rate == 5e-5 and config.batch.batch_size == 256


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "squad-poly"], "expected TASK-ARCH or TASK-ARCH-bert, one of convai2-bi, "),
        (
            ["--recipe", "convai2-poly", "--arch", "bi"],
            "arch: expected poly, the architecture of recipe convai2-poly",
        ),
        (["--recipe", "convai2-poly", "--preset", "long"], "give one of them"),
        (["--recipe", "convai2-poly", "--task", "dstc7"], "leave task out"),
        (["--optim.warmup-steps", "5", "--optim.warmup", "0.2"], "--optim.warmup: does nothing"),
        (["--rank.n", "5"], "--rank.n: does nothing"),
        (["--batch.candidates", "inline", "--batch.n-negatives", "3"], "--batch.n-negatives: does nothing"),
        (["--batch.chunk", "33"], "--batch.chunk: expected at most the 32 contexts of a batch, got 33"),
    ],
)
def test_settings_that_contradict_each_other(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        parse_run(arguments, prog="run")


def test_tasks_bring_lengths_that_suit_their_texts():
    parse = parse_run
    assert parse([], prog="run").text.context_tokens == 80
    text = parse(["--task", "convai2"], prog="run").text
    assert (text.max_turns, text.context_tokens) == (20, 256), "the persona is the first turn"
    assert parse(["--task", "wikipedia_search"], prog="run").text.candidate_tokens == 128
    changed = parse(["--task", "convai2", "--text.context-tokens", "99"], prog="run").text
    assert (changed.context_tokens, changed.max_turns) == (99, 20)
    cross = parse(["--task", "ubuntu_v2", "--arch", "cross"], prog="run").text
    assert cross.pair_limit() in cross.buckets


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "convai2-bi-bert"],
        ["--recipe", "convai2-cross-bert", "--batch.chunk", "2"],
        ["--task", "jsonl:mine.jsonl", "--batch.batch-size", "4"],
    ],
)
def test_a_dry_run_says_what_it_would_do_and_does_nothing(tmp_path, arguments):
    rows = [{"context": [f"hi {i}"], "label": f"yes {i}"} for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--encoder", "tiny", "--tokenizer", "sentencepiece", "--text.context-tokens", "32"]
    small += ["--text.candidate-tokens", "16", "--train.trainable", "all"]
    done = test_experiments.command("run.py", *arguments, *small, "--dry-run", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for expected in ("layers x 32", "training rows:", "steps:", "memory of a step", "run directory:"):
        assert expected in done.stdout, expected
    if "convai2" in arguments[1]:
        assert "131,438 (the official file's count; " in done.stdout
        updates = {"convai2-bi-bert": "2,560 of 512", "convai2-cross-bert": "98,568 of 16"}[arguments[1]]
        assert f"steps: {updates} contexts" in done.stdout
    else:
        assert re.search(r"rows to rank: \d+ valid, \d+ test", done.stdout)
    assert not (tmp_path / "runs").exists()


def test_the_flag_that_is_nearest_is_named_first():
    with pytest.raises(
        InputError, match="run: unrecognized options: --train.step; did you mean --train.steps or "
    ):
        parse_run(["--train.step", "10"], prog="run")


def test_a_dry_run_looks_at_the_rows_to_rank(tmp_path):
    """What a run would refuse at once."""
    rows = [{"context": [f"hi {i}"], "label": f"yes {i}"} for i in range(18)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--task", "jsonl:mine.jsonl", "--batch.batch-size", "4", "--encoder", "tiny"]
    done = test_experiments.command(
        "run.py", *arguments, "--tokenizer", "sentencepiece", "--dry-run", folder=tmp_path
    )
    assert done.returncode == 2
    assert "there are too few different labels to draw valid candidates from: 18" in done.stderr


def test_samples_are_whole_tasks(tmp_path, monkeypatch):
    data = shared_data("convai2").parent
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    samples = importlib.import_module("samples")
    samples.run(samples.SamplesConfig(data=data, out=tmp_path))
    train, valid = (
        list(convai2.parse(tmp_path / "convai2" / f"{name}_self_original_no_cands.txt"))
        for name in ("train", "valid")
    )
    assert (len({e.group for e in train}), len({e.group for e in valid})) == (500, 200)
    parsed = {
        name: list(ubuntu_v2.parse(tmp_path / "ubuntu_v2" / f"{name}.csv")) for name in ("valid", "test")
    }
    assert [len(rows) for rows in parsed.values()] == [300, 777]
    answers = dstc7.read_answers(tmp_path / "dstc7" / "ubuntu_responses_subtask_1.tsv")
    test = list(dstc7.parse(tmp_path / "dstc7" / "ubuntu_test_subtask_1.json", answers=answers))
    augmented = list(dstc7.parse(tmp_path / "dstc7" / "ubuntu_train_subtask_1_augmented.json"))
    assert len(test) == 502 and {len(e.candidates) for e in test} == {100}
    v2 = [e for e in augmented if e.id.startswith("v2-")]
    assert len(v2) == 14_261 and all(e.context[-1].startswith("participant 1: ") for e in v2)
    augmented = [e for e in augmented if not e.id.startswith("v2-")]
    assert len(augmented) > 3 * 400 and all(e.label_text for e in augmented)
    helper = [e for e in augmented if "-" in e.id]
    assert (
        all(e.context[-1].startswith("participant") for e in helper) and len(helper) == len(augmented) - 400
    )
