"""Training from Python: callbacks, stopping, an optimiser of one's own, a quiet run."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import toy
from polyjax import InputError, Ranker, make_scorer
from polyjax.data.batches import BatchConfig
from polyjax.data.rows import Rows
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import SENTENCEPIECE_FILE, load_tokenizer, train_sentencepiece
from polyjax.inference.scorer import TextScorer
from polyjax.runs import Checkpoints, MetricsLog
from polyjax.train import OptimConfig, Ranking, StopTraining, TrainConfig, Trainer, shapes_of, train
from polyjax.train.losses import ranking_loss
from runs import assert_same, parameters, saved_steps

SHORT = {"steps": 30, "validate_every_steps": 10, "save_every_steps": 7}


def stop_at(step: int, kind: str = "train"):
    """A callback that stops a run at a line of its log."""

    def callback(at, of, metrics):
        if (at, of) == (step, kind):
            raise StopTraining(f"{kind} line of step {at}")

    return callback


def test_callbacks_see_every_line_of_the_log_in_order(tmp_path):
    seen, more = [], []
    toy.run(
        tmp_path, "bi", callbacks=[lambda *line: seen.append(line), lambda *line: more.append(line)], **SHORT
    )
    assert [(step, kind) for step, kind, _ in seen] == [
        (7, "train"),
        (10, "train"),
        (10, "valid"),
        (14, "train"),
        (20, "train"),
        (20, "valid"),
        (21, "train"),
        (28, "train"),
        (30, "train"),
        (30, "valid"),
    ]
    assert seen == more
    rows = MetricsLog.read(tmp_path)
    assert [{"step": step, "kind": kind, **metrics} for step, kind, metrics in seen] == rows


@pytest.mark.parametrize(("step", "kind"), [(7, "train"), (10, "valid")])
def test_a_callback_ends_a_run_with_a_validation_and_a_checkpoint(step, kind, tmp_path):
    called = []
    result = toy.run(
        tmp_path, "bi", callbacks=[stop_at(step, kind), lambda *line: called.append(line)], **SHORT
    )
    assert (result.steps, result.stopped_by) == (step, f"{kind} line of step {step}")
    assert str(step) in saved_steps(tmp_path)
    assert [row["step"] for row in MetricsLog.read(tmp_path) if row["kind"] == "valid"] == [step]
    assert called[-1][:2] == (step, "valid"), "the other callbacks are called all the same"
    best = Checkpoints(tmp_path, read_only=True).best_step
    assert best == step, "it was validated, so that it may be the best"
    again = toy.run(tmp_path, "bi", **SHORT)
    assert (again.steps, again.stopped_by) == (result.steps, result.stopped_by), "it counts as finished"


def test_an_error_in_a_callback_is_the_callers(tmp_path):
    def broken(step, kind, metrics):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy.run(tmp_path, "bi", callbacks=[broken], **SHORT)


def test_a_quiet_run_prints_nothing(tmp_path, capfd):
    toy.run(tmp_path, "bi", quiet=True, **{**SHORT, "steps": 20})
    toy.run(tmp_path, "bi", quiet=True, **SHORT)  # resumes
    assert capfd.readouterr() == ("", "")
    toy.run(tmp_path / "loud", "bi", **SHORT)
    assert "step 10: valid loss" in capfd.readouterr().out


def test_a_quiet_run_warns_of_a_damaged_checkpoint(tmp_path, capfd):
    toy.run(tmp_path, "bi", quiet=True, **{**SHORT, "steps": 14})
    (tmp_path / "checksums" / "14.txt").write_text("")
    with pytest.warns(RuntimeWarning, match="put aside"):
        toy.run(tmp_path, "bi", quiet=True, **SHORT)
    assert capfd.readouterr() == ("", "")


def noisy(optim: OptimConfig, n_steps: int) -> optax.GradientTransformation:
    """A factory: of momentum, a schedule of its own, and noise whose random state has to be saved."""
    return optax.chain(
        optax.add_noise(eta=1e-6, gamma=0.5, key=7),
        optax.lion(optax.linear_schedule(3e-3, 0.0, n_steps), weight_decay=optim.weight_decay),
    )


def interrupt_after_16(step, kind, metrics):
    if step > 16:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "optimizer",
    [
        noisy,
        optax.adafactor(1e-2, min_dim_size_to_factor=16),
        optax.inject_hyperparams(optax.adamw)(optax.linear_schedule(3e-3, 0.0, 40)),
        optax.contrib.muon(1e-2),
    ],
    ids=["factory", "adafactor", "injected", "muon"],
)
def test_an_optimiser_of_ones_own_resumes_to_the_same_bits(optimizer, tmp_path):
    toy.run(tmp_path / "whole", "poly", optimizer=optimizer, **SHORT)
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        toy.run(stopped, "poly", optimizer=optimizer, callbacks=[interrupt_after_16], **SHORT)
    assert saved_steps(stopped)[-1] == "14"
    toy.run(stopped, "poly", optimizer=optimizer, **SHORT)
    assert_same(parameters(stopped, "poly", 30), parameters(tmp_path / "whole", "poly", 30))
    states = [trained_state(folder, optimizer) for folder in (tmp_path / "whole", stopped)]
    assert_same(*states)
    assert any(np.abs(leaf).max() > 0 for leaf in states[0].values()), "a state of nothing is restored anyway"
    first, last = (MetricsLog.read(stopped)[i]["loss"] for i in (0, -1))
    assert last < first, "it learns"


def trained_state(run_dir, optimizer) -> dict[str, np.ndarray]:
    """An optimiser's state at the end."""
    scorer = make_scorer(toy.SHAPE, toy.HEADS["poly"], rngs=nnx.Rngs(0))
    trainer = Trainer(scorer, ranking_loss, encoder=toy.SHAPE, n_steps=30, optimizer=optimizer)
    trainer.restore(Checkpoints(run_dir, read_only=True))
    leaves = jax.tree_util.tree_leaves_with_path(trainer.state.optimizer)
    return {jax.tree_util.keystr(path): np.asarray(plain(leaf)) for path, leaf in leaves}


def plain(leaf: jax.Array) -> jax.Array:
    """An array, or the numbers of a random key."""
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def test_a_run_is_not_resumed_with_another_optimiser(tmp_path):
    toy.run(tmp_path, "bi", optimizer=optax.sgd(1e-3, momentum=0.9), **{**SHORT, "steps": 7})
    with pytest.raises(InputError) as error:
        toy.run(tmp_path, "bi", **SHORT)
    assert error.value.argument.endswith("7") and "cannot be restored" in error.value.problem
    assert saved_steps(tmp_path) == ["7"]


STILL = OptimConfig(learning_rate=1e-30, decay="plateau", warmup=0.0, head_rate=1.0)
CUTS = {"steps": 8, "validate_every_steps": 2, "save_every_steps": 0, "dropout": 0.0}


def rates(run_dir, name="learning_rate") -> list[float]:
    """What the log says of the rate."""
    return [row[name] for row in MetricsLog.read(run_dir) if row["kind"] == "train"]


def test_a_rate_that_an_optimiser_tells_is_logged_with_the_plateaus_factor(tmp_path):
    still = optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(1e-30, 2e-30, 8))
    toy.run(tmp_path, "bi", optim=STILL, optimizer=still, **CUTS)
    factors = [1.0, 1.0, 0.4, 0.16]  # the first validation is the best so far; every further one cuts
    expected = [1e-30 * (1 + at / 8) * factor for at, factor in zip((1, 3, 5, 7), factors, strict=True)]
    np.testing.assert_allclose(rates(tmp_path), expected, rtol=1e-5)


def test_a_rate_that_is_not_known_is_not_logged(tmp_path):
    toy.run(tmp_path, "bi", optim=STILL, optimizer=optax.sgd(1e-30), **CUTS)
    np.testing.assert_allclose(rates(tmp_path, "rate_factor"), [1.0, 1.0, 0.4, 0.16], rtol=1e-6)
    assert not any("learning_rate" in row for row in MetricsLog.read(tmp_path))


def test_the_plateaus_factor_is_in_the_updates_of_any_optimiser():
    """And those of a step after a cut are as much smaller."""
    from test_step import batch_of

    scorer = make_scorer(toy.SHAPE, toy.HEADS["bi"], rngs=nnx.Rngs(0))
    batch = batch_of(np.random.default_rng(0), toy.HEADS["bi"], 4)
    batch.inputs.context.ids[:] %= 40
    moved = []
    for losses in ((1.0,), (1.0, 1.0)):
        trainer = Trainer(scorer, ranking_loss, encoder=toy.SHAPE, n_steps=9, optimizer=optax.sgd(0.1))
        for loss in losses:
            trainer.validated(loss)
        before = jax.device_get(trainer.state.trained)
        trainer.step(batch)
        after = jax.device_get(trainer.state.trained)
        moved.append(optax.tree.norm(jax.tree.map(lambda x, y: x - y, after, before)))
    np.testing.assert_allclose(moved[1], 0.4 * moved[0], rtol=1e-3)


@pytest.mark.parametrize("decay", ["linear", "inverse-sqrt", "none"])
def test_only_the_plateau_rule_cuts_the_rate(decay, tmp_path):
    """Validations that do not improve change nothing of another decay, and plateau_factor is not used."""
    toy.run(tmp_path, "bi", optim=dataclasses.replace(STILL, decay=decay, warmup_steps=1), **CUTS)
    steps = np.array([2, 4, 6, 8])
    expected = {"linear": (9 - steps) / 7, "inverse-sqrt": 1 / np.sqrt(steps), "none": np.ones(4)}
    np.testing.assert_allclose(rates(tmp_path), 1e-30 * expected[decay], rtol=1e-5)


def test_an_optimiser_is_given_the_loss():
    """As ``value``, which rules on the training loss ask for."""
    seen = []

    def update(updates, state, params=None, *, value, **_):
        jax.debug.callback(lambda loss: seen.append(float(loss)), value)
        return updates, state

    asking = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))

    def loss(model, batch, key):
        total = (model(batch) ** 2).sum()
        return total, {"loss": total}

    optimizer = optax.chain(asking, optax.sgd(0.1))
    trainer = Trainer(model, loss, encoder=toy.SHAPE, n_steps=1, optimizer=optimizer)
    metrics = trainer.step(np.ones((1, 2), np.float32))
    jax.effects_barrier()
    assert seen == [float(metrics["loss"])]


def test_a_trainer_of_shapes_takes_no_memory_and_lowers_the_same_program():
    from test_step import batch_of

    scorer = make_scorer(toy.SHAPE, toy.HEADS["poly"], rngs=nnx.Rngs(0))
    batch = batch_of(np.random.default_rng(0), toy.HEADS["poly"], 4)
    real, planned = (
        Trainer(model, ranking_loss, encoder=toy.SHAPE, n_steps=9) for model in (scorer, shapes_of(scorer))
    )
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(planned.state))
    assert planned.lowered(batch).as_text() == real.lowered(batch).as_text()


def test_a_trainer_leaves_its_model_alone():
    """The parameters are copied: a step gives memory away."""
    from test_step import batch_of

    scorer = make_scorer(toy.SHAPE, toy.HEADS["bi"], rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(scorer))
    trainer = Trainer(scorer, ranking_loss, encoder=toy.SHAPE, n_steps=9)
    batch = batch_of(np.random.default_rng(0), toy.HEADS["bi"], 4)
    batch.inputs.context.ids[:] %= 40
    trainer.step(batch)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(scorer), before)
    assert trainer.steps_made == 1


def test_what_training_leaves_is_all_that_a_loader_needs(tmp_path):
    """Card, tokenizer, checkpoints: no script has to know how the model was made."""
    sentences = [f"{letter * n} {letter}" for letter in "abcdefghij" for n in (1, 2, 3)] * 4
    path = tmp_path / SENTENCEPIECE_FILE
    train_sentencepiece(iter(sentences), path, vocab_size=280, kind="unigram", seed=0, shrink=True)
    tokenizer = load_tokenizer(tmp_path)
    shape = dataclasses.replace(toy.SHAPE, vocab_size=tokenizer.vocab_size)
    objective = Ranking(
        make_scorer(shape, toy.HEADS["poly"], rngs=nnx.Rngs(0)),
        TextEncoder(tokenizer, TextConfig(context_tokens=16, candidate_tokens=8, buckets=(16,))),
        toy.examples(20),
        Rows(toy.examples(5, candidates=4)),
        batch=BatchConfig(batch_size=10),
        validate_examples=5,
    )
    config = TrainConfig(steps=2, validate_every_steps=2)
    train(objective, tmp_path / "run", optim=OptimConfig(), config=config, quiet=True)
    path.unlink()
    ranker = Ranker.load(tmp_path / "run")
    texts = ["aa b", "cc d", "a"]
    expected = TextScorer(trained_scorer(tmp_path / "run", objective), ranker.scorer.text)
    np.testing.assert_allclose(ranker.score(("aa",), texts), expected.score([("aa",)], [texts])[0], rtol=1e-6)
    before = (tmp_path / "run" / "model.json").stat().st_mtime_ns
    train(objective, tmp_path / "run", optim=OptimConfig(), config=config, quiet=True)
    assert (tmp_path / "run" / "model.json").stat().st_mtime_ns == before, (
        "what was added to it later is kept"
    )


def trained_scorer(run_dir, objective):
    """A scorer with the parameters of the last step."""
    return Checkpoints(run_dir, read_only=True).restore_parameters(objective.model, 2)
