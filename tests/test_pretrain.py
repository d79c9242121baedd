"""Pre-training as a user types it, and what fine-tuning takes from it."""

import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx

from conftest import FAST_COMPILATION
from polyjax import CrossConfig, EncoderConfig, InputError, PolyConfig, make_scorer
from polyjax.cli.pretrain import parse as parse_pretrain
from polyjax.cli.training_flags import parse_run
from polyjax.data.corpora.leakage import held_out_of
from polyjax.data.corpora.prepare import CorpusConfig, prepare_pieces
from polyjax.data.dictionary import DictionaryTokenizer
from polyjax.data.tasks import chitchat
from polyjax.data.text import TextConfig
from polyjax.data.tokenizers import load_tokenizer, train_sentencepiece
from polyjax.interop.pretrained import (
    encoder_shape,
    load_pretrained,
    load_pretrainer,
    read_pretraining_card,
)
from polyjax.nn.encoders import Encoder
from polyjax.nn.pretraining import Pretrainer
from polyjax.nn.scorers import ModelConfig
from polyjax.recipes import start
from polyjax.runs import Checkpoints, LeftOut, MetricsLog, ModelCard, flat_parameters, write_model
from test_experiments import ROOT, SHORT, command

WORDS = [
    "apple",
    "river",
    "stone",
    "cloud",
    "train",
    "music",
    "paper",
    "light",
    "water",
    "chair",
    "dog",
    "cat",
]


def write_corpus(folder):
    """Conversations about a word each, as JSON lines."""
    draw = random.Random(0)
    path = folder / "corpus.jsonl"
    with path.open("w") as file:
        for i in range(400):
            topic = draw.choice(WORDS)
            turns = [" ".join([topic, *draw.sample(WORDS, draw.randint(1, 4))]) for _ in range(4)]
            file.write(json.dumps({"id": str(i), "turns": turns}) + "\n")
    return path


def flags(folder, path):
    return [
        *("--corpus", f"pairs:{path}", "--corpus.dir", str(folder / "data"), "--corpus.held-out", "0.1"),
        *("--encoder", "tiny", "--vocabulary.size", "290", "--text.context-tokens", "32"),
        *("--text.candidate-tokens", "17", "--batch.tokens", "768", "--validate-batches", "2"),
        *("--train.steps", "30", "--train.validate-every-steps", "10", "--train.save-every-steps", "7"),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pretraining")


@pytest.fixture(scope="module")
def pretrained(folder):
    done = command(
        "pretrain.py", *flags(folder, write_corpus(folder)), "--run-dir", str(folder / "run"), folder=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run", done.stdout


def test_a_run_leaves_everything_in_one_folder(pretrained):
    run_dir, printed = pretrained
    assert (
        "pairs to train on" in printed
        and "polyjax train --arch poly --encoder" in printed
        and "masked tokens" in printed
    )
    for name in (
        "config.json",
        "pretraining.json",
        "metrics.jsonl",
        "report.md",
        "results.json",
        "tokenizer",
    ):
        assert (run_dir / name).exists(), name
    assert (run_dir / "figures" / "learning.png").stat().st_size > 10_000
    results = json.loads((run_dir / "results.json").read_text())
    valid = [row for row in MetricsLog.read(run_dir) if row["kind"] == "valid"]
    assert [row["step"] for row in valid] == [10, 20, 30]
    assert results["loss"] == min(row["loss"] for row in valid)
    assert not list(run_dir.rglob("*.partial"))


def test_a_killed_run_ends_bit_identical(pretrained, folder):
    run_dir = folder / "killed"
    compiled = {"XLA_FLAGS": FAST_COMPILATION}
    arguments = [*flags(folder, folder / "corpus.jsonl"), "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "pretrain.py"), *arguments],
        env=os.environ | compiled,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (run_dir / "checkpoints" / "7").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (run_dir / "checkpoints" / "30").exists(), "the run ended before it could be killed"
    done = command("pretrain.py", *arguments, folder=folder)
    assert done.returncode == 0 and "resuming" in done.stdout, done.stdout + done.stderr
    whole, again = (
        flat_parameters(nnx.state(Checkpoints(path, read_only=True).restore_parameters(fresh(path), 30)))
        for path in (pretrained[0], run_dir)
    )
    for name, value in whole.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


def fresh(run_dir):
    return Pretrainer(read_pretraining_card(run_dir).encoder, rngs=nnx.Rngs(9))


def test_the_encoder_is_that_of_the_best_validation(pretrained):
    run_dir, _ = pretrained
    encoder = Encoder(encoder_shape(run_dir), rngs=nnx.Rngs(5))
    load_pretrained(encoder, run_dir)
    restored = Checkpoints(run_dir, read_only=True).restore_parameters(fresh(run_dir)).encoder
    for one, other in zip(
        jax.tree.leaves(nnx.state(encoder)), jax.tree.leaves(nnx.state(restored)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    other = Encoder(encoder_shape(run_dir).tiny(100), rngs=nnx.Rngs(5))
    with pytest.raises(InputError, match="vocab_size"):
        load_pretrained(other, run_dir)


def test_fine_tuning_goes_on_from_it(pretrained, folder, monkeypatch):
    run_dir, _ = pretrained
    config = parse_run(
        ["--arch", "poly", "--init-from", str(run_dir), "--run-dir", str(folder / "x")], prog="run"
    )
    source = start.pretrained_folder(config)
    assert source == run_dir
    shape = start.encoder_config(config, source, 0)
    scorer = start.initial_scorer(config, shape, source)
    restored = Checkpoints(run_dir, read_only=True).restore_parameters(fresh(run_dir)).encoder
    np.testing.assert_array_equal(
        scorer.context_encoder.embeddings.tokens[...], restored.embeddings.tokens[...]
    )
    assert not np.array_equal(
        scorer.context_encoder.embeddings.tokens[...],
        make_scorer(shape, PolyConfig(), rngs=nnx.Rngs(0)).context_encoder.embeddings.tokens[...],
    )
    done = command(
        "run.py",
        *("--arch", "poly", "--init-from", str(run_dir), "--run-dir", str(folder / "tuned")),
        *("--test-examples", "40", "--text.context-tokens", "64", "--text.buckets", "32", "64", *SHORT),
        folder=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "poly-encoder" in done.stdout
    assert "were not left out of its corpus" in " ".join(done.stdout.split())


def test_pretraining_goes_on_from_an_encoder(pretrained, folder):
    run_dir, _ = pretrained
    rest = without_shape(flags(folder, folder / "corpus.jsonl"))  # its shape and vocabulary are the run's
    done = command(
        "pretrain.py",
        *(*rest, "--init-from", str(run_dir), "--run-dir", str(folder / "more"), "--leave-out", "chitchat"),
        folder=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first = [row["loss"] for row in MetricsLog.read(folder / "more") if row["kind"] == "train"][0]
    before = [row["loss"] for row in MetricsLog.read(run_dir) if row["kind"] == "train"][0]
    assert first < 0.9 * before, "it had learnt something"
    (left_out,) = read_pretraining_card(folder / "more").left_out
    data = chitchat.ChitchatConfig(data_dir=folder / "data")
    assert left_out == LeftOut(task="chitchat", digest=held_out_of(data).digest)


def test_its_heads_go_on_too(pretrained, monkeypatch):
    run_dir, _ = pretrained
    model = Pretrainer(encoder_shape(run_dir), rngs=nnx.Rngs(4))
    load_pretrainer(model, run_dir)
    whole = Checkpoints(run_dir, read_only=True).restore_parameters(fresh(run_dir))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(whole))


@pytest.mark.parametrize("arch", ["poly", "cross"])
def test_the_encoder_of_a_ranking_run_is_pretrained_further(arch, pretrained, folder, tmp_path):
    """Domain adaptation: run.py's result, or a converted model of ParlAI's, is an encoder like any other."""
    shape = EncoderConfig.tiny(300)
    train_sentencepiece([" ".join(WORDS)] * 50, tmp_path / "sentencepiece.model", vocab_size=284)
    head = PolyConfig(n_codes=4) if arch == "poly" else CrossConfig()
    scorer = make_scorer(shape, head, rngs=nnx.Rngs(0))
    card = ModelCard(model=ModelConfig(encoder=shape, head=head), text=TextConfig())
    write_model(tmp_path / "ranker", scorer, card, load_tokenizer(tmp_path), config={})
    rest = without_shape(flags(folder, folder / "corpus.jsonl"))
    more = (
        "--init-from",
        str(tmp_path / "ranker"),
        "--run-dir",
        str(tmp_path / "more"),
        "--train.steps",
        "1",
    )
    done = command(
        "pretrain.py", *rest, *more, "--optim.learning-rate", "1e-9", "--train.validate-every-steps", "1",
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = Encoder(encoder_shape(tmp_path / "more"), rngs=nnx.Rngs(5))
    load_pretrained(found, tmp_path / "more")
    before = scorer.encoder if arch == "cross" else scorer.context_encoder
    for one, other in zip(jax.tree.leaves(nnx.state(found)), jax.tree.leaves(nnx.state(before)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)
    assert load_tokenizer(tmp_path / "more" / "tokenizer").vocab_size == 284


def test_a_recipe_is_trained_from_it(pretrained, folder, monkeypatch):
    """The recipe's own vocabulary makes way for that of the run."""
    run_dir, _ = pretrained
    recipe = ["--recipe", "ubuntu_v2-poly", "--text.context-tokens", "20", "--text.candidate-tokens", "10"]
    config = parse_run([*recipe, "--init-from", str(run_dir)], prog="run")
    assert (config.tokenizer.kind, config.encoder.name) == ("pretrained", str(run_dir))
    assert config.encoder.output_scaling == 0.06 and config.optim.optimizer == "adamax"
    assert parse_run(recipe, prog="run").tokenizer.kind == "sentencepiece"
    with pytest.raises(InputError, match="which has no head; give it as encoder"):
        parse_run(["--init", str(run_dir)], prog="run")


def test_the_papers_preset_is_the_papers(monkeypatch):
    """arXiv 1905.01969, section 4.1, as far as it says; a batch is 64 x 513 tokens on each of 32 GPUs."""
    from polyjax.recipes import pretrain

    config = parse_pretrain(["--preset", "paper", "--corpus", "pairs:x"])
    assert (config.optim.optimizer, config.optim.learning_rate, config.optim.decay) == (
        "adamw", 2e-4, "inverse-sqrt",
    )  # fmt: skip
    assert config.optim.weight_decay == 0 and config.optim.b2 == 0.98 and config.batch.tokens == 32 * 32_768
    shape = pretrain.encoder_config(config, None, config.vocabulary.size)
    assert (shape.n_layers, shape.dim, shape.n_heads) == (12, 768, 12)
    config.text.check_positions(shape.n_positions, paired=True)
    lengths = config.text.pair_limit()
    assert config.batch.tokens // lengths >= 32 * 60


def bert_folder(folder, more=0):
    """The tiny BERT of the golden files with a vocabulary of letters, and so many more tokens."""
    shutil.copytree(ROOT / "tests" / "golden" / "tiny_bert", folder)
    letters = [form for letter in "abcdefghijklmnopqrstuvwxyz" for form in (letter, f"##{letter}")]
    pieces = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters])}
    pieces |= {f"more{i}": len(pieces) + i for i in range(more)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def without_shape(rest):
    at = rest.index("--encoder")
    return [*rest[:at], *rest[at + 4 :]]


def test_it_goes_on_from_a_hugging_face_folder(pretrained, folder, tmp_path):
    bert = bert_folder(tmp_path / "bert")
    lengths = ["--text.context-tokens", "14", "--text.candidate-tokens", "7"]
    done = command(
        "pretrain.py",
        *without_shape(flags(folder, folder / "corpus.jsonl")),
        *(*lengths, "--init-from", str(bert), "--run-dir", str(tmp_path / "run")),
        folder=folder,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shape, before = read_pretraining_card(tmp_path / "run").encoder, encoder_shape(bert)
    assert (shape.dim, shape.n_layers, shape.vocab_size) == (before.dim, before.n_layers, 60)
    start, end = (Encoder(shape, rngs=nnx.Rngs(3)) for _ in range(2))
    load_pretrained(start, bert)
    load_pretrained(end, tmp_path / "run")
    moved = np.abs(np.asarray(end.embeddings.tokens[...]) - np.asarray(start.embeddings.tokens[...]))
    assert 0 < moved.mean() < 0.1 * np.abs(np.asarray(start.embeddings.tokens[...])).mean()


def test_a_dictionary_of_parlai_is_a_vocabulary(pretrained, folder, tmp_path, parlai_models):
    dictionary = parlai_models / "bi_shared_max_trained" / "model.dict"
    rest = flags(folder, folder / "corpus.jsonl")
    rest[rest.index("--vocabulary.size") : rest.index("--vocabulary.size") + 2] = [
        "--vocabulary.source",
        str(dictionary),
    ]
    done = command("pretrain.py", *rest, "--run-dir", str(tmp_path / "run"), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert isinstance(tokenizer, DictionaryTokenizer)
    assert read_pretraining_card(tmp_path / "run").encoder.vocab_size == tokenizer.vocab_size


def test_a_killed_preparation_goes_on(folder, tmp_path):
    """SIGKILL while pieces are prepared: what is whole is kept, and the rest is made."""
    path = write_corpus(tmp_path)
    arguments = [*flags(tmp_path, path), "--corpus.piece-mb", "0.003", "--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "pretrain.py"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    prepared = tmp_path / "data" / "pretraining_piece"
    while len(found := list(prepared.rglob("dataset_info.json"))) < 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list((tmp_path / "data").rglob("done.json")), "it ended before it could be killed"
    kept = {file: file.stat().st_mtime_ns for file in found}
    config = CorpusConfig(files=(f"pairs:{path}",), dir=tmp_path / "data", piece_mb=0.003)
    texts = [conversation.turns for piece in prepare_pieces(config) for conversation in piece]
    expected = [tuple(json.loads(line)["turns"]) for line in path.read_text().splitlines()]
    assert sorted(texts) == sorted(expected)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_conversations_of_a_task_s_tests_are_left_out(pretrained, folder, tmp_path):
    """The first test conversation of chitchat, in other letters, beside the corpus."""
    conversation = next(iter(chitchat.read_conversations("test", folder / "data")))
    path = tmp_path / "more.jsonl"
    turns = [" ".join(re.findall(r"\w+", turn.upper())) or "?" for turn in conversation.turns]
    path.write_text((folder / "corpus.jsonl").read_text() + json.dumps({"id": "test", "turns": turns}) + "\n")
    rest = flags(folder, path)
    done = command(
        "pretrain.py", *rest, "--leave-out", "chitchat", "--run-dir", str(tmp_path / "run"), folder=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 conversations left out (chitchat)" in done.stdout


def test_a_second_command_does_not_touch_a_run_that_goes_on(pretrained, folder, tmp_path):
    run_dir = tmp_path / "run"
    first = [*flags(folder, folder / "corpus.jsonl"), "--train.steps", "3000", "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "experiments" / "pretrain.py"), *first],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while not (run_dir / "tokenizer" / "sentencepiece.model").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        settings = (run_dir / "config.json").read_text()
        other = [*first, "--text.context-tokens", "24"]
        done = command("pretrain.py", *other, folder=folder)
        assert done.returncode == 2 and "another process is training there" in done.stdout + done.stderr
        assert process.poll() is None, "it ended before it could be disturbed"
        assert (run_dir / "config.json").read_text() == settings
        assert (run_dir / "tokenizer" / "sentencepiece.model").exists()
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_run_does_not_go_on_with_another_corpus(pretrained, folder, tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines))
    arguments = [*flags(folder, path), "--run-dir", str(tmp_path / "run")]
    assert command("pretrain.py", *arguments, folder=folder).returncode == 0
    path.write_text("".join(lines[100:]))
    done = command("pretrain.py", *arguments, folder=folder)
    assert done.returncode == 2 and "the corpus has changed since this run began" in " ".join(
        (done.stdout + done.stderr).split()
    )


def test_a_broken_line_is_one_line_of_output(folder, tmp_path):
    path = write_corpus(tmp_path)
    with path.open("a") as file:
        file.write("{broken\n")
    done = command("pretrain.py", *flags(tmp_path, path), "--run-dir", str(tmp_path / "run"), folder=folder)
    assert done.returncode == 2
    assert ":401: expected an object with turns" in done.stderr and "while running" not in done.stderr
    assert "Traceback" not in done.stdout + done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_vocabulary_that_the_encoder_has_no_rows_for_is_refused(folder, tmp_path):
    bert = bert_folder(tmp_path / "bert", more=20)
    path = write_corpus(tmp_path)
    lengths = ["--text.context-tokens", "14", "--text.candidate-tokens", "7"]
    rest = [*without_shape(flags(tmp_path, path)), *lengths, "--run-dir", str(tmp_path / "run")]
    done = command("pretrain.py", *rest, "--init-from", str(bert), folder=folder)
    assert done.returncode == 2 and "more than the 60 rows" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--corpus: no corpus is given"),
        (["--corpus", "pears:x"], "expected pairs:FILES or text:FILES"),
        (["--corpus", "pairs:nowhere"], "no such file"),
        (["--corpus", "task:nothing"], "expected chitchat, convai2"),
        (["--corpus", "pairs:x", "--leave-out", "nothing"], "expected chitchat, convai2"),
        (["--corpus", "pairs:x", "--text.buckets", "8", "16"], "--text.buckets: does nothing"),
        (["--corpus", "pairs:x", "--text.padding", "longest"], "--text.padding: does nothing"),
        (
            ["--corpus", "pairs:x", "--train.validate-examples", "7"],
            "--train.validate-examples: does nothing",
        ),
        (["--corpus", "pairs:x", "--optim.plateau-factor", "0.7"], "--optim.plateau-factor: does nothing"),
        (
            ["--corpus", "pairs:x", "--init-from", "minilm", "--vocabulary.size", "99"],
            "--vocabulary.size: does nothing",
        ),
        (["--corpus", "pairs:x", "--train.best-by", "mrr"], "expected loss"),
        (["--corpus", "pairs:x", "--encoder", "nowhere"], "expected minilm"),
        (["--corpus", "pairs:x", "--batch.masked", "2"], "--batch.masked: expected a share in [0, 1]"),
        (["--corpus", "pairs:x", "--optim.decay", "fast"], "inverse-sqrt"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["pretrain.py", *arguments])
    pretrain = importlib.import_module("polyjax.cli.pretrain")
    monkeypatch.setattr(pretrain, "restart_with_huge_pages", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        pretrain.main()
    printed = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2
    assert message in printed and "Traceback" not in printed
