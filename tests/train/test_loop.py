"""The loop: learning, saving, resuming, stopping."""

import dataclasses
import json
import shutil
import signal
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flax import nnx

import toy
from polyjax import InputError, make_scorer
from polyjax.data.known import KNOWN
from polyjax.runs import Checkpoints, MetricsLog, open_data, open_run, owned_run, run_lock
from polyjax.runtime.files import save_array
from polyjax.train import Trainer
from polyjax.train.config import TrainConfig, steps_of
from polyjax.train.losses import ranking_loss
from polyjax.train.optim import OptimConfig
from polyjax.train.session import Session
from runs import assert_same, finish, parameters, saved_steps, start


@pytest.fixture(scope="module", params=toy.HEADS)
def finished(request, tmp_path_factory):
    """An uninterrupted run of each architecture."""
    run_dir = tmp_path_factory.mktemp("runs") / request.param
    result = toy.run(run_dir, request.param, buckets=3)
    return request.param, run_dir, result


@pytest.mark.parametrize("arch", toy.HEADS)
def test_ten_examples_are_learnt_by_heart(arch, tmp_path):
    ten = list({e.label_text: e for e in toy.examples(20, seed=5)}.values())[:10]
    toy.run(
        tmp_path,
        arch,
        dropout=0.0,
        batch_size=10,
        train_examples=ten,
        optim=dataclasses.replace(toy.OPTIM[arch], decay="none"),
        steps=400 if arch == "cross" else 120,
        validate_every_steps=400,
        save_every_steps=0,
    )
    rows = [row for row in MetricsLog.read(tmp_path) if row["kind"] == "train"]
    assert rows[0]["loss"] > 0.5  # a mean over the first ten steps
    assert rows[-1]["loss"] < 0.1
    assert rows[-1]["accuracy"] == 1.0


def test_a_run_makes_all_its_steps(finished):
    _, run_dir, result = finished
    assert result.steps == 60
    assert result.stopped_by == "all steps made"
    rows = MetricsLog.read(run_dir)
    assert [row["step"] for row in rows if row["kind"] == "valid"] == [20, 40, 60]


def test_programs_are_bounded_by_the_buckets(finished):
    arch, _, result = finished
    # Training: at most two context buckets x one candidate bucket, or three pair buckets; validation:
    # three row sizes for each bucket.
    assert result.compilations <= (3 if arch == "cross" else 2) + 3 * 3


def test_best_and_latest_are_kept(finished):
    _, run_dir, _ = finished
    saved = sorted(int(p.name) for p in (run_dir / "checkpoints").iterdir())
    assert sorted(int(p.stem) for p in (run_dir / "checksums").iterdir()) == saved
    valid = {row["step"]: row["recall@1/8"] for row in MetricsLog.read(run_dir) if row["kind"] == "valid"}
    best = Checkpoints(run_dir, read_only=True).best_step
    assert saved == sorted({best, 56, 60})
    assert valid[best] == max(valid.values())


def test_a_finished_run_is_left_alone(finished):
    arch, run_dir, result = finished
    before = parameters(run_dir, arch, 60)
    again = toy.run(run_dir, arch, buckets=3)
    assert again.steps == 60
    assert again.seconds == result.seconds
    assert_same(parameters(run_dir, arch, 60), before)


# Pauses after a checkpoint before the kill; 0 kills while one is being written.
@pytest.mark.parametrize(("arch", "pauses"), [("poly", (0.0, 0.15)), ("cross", (0.1,))])
def test_a_run_killed_at_any_moment_ends_bit_identical(arch, pauses, tmp_path):
    whole = tmp_path / "whole"
    finish(start(whole, "buckets=3", arch=arch))

    killed = tmp_path / "killed"
    moments = 0
    for pause in pauses:
        process = start(killed, "buckets=3", arch=arch)
        folder, steps = killed / "checkpoints", saved_steps(killed)
        while process.poll() is None:
            # Kill while a checkpoint is being written, or a while after one was.
            writing = folder.exists() and any("tmp" in p.name for p in folder.iterdir())
            if (writing and saved_steps(killed) != steps) if pause == 0.0 else saved_steps(killed) != steps:
                time.sleep(pause)
                process.send_signal(signal.SIGKILL)
                moments += 1
                break
            time.sleep(0.0005)
        process.communicate()
    assert moments >= min(2, len(pauses)), "the runs ended before they could be killed"
    finish(start(killed, "buckets=3", arch=arch))
    assert_same(parameters(killed, arch, 60), parameters(whole, arch, 60))
    steps = [row["step"] for row in MetricsLog.read(killed)]
    assert steps == sorted(steps)
    assert steps == [row["step"] for row in MetricsLog.read(whole)]


def test_bfloat16_and_worker_processes_resume_as_exactly(tmp_path):
    """Killed with a worker, gone on without one: the same batches and parameters."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(whole, "dtype=bfloat16"))
    process = start(killed, "dtype=bfloat16", "workers=1")
    while not saved_steps(killed):
        assert process.poll() is None
        time.sleep(0.0005)
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)  # the worker fills its queue, and waits
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # the worker, which holds its output open, is gone as well
    assert "60" not in saved_steps(killed), "the run ended before it could be killed"
    finish(start(killed, "dtype=bfloat16"))
    assert_same(parameters(killed, "poly", 60), parameters(whole, "poly", 60))


@pytest.mark.parametrize(("save_every", "steps"), [(0, 60), (1, 60), (0, 2)])
def test_what_is_not_finite_stops_the_run_and_is_never_saved(tmp_path, save_every, steps):
    """Whenever it is saved, and also when the last step does it."""
    explosive = OptimConfig(learning_rate=1e30, warmup=0.0, head_rate=1.0, clip=1e9, decay="none")
    with pytest.raises(InputError, match=r"became (nan|inf) at step \d+ .*lower optim\.learning_rate"):
        toy.run(tmp_path, "bi", optim=explosive, save_every_steps=save_every, steps=steps)
    for step in map(int, saved_steps(tmp_path)):
        assert all(np.isfinite(value).all() for value in parameters(tmp_path, "bi", step).values())
    assert all(np.isfinite(row["loss"]) for row in MetricsLog.read(tmp_path))


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    with run_lock(tmp_path), pytest.raises(InputError) as error:
        toy.run(tmp_path, "bi")
    assert (error.value.argument, error.value.problem) == (str(tmp_path), "another process is training there")
    assert "`run_dir`" in error.value.fix


def test_bi_and_poly_need_other_labels(tmp_path):
    with pytest.raises(InputError) as error:
        toy.run(tmp_path, "poly", batch_size=1)
    assert (error.value.argument, error.value.got) == ("batch.batch_size", 1)
    assert not saved_steps(tmp_path)


def test_a_plateau_cut_survives_a_restart(tmp_path):
    """Validation figures that never improve cut the rate; the run that goes on keeps the cut."""
    still = OptimConfig(learning_rate=1e-30, decay="plateau", warmup=0.0)
    changes = {"optim": still, "dropout": 0.0, "validate_every_steps": 2}
    toy.run(tmp_path, "bi", steps=4, **changes)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "before")
    scorer = make_scorer(toy.SHAPE, toy.HEADS["bi"], rngs=nnx.Rngs(0))
    trainer = Trainer(scorer, ranking_loss, encoder=toy.SHAPE, n_steps=4, optim=still)
    assert float(trainer.state.plateau.scale) == 1.0
    trainer.restore(Checkpoints(tmp_path, read_only=True))
    assert float(trainer.state.plateau.scale) == pytest.approx(still.plateau_factor)


def test_a_run_says_why_it_ended_early(tmp_path):
    frozen = OptimConfig(learning_rate=1e-30, decay="none")
    result = toy.run(tmp_path / "patience", "bi", early_stopping=1, dropout=0.0, optim=frozen)
    assert result.steps == 40
    assert "without a better" in result.stopped_by
    result = toy.run(tmp_path / "time", "bi", time_limit=1e-6)
    assert result.steps == 1
    assert "time limit" in result.stopped_by
    few = toy.examples(24, seed=5)
    result = toy.run(tmp_path / "few", "bi", train_examples=few, batch_size=8, most_epochs=2.0)
    assert (result.steps, result.stopped_by) == (6, "2 epochs made")


def test_a_line_cut_short_in_the_log_is_dropped(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(1, "train", {"loss": np.float32(1.0)})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + json.dumps({"step": 2, "kind": "train"})[:-5])
    assert MetricsLog.read(tmp_path) == [{"step": 1, "kind": "train", "loss": 1.0}]


def test_restoring_a_step_that_was_not_saved_is_refused(finished, tmp_path):
    arch, run_dir, _ = finished
    with pytest.raises(InputError) as error:
        parameters(run_dir, arch, 3)
    assert (error.value.argument, error.value.got) == ("step", 3) and "60]" in error.value.expected
    with pytest.raises(InputError) as error:
        parameters(tmp_path, arch, 3)
    assert (error.value.argument, error.value.problem) == (str(tmp_path), "has no checkpoints")
    copy = tmp_path / "other"
    shutil.copytree(run_dir, copy)
    shutil.rmtree(copy / "checkpoints" / "60" / "model")
    with pytest.raises(InputError) as error:
        parameters(copy, arch, 60)
    assert error.value.problem == "missing" and error.value.fix.startswith(f"remove {copy}")


def test_steps_end_early_over_few_rows():
    config = TrainConfig(steps=280, most_epochs=10.0, validate_every_steps=140)
    assert steps_of(config, 32, 95_664) == (280, 140), "no limit where rows are many"
    assert steps_of(config, 32, 160) == (50, 25), "two checkpoints to choose from"
    assert steps_of(config, 32, 33) == (10, 5)
    assert steps_of(dataclasses.replace(config, most_epochs=5.0), 32, 160) == (25, 13), "not 12, 24 and 25"
    assert steps_of(dataclasses.replace(config, validate_every_steps=10), 32, 160) == (50, 10)
    assert steps_of(dataclasses.replace(config, most_epochs=0.0), 32, 160) == (280, 140)


def test_a_log_line_that_is_not_json_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n{"step"\n')
    with pytest.raises(InputError) as error:
        MetricsLog.read(tmp_path)
    assert (error.value.argument, error.value.expected) == (f"{tmp_path / 'metrics.jsonl'}:2", "JSON")
    assert error.value.fix == "remove the line"


def test_settings_take_a_directory_over_until_something_was_trained_there(tmp_path):
    first, second = OptimConfig(), OptimConfig(learning_rate=1e-3)
    open_run(tmp_path / "run", first)
    (tmp_path / "run" / "tokenizer").mkdir()
    open_run(tmp_path / "run", second)
    assert not (tmp_path / "run" / "tokenizer").exists(), "it belonged to the other settings"
    (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(InputError) as error:
        open_run(tmp_path / "run", first)
    assert error.value.argument == str(tmp_path / "run")
    words = "belongs to a run with other settings: `learning_rate` was 0.001, now 0.0001"
    assert error.value.problem == words
    assert "remove that directory to start again" in error.value.fix
    open_run(tmp_path / "run", first, incidental=("learning_rate",))


@pytest.mark.parametrize(("there_is", "kept"), [(None, False), ("tokenizer", True)])
def test_a_mistake_before_anything_was_made_leaves_no_folder(tmp_path, there_is, kept):
    folder = tmp_path / "runs" / "one"
    with pytest.raises(InputError, match="no such file"), owned_run(folder, OptimConfig()):
        if there_is:
            (folder / there_is).mkdir()
        raise InputError("task", problem="no such file")
    assert folder.exists() == kept
    assert (tmp_path / "runs").exists() == kept, "nor is an empty folder left around it"


def test_folders_that_were_there_before_a_mistake_stay(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(InputError, match="no such file"), owned_run(tmp_path / "runs" / "one", OptimConfig()):
        raise InputError("task", problem="no such file")
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"]


class Computing:
    """A metric of a step that is still computed."""

    def __init__(self, step, waited):
        self.step, self._waited = step, waited

    def block_until_ready(self):
        self._waited.append(self.step)
        return self


def test_one_step_at_most_is_in_flight():
    """A signal or a time limit need not wait for more: ten steps can be minutes."""
    waited, steps = [], iter(range(1, 5))
    nothing = SimpleNamespace(before=lambda *_: 0, after=lambda *_: 0, waited=lambda _: 0, add=lambda _: 0)
    session: Any = SimpleNamespace(
        _profile=nothing,
        _speed=nothing,
        _window=[],
        _objective=SimpleNamespace(place=lambda batch: batch, work=lambda batch: batch),
        _trainer=SimpleNamespace(step=lambda batch: {"loss": Computing(next(steps), waited)}),
    )
    for step in range(1, 4):
        Session.step(session, step, iter([None]))
        assert waited == list(range(1, step))
    session._window = []  # a log line waits for all of them
    Session.step(session, 4, iter([None]))
    assert waited == [1, 2]


def test_data_take_a_directory_over_until_something_was_trained_there(tmp_path):
    open_data(tmp_path, {"train": "a", "test": "b"})
    (tmp_path / "tokenizer").mkdir()
    open_data(tmp_path, {"train": "c", "test": "b"})
    assert not (tmp_path / "tokenizer").exists(), "it was learnt from other rows"
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    open_data(tmp_path, {"train": "c", "test": "b"})


def digested(train: int, test: int, mark: str = "") -> dict[str, str]:
    return {"train": f"{train} rows, ab{mark}", "test": f"{test} rows, cd{mark}"}


@pytest.mark.parametrize(
    ("now", "rows", "words"),
    [
        (digested(4, 2), [1, 2, 3, 9], "nothing"),
        (
            digested(4, 2, "x"),
            [1, 2, 8, 9],
            "1 of 4 train rows are new or changed, 1 of the 4 before are missing",
        ),
        (digested(5, 3), [1, 2, 3, 9, 9], "the training rows are the same, in another order"),
        (digested(5, 3), [1, 2, 3, 9, 4], "1 of 5 train rows are new or changed, 0 of the 4 before"),
        (digested(4, 3), [1, 2, 3, 9], "3 test rows, 2 before"),
        (digested(4, 2, "x"), None, "the 4 train rows are others, or have another order"),
    ],
)
def test_other_rows_are_counted_where_a_run_is_refused(tmp_path, now, rows, words):
    open_data(tmp_path, digested(4, 2))
    save_array(tmp_path / KNOWN, np.array([1, 2, 3, 9], np.uint64))
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    trained_on = None if rows is None else np.array(rows, np.uint64)
    if words == "nothing":
        open_data(tmp_path, now, trained_on=trained_on)
        return
    with pytest.raises(InputError) as error:
        open_data(tmp_path, now, trained_on=trained_on)
    assert error.value.problem.startswith("belongs to a run with other data: ")
    assert words in error.value.problem and "start again" in error.value.fix


def test_a_digest_among_the_settings_is_shortened_and_many_settings_are_counted(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Many:
        values: tuple[str, ...] = ()
        other: dict = dataclasses.field(default_factory=dict)

    open_run(tmp_path, Many(("0a" * 32,), {f"s{i}": i for i in range(20)}))
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(InputError) as error:
        open_run(tmp_path, Many(("f" * 64,), {f"s{i}": i + 1 for i in range(20)}))
    assert "`other.s0` was 0, now 1" in error.value.problem and "(and 13 more)" in error.value.problem
    with pytest.raises(InputError) as error:
        open_run(tmp_path, Many(("f" * 64,), {f"s{i}": i for i in range(20)}))
    assert error.value.problem.endswith('`values` was ["0a0a0a0a..."], now ["ffffffff..."]')


def test_a_folder_that_checkpoints_cannot_name_is_refused_before_training(tmp_path):
    with pytest.raises(InputError, match="not text in the process's locale"):
        Checkpoints(tmp_path / "r\udce9")


def test_a_run_of_before_a_setting_was_added_goes_on(tmp_path):
    """What its config.json lacks had the default then; another value is another run."""
    open_run(tmp_path, OptimConfig())
    path = tmp_path / "config.json"
    old = json.loads(path.read_text())
    del old["warmup_steps"]
    path.write_text(json.dumps(old))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    open_run(tmp_path, OptimConfig())
    with pytest.raises(InputError) as error:
        open_run(tmp_path, OptimConfig(warmup_steps=5))
    assert "`warmup_steps` was 0, now 5" in error.value.problem


def test_float16_learns_as_float32_from_a_scale_that_overflows(tmp_path):
    optim = dataclasses.replace(toy.OPTIM["poly"], loss_scale=2.0**24, loss_scale_growth=15, decay="none")
    toy.run(tmp_path / "16", "poly", dtype="float16", optim=optim, steps=80, validate_every_steps=80)
    toy.run(tmp_path / "32", "poly", optim=optim, steps=80, validate_every_steps=80)
    half, single = ([r for r in MetricsLog.read(tmp_path / name)] for name in ("16", "32"))
    skipped = [row["skipped"] for row in half if row["kind"] == "train"]
    scales = [row["loss_scale"] for row in half if row["kind"] == "train"]
    assert skipped[0] >= 5, "the first updates overflow and are skipped"
    assert max(scales[:3]) < 2.0**24
    assert min(scales) < max(scales[scales.index(min(scales)) :]), "it grows again"
    assert half[-1]["kind"] == single[-1]["kind"] == "valid"
    assert half[-1]["recall@1/8"] == single[-1]["recall@1/8"] == 1.0
    assert all(np.isfinite(row["gradient_norm"]) for row in half if row["kind"] == "train")


def test_a_skipped_update_changes_nothing_but_the_scale():
    import jax

    from test_step import batch_of

    optim = OptimConfig(loss_scale=2.0**60)
    scorer = make_scorer(dataclasses.replace(toy.SHAPE, dtype="float16"), toy.HEADS["bi"], rngs=nnx.Rngs(0))
    trainer = Trainer(scorer, ranking_loss, encoder=scorer.settings.encoder, n_steps=10, optim=optim)
    before = jax.device_get((trainer.state.trained, trainer.state.optimizer))
    batch = batch_of(np.random.default_rng(0), toy.HEADS["bi"], 4)
    batch.inputs.context.ids[:] %= 40
    batch.inputs.shared.tokens.ids[:] %= 40
    metrics, after = trainer.step(batch), trainer.state
    assert metrics["skipped"] == 1 and metrics["loss_scale"] == 2.0**60
    assert after.loss_scale is not None and after.loss_scale.scale == 2.0**59 and after.step == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get((after.trained, after.optimizer)), before)
