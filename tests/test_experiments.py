"""The commands as a user types them, on a model small enough for a test."""

import importlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import FAST_COMPILATION
from polyjax import InputError, Ranker
from polyjax.cli.training_flags import parse_run
from polyjax.recipes.tensorboard import tensorboard_log

ROOT = Path(__file__).parents[1]
FROM_SCRATCH = ["--encoder", "tiny", "--tokenizer", "sentencepiece", "--tokenizer.vocab-size", "600"]
SHORT = ["--train.steps", "6", "--train.validate-every-steps", "3", "--train.validate-examples", "20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


def command(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "XLA_FLAGS": FAST_COMPILATION,
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / script), *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )


def arguments(arch: str, folder: Path) -> list[str]:
    return ["--arch", arch, "--run-dir", str(folder / arch), *FROM_SCRATCH, *SHORT]


@pytest.fixture(scope="module")
def finished(folder):
    """A run from scratch, with its own vocabulary."""
    done = command("run.py", *arguments("poly", folder), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "poly", done.stdout


def test_a_run_prints_a_table_and_leaves_everything_in_one_folder(finished):
    run_dir, printed = finished
    for expected in ("chance", "TF-IDF", "poly-encoder", "recall@1/20", "95% interval", "programs compiled"):
        assert expected in printed
    for name in (
        "config.json",
        "model.json",
        "metrics.jsonl",
        "report.md",
        "results.json",
        "tokenizer",
        "checkpoints",
    ):
        assert (run_dir / name).exists(), name
    assert {p.name for p in (run_dir / "figures").iterdir()} == {
        "learning_curve.png",
        "recall.png",
        "ranks.png",
    }
    assert not list(run_dir.rglob("*.partial"))


def test_tfidf_is_as_expected(finished):
    """About .390 recall@1/20 on the test rows: the proof that the readers feed the right text."""
    results = json.loads((finished[0] / "results.json").read_text())
    tfidf = next(figures for name, figures in results.items() if name.startswith("TF-IDF"))
    assert tfidf["n"] == 3884
    assert 0.375 < tfidf["recall@1/20"] < 0.405
    assert results["chance"]["recall@1/20"] == pytest.approx(0.05)


def test_evaluate_gives_the_same_figures(finished, folder):
    run_dir, _ = finished
    done = command("evaluate.py", str(run_dir), "--split", "test", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    row = next(line for line in done.stdout.splitlines() if "poly-encoder" in line)
    figures = [float(x) for x in re.findall(r"\d\.\d+", row)]
    printed = [figures[0], *figures[3:6]]  # between them: the interval of recall@1
    results = json.loads((run_dir / "results.json").read_text())["poly-encoder"]
    assert printed == [round(results[f"recall@{k}/20"], 3) for k in (1, 2, 5, 10)]


def test_evaluate_on_some_rows(finished, folder):
    done = command("evaluate.py", str(finished[0]), "--examples", "50", folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chitchat test, 50 rows" in done.stdout


def test_own_data(folder, tmp_path):
    draw = random.Random(0)
    words = ["apple", "river", "stone", "cloud", "train", "music", "paper", "light", "water", "chair", "dog"]
    chosen = [draw.sample(words, 3) for _ in range(300)]
    rows = [
        {"context": [f"tell me of {a}", f"and {b}"], "label": f"i like {a} and {b}, not {c}", "id": i}
        for i, (a, b, c) in enumerate(chosen)
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scratch = [*FROM_SCRATCH[:-1], "292", *SHORT, "--batch.batch-size", "8"]
    task = ["--task", f"jsonl:{file}", "--task.n-candidates", "10"]
    done = command("run.py", *task, *scratch, "--run-dir", str(tmp_path / "run"), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"mine: 2\d\d / \d\d / \d\d examples in train / valid / test", done.stdout)
    card = (tmp_path / "run" / "report.md").read_text()
    assert "rows of mine.jsonl" in card
    assert re.search(r"poly-encoder: the right one of 10 comes first in \d+\.\d% of \d\d rows, ", done.stdout)
    assert re.search(r"chance +0\.100 +exact", done.stdout)
    for fact in (
        "## Recipe",
        "command: `python experiments/run.py --",
        "licence of the data: its owner's",
        "not meant for",
    ):
        assert fact in card, fact
    out = ["--k", "3", "7", "--out", str(tmp_path / "out")]
    done = command("evaluate.py", str(tmp_path / "run"), *out, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"recall@1/10 +95% interval +@3 +@7 +MRR", done.stdout)
    figures = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"recall@1/10", "recall@3/10", "recall@7/10", "mrr", "loss"} <= set(figures)
    assert len((tmp_path / "out" / "examples.jsonl").read_text().splitlines()) == figures["n"]
    assert "warning" not in done.stdout
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows[:40]))
    task_of_other = ["--task", f"jsonl:{other}", "--task.n-candidates", "10"]
    done = command("evaluate.py", str(tmp_path / "run"), *task_of_other, folder=folder)
    assert "other test, 40 rows" in done.stdout, "all of them: none was set aside to train on"
    assert re.search(r"warning: the run was trained on [23]\d of these 40 rows", done.stdout)
    file.write_text(file.read_text().replace("stone", "rock") + json.dumps(rows[0] | {"id": 300}) + "\n")
    done = command("run.py", *task, *scratch, "--run-dir", str(tmp_path / "run"), folder=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    words = (
        r"belongs to a run with other data: \d+ of \d+ train rows are new or changed, \d+ of the \d+ before"
    )
    assert re.search(words, " ".join(done.stderr.split())), done.stderr
    assert (tmp_path / "run" / "report.md").read_text() == card
    done = command("evaluate.py", str(tmp_path / "run"), folder=folder)
    assert "these are not the test rows that the run had" in " ".join(done.stdout.split())
    file.write_text(file.read_text() + "{}\nno json\n")
    done = command("run.py", *task, *scratch, "--run-dir", str(tmp_path / "other"), folder=folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "2 bad lines" in done.stderr and "line 302: the key 'context' is missing" in done.stderr


def test_the_ranker_ranks(finished):
    ranker = Ranker.load(finished[0])
    candidates = ["great!", "a red car", "", "x " * 400]
    ranked = ranker.rank(["hello", "hi, how are you?"], candidates)
    assert sorted(r.index for r in ranked) == [0, 1, 2, 3]
    assert [r.score for r in ranked] == sorted((r.score for r in ranked), reverse=True)
    np.testing.assert_allclose(
        ranker.score(["hello", "hi, how are you?"], candidates[:1])[0],
        next(r.score for r in ranked if r.index == 0),
        rtol=1e-5,
    )
    assert ranker.rank("hi", candidates, top_k=2) == ranker.rank("hi", candidates)[:2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.rank("hi", []), r"candidates: expected at least one text, got \[\]"),
        (lambda r: r.rank([], ["a"]), r"context: expected at least one text, got \[\]"),
        (lambda r: r.rank("hi", "a b"), r"expected a list of texts, got one text; write \[text\]"),
        (lambda r: r.rank("hi", ["a"], top_k=0), "top_k: expected a whole number of at least 1, got 0"),
    ],
)
def test_the_ranker_says_what_is_wrong(finished, call, message):
    with pytest.raises(InputError, match=message):
        call(Ranker.load(finished[0]))


def test_the_same_command_again_reports_the_same_figures(finished, folder):
    before = json.loads((finished[0] / "results.json").read_text())
    done = command("run.py", *arguments("poly", folder), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((finished[0] / "results.json").read_text()) == before


def test_another_config_is_refused_and_nothing_is_lost(finished, folder):
    run_dir, _ = finished
    before = (run_dir / "metrics.jsonl").read_bytes()
    done = command("run.py", *arguments("poly", folder), "--optim.learning-rate", "1", folder=folder)
    assert done.returncode == 2
    line = done.stderr.strip()
    assert "--optim.learning-rate was 0.0001, now 1.0" in line and "choose another --run-dir" in line
    assert "\n" not in line
    assert (run_dir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["config.json", "model.json"])
@pytest.mark.parametrize("content", [None, "", "{", '{"type": "ModelCard"}', "[]"])
def test_a_half_written_run_directory_is_one_line(finished, folder, tmp_path, name, content):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_text(content)
    if name == "model.json":
        with pytest.raises(InputError) as caught:
            Ranker.load(copy)
        assert str(copy / name) in str(caught.value) and "\n" not in str(caught.value)
        return
    done = command("evaluate.py", str(copy), folder=folder)
    assert done.returncode == 2
    assert str(copy / name) in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--arch", "pooly"], "Expected one of ('bi', 'poly', 'cross')"),
        (["--arch", "bi", "--head.n-codes", "16"], "unrecognized options: --head.n-codes"),
        (["--optim.learning-rate", "fast"], "--optim.learning-rate: could not convert string to float"),
        (["--train.steps"], "Missing value for argument '--train.steps'"),
        (["--preset=lng"], "Expected one of ('demo', 'long')"),
        (["--train.epochs", "2"], "set --train.steps to 0 to count in epochs"),
        (["--batch.n-negatives", "3"], "--batch.n-negatives: does nothing with --arch poly"),
        (
            ["--text.candidate-tokens", "600"],
            "--text.candidate-tokens: expected at most the encoder's 512 positions",
        ),
        (["--train.seed", "-1"], "--train.seed: expected 0 or more, and finite, got -1"),
        (
            ["--head.n-codes", "0"],
            "--head.n-codes: expected at least 1 (the paper uses 16, 64 and 360), got 0",
        ),
        (
            ["--encoder", "no/such/folder"],
            "expected minilm, paper, small, tiny, a folder as transformers",
        ),
        (["--tokenizer", "sentencepiece"], "choose an --encoder from scratch"),
        (["--text.context-tokens", "600"], "expected at most the encoder's 512 positions"),
        (["--task", "squad"], "expected chitchat, convai2, dstc7, ubuntu_v2, wikipedia_search or jsonl:PATH"),
        (
            ["--task", "convai2"],
            "train_self_original.txt: the file is missing; it is part of the ConvAI2",
        ),
        (
            ["--task.min-label-words", "500"],
            "no example of split 'train' has a label of that many words",
        ),
        ([*FROM_SCRATCH, "--train.trainable", "9"], "or 0 to 2 layers, got 9"),
        (["--run-dir", "/proc/nowhere"], "cannot be written"),
    ],
)
def test_mistakes_are_named_with_status_2(extra, message, folder, tmp_path, monkeypatch, capsys):
    run_dir = [] if "--run-dir" in extra else ["--run-dir", str(tmp_path / "run")]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["run.py", *run_dir, *extra])
    run = importlib.import_module("polyjax.cli.train")
    monkeypatch.setattr(run, "restart_with_huge_pages", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        run.main()
    assert stopped.value.code == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert message in printed and printed.startswith("error: ") and printed.count("error: ") == 1


def test_a_mistake_is_one_line(tmp_path):
    """In an empty folder, where the data are prepared first: tensorflow-datasets warned of its folders."""
    done = command("run.py", "--task.min-label-words", "500", "--run-dir", "no", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_tensorboard_gets_the_figures(tmp_path, monkeypatch):
    config = parse_run(["--run-dir", str(tmp_path), "--tensorboard"], prog="run")
    with tensorboard_log(config.folder, wanted=config.tensorboard) as log:
        log(3, "train", {"loss": 1.5, "note": "left out"})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content and b"note" not in content
    assert np.float32(1.5).tobytes() in content


def test_help_is_readable(folder):
    done = command("run.py", "--arch", "bi", "--help", folder=folder)
    assert done.returncode == 0
    for flag in (
        "--arch",
        "--encoder",
        "--head.score-scale",
        "--optim.learning-rate",
        "--train.steps",
        "--run-dir",
    ):
        assert flag in done.stdout
    assert "--head.n-codes" not in done.stdout
