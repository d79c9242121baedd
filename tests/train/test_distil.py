"""Students: negatives are found, teachers score once, and a toy student ranks as its toy teacher does."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import polyjax
import toy
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
from polyjax.cli.distil import parse
from polyjax.cli.training_flags import parse_run
from polyjax.config import from_json, to_json
from polyjax.data.collate import Collator, PlannedBatch
from polyjax.data.guide import Guide
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.inference.scorer import TextScorer
from polyjax.interop.huggingface import minilm_folder
from polyjax.recipes import teaching
from polyjax.recipes.mining import model_digest
from polyjax.recipes.settings import GuideConfig, RunConfig, TeacherConfig
from polyjax.runs import Checkpoints, ModelCard, write_model
from polyjax.train.losses import BinaryLoss, MarginLoss, SoftmaxLoss

WORDS = "printer lamp phone screen router keyboard mouse fan".split()
FAULTS = "hums blinks smokes freezes beeps leaks".split()
ROWS = [{"context": f"my {a} {b}", "label": f"fix the {b} {a}"} for a in WORDS for b in FAULTS]
SMALL = {
    "arch": "bi",
    "encoder": "tiny",
    "text": {"context_tokens": 16, "candidate_tokens": 16, "buckets": (16,)},
    "batch": {"batch_size": 8},
    "train": {"validate_every_steps": 2, "save_every_steps": 1},
    "rank": {"candidates": "sampled", "n": 3},
    "quiet": True,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run directories of untrained models: two bi- and a cross-encoder."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE)
    shape = EncoderConfig(
        vocab_size=tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2, mlp_dim=32, n_positions=40
    )
    text = TextConfig(context_tokens=16, candidate_tokens=16, buckets=(16, 32))
    heads = {"bi": BiConfig(), "other": BiConfig(score_scale=50.0), "cross": CrossConfig(reduction="mean")}
    for i, (name, head) in enumerate(heads.items()):
        scorer = make_scorer(shape, head, rngs=nnx.Rngs(i))
        card = ModelCard(model=ModelConfig(encoder=shape, head=head), text=text)
        write_model(folder / name, scorer, card, tokenizer, config={"converted": "from nothing"})
    return folder


def distance(context: tuple[str, ...], text: str) -> int:
    """Places in the alphabet between the letter that a context names and that of a text."""
    return abs(ord(context[-1][0]) - ord(text[0]))


def test_a_toy_student_recovers_its_teachers_order(tmp_path):
    """The teacher orders letters by the alphabet, of which the labels say nothing."""
    draw = np.random.default_rng(0)
    rows = []
    for row in toy.examples(240):
        letters = draw.permutation(list("abcdefghijklmnopqrst"))[:9]
        wrong = tuple(letter * 2 + "u" for letter in letters if letter != row.label_text[0])[:8]
        rows.append(dataclasses.replace(row, negatives=wrong))
    scores = [
        np.array([5.0 - 0.7 * distance(row.context, text) for text in (row.label_text, *row.negatives)])
        for row in rows
    ]
    letters = [letter * 2 + "v" for letter in "abcdefghijklmnopqrst"]
    contexts = [("wv", letter * 2 + "x") for letter in "abcdefghijklmnopqrst"]
    expected = np.array([[-distance(context, text) for text in letters] for context in contexts])
    found = {}
    for name, loss in {"student": teaching.TAUGHT, "undistilled": SoftmaxLoss()}.items():
        toy.run(
            tmp_path / name,
            "bi",
            train_examples=teaching.with_scores(rows, [scores]),
            loss=loss,
            steps=120,
            validate_every_steps=120,
            save_every_steps=0,
            dropout=0.0,
        )
        scorer = make_scorer(toy.SHAPE, toy.HEADS["bi"], rngs=nnx.Rngs(1))
        scorer = Checkpoints(tmp_path / name, read_only=True).restore_parameters(scorer)
        text = TextConfig(context_tokens=16, candidate_tokens=8, buckets=(16,))
        learnt = TextScorer(scorer, TextEncoder(toy.Letters(), text)).score(contexts, [letters] * 20)
        ranks = [np.argsort(np.argsort(table, axis=1), axis=1) for table in (learnt, expected)]
        found[name] = np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(*ranks, strict=True)])
    assert found["student"] > 0.7 > 0.4 > found["undistilled"]


def test_teachers_count_alike_whatever_their_scale():
    rows = [Example(str(i), ("hi",), ("a",), 0, "", negatives=("b", "c")) for i in range(2)]
    one = [np.array([3.0, 2.0, -1.0]), np.array([1.0, 4.0, 2.0])]
    other = [np.array([0.2, 0.1, 0.3]), np.array([0.7, 0.1, 0.2])]
    alone = [np.array(row.scores) for row in teaching.with_scores(rows, [one])]
    centred = [row - row.mean() for row in one]
    ratio = teaching.SPREAD / np.concatenate(centred).std()
    np.testing.assert_allclose(alone, [ratio * row for row in centred], rtol=1e-6)
    shifted = [[1000 * row + 7 for row in one], other]
    both = teaching.with_scores(rows, shifted)
    np.testing.assert_allclose(
        [row.scores for row in both],
        np.mean([alone, [row.scores for row in teaching.with_scores(rows, [other])]], axis=0),
        rtol=1e-5,
        atol=1e-6,
    )
    with pytest.raises(InputError) as refused:
        teaching.with_scores(rows, [one, [np.ones(3), np.zeros(3)]])
    assert refused.value.argument == "teacher"


class Stopped(Exception):
    """The run is killed."""


def test_fit_mines_scores_and_trains_and_each_teacher_scores_once(runs, tmp_path, monkeypatch):
    """Killed while the second teacher scores, and again while it trains, it does neither a second time."""
    monkeypatch.setattr(teaching, "PAIRS_AT_ONCE", 40)
    first = Ranker.load(runs / "bi")
    given = SMALL | {"teacher": [runs / "cross", first], "steps": 4, "run_dir": tmp_path / "run"}
    monkeypatch.setattr(teaching.Journal, "add", kept := Kept(teaching.Journal.add, stop_at=12))
    with pytest.raises(Stopped):
        polyjax.fit(ROWS, **given)
    folder = tmp_path / "run" / "teacher"
    scored = [len(path.read_text().splitlines()) - 1 for path in folder.glob("scores-*.jsonl")]
    assert sorted(scored) == [8, 30] and not list((tmp_path / "run").glob("checkpoints/[0-9]*"))

    def stop(step, kind, metrics):
        if (step, kind) == (2, "valid"):
            raise Stopped

    kept.stop_at = 10**9
    with pytest.raises(Stopped):
        polyjax.fit(ROWS, **given, callbacks=[stop])
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    train = len(read_rows(tmp_path / "run"))
    assert kept.rows == 3 * train, "each row is mined for once, and scored once by each teacher"
    run = polyjax.fit(ROWS, **given)
    assert kept.rows == 3 * train
    assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert "taught by" in run.report() and "8 mined negatives" in run.report()
    assert from_json(RunConfig, run.config, source="config.json").teacher.digests == (model_digest(first),)
    with pytest.raises(InputError) as refused:
        polyjax.fit(ROWS, **given | {"teacher": runs / "other"})
    assert "other settings" in str(refused.value)


def test_rows_that_no_step_reads_are_neither_mined_for_nor_scored(runs, tmp_path):
    given = SMALL | {"teacher": runs / "bi", "run_dir": tmp_path / "run"}
    run = polyjax.fit(ROWS, **given, steps=2)
    n_train = len(read_rows(tmp_path / "run"))
    assert f"16 of {n_train} training rows, as many as the steps read" in run.report()
    (scores,) = (tmp_path / "run" / "teacher").glob("scores-*.jsonl")
    assert len(scores.read_text().splitlines()) == 1 + 16
    rows = [Example(str(i), ("hi",), ("a",), 0, "") for i in range(40)]
    config = config_of("--teacher", "a", "--train.steps", "2", "--batch.batch-size", "8")
    some = teaching.read_by_steps(config, rows)
    assert len({row.id for row in some}) == 16 and teaching.read_by_steps(config, rows) == some
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert teaching.read_by_steps(other, rows) != some
    whole = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=5))
    assert teaching.read_by_steps(whole, rows) == rows


def test_a_teacher_whose_scores_are_not_learnt_mines_only(runs, tmp_path):
    """A loss of a user's own might learn them."""
    given = SMALL | {"teacher": runs / "bi", "steps": 2, "run_dir": tmp_path / "run"}
    run = polyjax.fit(ROWS, **given, loss="softmax")
    folder = tmp_path / "run" / "teacher"
    assert not list(folder.glob("scores-*.jsonl")) and (folder / "negatives.jsonl").is_file()
    assert "8 mined negatives per row" in run.report() and "taught by" not in run.report()
    assert not any(map(teaching.learns_scores, (SoftmaxLoss(), BinaryLoss())))
    assert all(map(teaching.learns_scores, (MarginLoss(), lambda scores, batch: scores[:, 0])))


class Kept:
    """Counts the rows that journals keep; stops the run before one of the calls.

    Args:
        add: the journal's own.
        stop_at: number of the call.
    """

    def __init__(self, add, stop_at):
        self.add, self.stop_at, self.rows, self.calls = add, stop_at, 0, 0

    def __get__(self, journal, kind):
        return lambda results: self(journal, results)

    def __call__(self, journal, results):
        self.calls += 1
        if self.calls == self.stop_at:
            raise Stopped
        self.rows += len(results)
        self.add(journal, results)


def read_rows(run_dir):
    return OwnDataConfig(train=run_dir / "rows.jsonl").read("train").examples


def config_of(*words: str) -> RunConfig:
    return parse(words)


def test_the_command_has_the_teachers_flags():
    config = config_of("--arch", "poly", "--teacher", "runs/a", "runs/b", "--teacher.n-negatives", "3")
    assert config.teacher == TeacherConfig(models=("runs/a", "runs/b"), n_negatives=3)
    assert config.loss == teaching.TAUGHT and config.folder.name == "chitchat-poly-minilm-distilled"
    assert config_of("--loss", "margin-mse", "--teacher", "a").loss == MarginLoss()
    kept = json.loads(json.dumps(to_json(config)))
    assert from_json(RunConfig, kept, source="config.json") == config
    del kept["teacher"]
    assert from_json(RunConfig, kept, source="config.json").teacher is None, "of a run before there were any"
    with pytest.raises(InputError):
        parse_run(["--teacher", "runs/a"], prog="run")


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"teacher": 3}, "teacher"),
        ({"teacher": TeacherConfig()}, "teacher"),
        ({"teacher": "cross"}, "teacher.miner"),
        ({"teacher": TeacherConfig(models=("bi",), miner="cross")}, "teacher.miner"),
    ],
)
def test_what_cannot_work_is_refused(runs, changes, argument, monkeypatch):
    """Rows without scores, a model that cannot search, and what is no model."""
    monkeypatch.chdir(runs)
    with pytest.raises(InputError) as refused:
        polyjax.fit(ROWS, **SMALL | changes, run_dir="refused", steps=1)
    assert refused.value.argument == argument


def test_a_guide_leaves_out_labels_that_it_ranks_above_the_own_one(rng):
    """The loss is GISTEmbed's: cross-entropy over the label and what the guide scores below its limit."""
    rows = [Example(str(i), (f"{a}a",), (f"{a}b",), 0, str(i)) for i, a in enumerate("cdefghij")]
    contexts, labels = (rng.normal(size=(8, 5)).astype(np.float32) for _ in range(2))
    text = TextEncoder(toy.Letters(), TextConfig(context_tokens=8, candidate_tokens=8, buckets=(8,)))
    indices = np.array([3, 1, 6, 0, 7])
    for margin, relative in ((0.0, False), (0.5, False), (0.3, True)):
        guide = Guide(contexts, labels, margin, relative)
        settings = {"inputs": "dual", "source": "batch", "seed": 0, "guide": guide}
        planned = PlannedBatch(0, indices, (8, 8))
        batch = Collator(rows, text, **settings).map(planned)
        part = Collator(rows, text, **settings, part=np.array([1, 4])).map(planned)
        scores = rng.normal(size=(5, 5)).astype(np.float32)
        found, expected = SoftmaxLoss()(jnp.asarray(scores), batch), []
        for i, row in enumerate(indices):
            own = contexts[row] @ labels[row]
            limit = own - margin * (abs(own) if relative else 1)
            kept = [j for j, other in enumerate(indices) if i == j or contexts[row] @ labels[other] <= limit]
            expected.append(np.log(np.exp(scores[i, kept]).sum()) - scores[i, i])
            assert batch.where[i].tolist() == [j in kept for j in range(5)]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        assert not batch.where.all()
        np.testing.assert_array_equal(part.where, batch.where[[1, 4]])


def test_fit_with_a_guide_keeps_its_vectors(runs, tmp_path):
    settings = SMALL | {"guide": GuideConfig(model=runs / "bi", margin=0.01, relative=True), "steps": 2}
    run = polyjax.fit(ROWS, **settings, run_dir=tmp_path / "run")
    (path,) = run.folder.glob("guide-*.npy")
    train, guide = read_rows(run.folder), Ranker.load(runs / "bi")
    contexts, labels = np.load(path)
    expected = [guide.score(row.context, [row.label_text])[0] for row in train]
    np.testing.assert_allclose((contexts * labels).sum(1), expected, rtol=1e-5)
    assert run.config["guide"]["margin"] == 0.01
    with pytest.raises(InputError) as refused:
        polyjax.fit(ROWS, **settings | {"guide": runs / "cross"}, run_dir=tmp_path / "other")
    assert refused.value.argument == "guide"
    with pytest.raises(InputError) as refused:
        polyjax.fit(ROWS, **settings | {"arch": "cross"}, run_dir=tmp_path / "other")
    assert refused.value.argument == "guide"
    for wrong in ({"margin": -1.0, "model": "a"}, {"margin": 0.1}):
        with pytest.raises(InputError) as refused:
            GuideConfig(**wrong)
        assert refused.value.argument == "guide.margin"


@pytest.mark.parametrize(
    ("settings", "argument"),
    [({"n_negatives": -1}, "teacher.n_negatives"), ({"range_max": 3}, "teacher.range_max")],
)
def test_settings_that_cannot_work(settings, argument):
    with pytest.raises(InputError) as refused:
        TeacherConfig(**settings)
    assert refused.value.argument == argument
