"""polyjax.fit from Python: rows in, a run out, resumed where it was stopped."""

import contextlib
import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import polyjax
from polyjax import Example, InputError, Ranker, Run
from polyjax.interop.cards import read_card
from polyjax.recipes.evaluate import check_arguments
from polyjax.recipes.notebook import Display
from polyjax.recipes.presets import PRESETS
from polyjax.recipes.results import Results
from polyjax.runtime.fields import check_types
from polyjax.runtime.progress import watched_by

WORDS = "printer lamp phone screen router keyboard mouse fan heater camera".split()
FAULTS = "hums blinks smokes freezes beeps stalls leaks rattles".split()
ROWS = [{"context": f"my {a} {b}", "label": f"fix the {b} {a}"} for a in WORDS for b in FAULTS]
SMALL = {
    "arch": "bi",
    "encoder": "tiny",
    "steps": 4,
    "text": {"context_tokens": 16, "candidate_tokens": 16, "buckets": (16,)},
    "batch": {"batch_size": 8},
    "train": {"validate_every_steps": 2, "save_every_steps": 1},
    "rank": {"candidates": "sampled", "n": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def run(folder, lines):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return polyjax.fit(ROWS, **SMALL, callbacks=[lambda *line: lines.append(line)])


def parameters(run: Run) -> list[np.ndarray]:
    return jax.tree.leaves(run.ranker().scorer.parameters())


def test_rows_in_memory_make_a_run(run, lines):
    assert run.folder.parts[0] == "runs" and run.folder.name.startswith("demo-")
    assert run.folder.name.endswith("-bi-tiny")
    assert [name for name in run.test][0] == "chance" and list(run.test)[-1] == "bi-encoder"
    assert 0 <= run.test.recall_at_1 <= 1 and run.test.model["n"] == run.test["chance"]["n"] > 3
    low, high = run.test.interval
    assert low <= run.test.recall_at_1 <= high
    assert run.valid.model["step"] in (2, 4)
    assert {kind for _, kind, _ in lines} >= {"train", "valid"} and lines[-1][0] == 4
    kept = [json.loads(line) for line in (run.folder / "rows.jsonl").read_text().splitlines()]
    assert kept == ROWS


def test_a_run_shows_itself(run):
    assert "recall@1/4" in str(run) and "chance" in str(run) and str(run.folder) in str(run)
    page = run._repr_html_()
    assert page.count("<tr>") == len(run.test) + 1 and "<b" not in page
    assert run.report().startswith("# rows, bi-encoder")
    step = run.valid.model["step"]
    assert f"tested: the checkpoint of step {step}, the best on the validation rows by loss" in run.report()
    assert "![" in run.report() and "![" not in run.report()._repr_markdown_()


def test_its_ranker_is_that_of_its_folder(run):
    texts = ["fix the hums lamp", "fix the leaks fan"]
    one, other = (ranker.score("my lamp hums", texts) for ranker in (run.ranker(), Ranker.load(run.folder)))
    np.testing.assert_array_equal(one, other)
    assert Run.load(run.folder).test == run.test


def test_it_resumes_where_it_was_stopped(run, folder):
    class Stopped(Exception):
        pass

    def stop(step, kind, metrics):
        if (step, kind) == (2, "valid"):
            raise Stopped

    with pytest.raises(Stopped):
        polyjax.fit(ROWS, **SMALL, run_dir="stopped", callbacks=[stop])
    with pytest.raises(InputError) as refused:
        Run.load("stopped")
    assert "has not finished" in refused.value.problem
    steps = []
    resumed = polyjax.fit(
        ROWS, **SMALL, run_dir="stopped", callbacks=[lambda step, kind, _: steps.append(step)]
    )
    assert min(steps) > 1, "what was saved is not trained again"
    for one, other in zip(parameters(run), parameters(resumed), strict=True):
        np.testing.assert_array_equal(one, other)


def test_evaluate_takes_a_run_rows_or_a_file(run, folder, capsys):
    again = polyjax.evaluate(run, quiet=True)
    assert capsys.readouterr().out == ""
    name = "recall@1/4"
    assert again.model[name] == run.test.model[name] and again.model["n"] == run.test.model["n"]
    listed = [row | {"candidates": ["nonsense", row["label"]]} for row in ROWS[:9]]
    (folder / "listed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    of_rows = polyjax.evaluate(run.ranker(), listed, quiet=True)
    of_file = polyjax.evaluate(str(run.folder), "listed.jsonl", out="metrics", quiet=True)
    assert of_rows.model == of_file.model and of_rows.model["n"] == 9
    written = json.loads((folder / "metrics" / "results.json").read_text())
    assert written["mrr"] == of_file.model["mrr"] and (folder / "metrics" / "examples.jsonl").is_file()


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_loses_no_metrics(run, tmp_path, monkeypatch, capsys):
    """Of a quiet call too: they are shown before the error is raised."""
    monkeypatch.setattr("polyjax.recipes.evaluate.write_json", full)
    with pytest.raises(InputError, match="No space left on device") as refused:
        polyjax.evaluate(run, out=tmp_path / "metrics", quiet=True)
    assert refused.value.argument == str(tmp_path / "metrics")
    assert f"{run.test.recall_at_1:.3f}" in capsys.readouterr().err


def test_rows_in_memory_that_do_not_fit_on_the_disk_are_refused(run, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left on device") as refused:
        polyjax.evaluate(run, ROWS[:9], quiet=True)
    assert "TMPDIR" in refused.value.fix


def test_evaluating_into_a_run_directory_replaces_nothing(run, folder, tmp_path):
    before = (run.folder / "results.json").read_bytes()
    (tmp_path / "odd" / "results.json").mkdir(parents=True)
    for out in (run.folder, str(run.folder), tmp_path / "odd"):
        with pytest.raises(InputError) as refused:
            polyjax.evaluate(run, out=out, quiet=True)
        assert refused.value.argument == "out" and refused.value.fix == "choose another folder"
    assert (run.folder / "results.json").read_bytes() == before
    with pytest.raises(InputError, match="report.md: the file is missing"):
        Run(tmp_path / "odd").report()


@pytest.mark.parametrize(
    ("act", "argument"),
    [
        (lambda run: polyjax.evaluate(run, [ROWS[0], {"context": "hi"}]), "data[1]"),
        (lambda run: polyjax.fit([*ROWS, {"label": "hi"}], **SMALL), f"data[{len(ROWS)}]"),
        (lambda run: polyjax.fit(ROWS, valid=[{"context": "hi"}], **SMALL), "valid[0]"),
        (lambda run: polyjax.fit(ROWS, **SMALL | {"steps": -1}), "steps"),
        (lambda run: polyjax.fit(ROWS, **SMALL | {"seed": -1}), "seed"),
    ],
)
def test_an_error_names_what_the_caller_wrote(run, act, argument):
    with pytest.raises(InputError) as refused:
        act(run)
    assert refused.value.argument == argument


def test_a_dict_changes_the_tokenizer_of_an_encoder_from_scratch():
    with pytest.raises(InputError) as refused:
        polyjax.fit(ROWS, **SMALL, tokenizer={"vocab_size": 9999}, run_dir="large")
    assert (
        refused.value.argument == "tokenizer.vocab_size"
        and "is too large for the corpus" in refused.value.problem
    )


def test_evaluating_on_training_rows_is_said_whatever_holds_the_model(run, capsys):
    for model in (run, run.ranker(), str(run.folder)):
        polyjax.evaluate(model, ROWS)
        (warning,) = re.findall(
            r"warning: the run was trained on (\d+) of these (\d+) rows", capsys.readouterr().out
        )
        assert len(ROWS) // 2 < int(warning[0]) < int(warning[1]) == len(ROWS)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"ks": [4]}, "ks"),
        ({"examples": -1}, "examples"),
        ({"out": "listed.jsonl"}, "out"),
        ({"model": 3}, "model"),
        ({"data": 5}, "data"),
    ],
)
def test_evaluate_refuses_before_it_scores(run, changes, argument, folder):
    (folder / "listed.jsonl").write_text("")
    settings = {"model": run, "data": None} | changes
    with pytest.raises(InputError) as refused:
        polyjax.evaluate(settings.pop("model"), settings.pop("data"), **settings)
    assert refused.value.argument == argument


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"ks": "4"}, "ks"),
        ({"ks": [True]}, "ks"),
        ({"examples": "3"}, "examples"),
        ({"split": "train"}, "split"),
        ({"rank": "sampled"}, "rank"),
    ],
)
def test_evaluates_arguments_of_another_type_are_refused(changes, argument):
    given = {"split": "test", "ks": [1], "examples": 0, "rank": None}
    check_arguments(**given)
    with pytest.raises(InputError) as refused:
        check_arguments(**given | changes)
    assert refused.value.argument == argument


def test_other_rows_or_settings_are_refused(run):
    more = [*ROWS, {"context": "my car stops", "label": "fix the car"}]
    with pytest.raises(InputError) as refused:
        polyjax.fit(more, **SMALL, run_dir=run.folder)
    assert refused.value.argument == "data" and "start again" in refused.value.fix
    assert json.loads((run.folder / "rows.jsonl").read_text().splitlines()[-1]) == ROWS[-1]
    with pytest.raises(InputError, match="learning.rate"):
        polyjax.fit(ROWS, **SMALL, run_dir=run.folder, optim={"learning_rate": 1.0})
    with pytest.raises(InputError) as refused:
        polyjax.fit(ROWS, **SMALL, run_dir=run.folder, seed=3)
    assert "`seed` was 0, now 3" in refused.value.problem or "seed was 0, now 3" in refused.value.problem
    assert "train.seed" not in str(refused.value)


def test_metrics_are_shown_and_saved_where_a_later_stage_fails(folder, monkeypatch, capsys):
    def broken(*given, **options):
        raise RuntimeError("no baseline")

    monkeypatch.setattr("polyjax.recipes.outcome.run_baselines", broken)
    with pytest.raises(RuntimeError, match="no baseline"):
        polyjax.fit(ROWS, **SMALL, run_dir="broken")
    assert re.search(r"bi-encoder +[01]\.\d{3}", capsys.readouterr().out)
    assert "bi-encoder" in json.loads((folder / "broken" / "results.json").read_text())


def test_examples_are_rows_too(folder):
    examples = [Example(str(i), (row["context"],), (row["label"],), 0, str(i)) for i, row in enumerate(ROWS)]
    run = polyjax.fit(examples, **SMALL | {"steps": 1, "train": {"validate_every_steps": 1}}, quiet=True)
    assert run.folder.name != "demo" and len((run.folder / "rows.jsonl").read_text().splitlines()) == len(
        ROWS
    )


def test_quiet_prints_nothing(capsys, folder):
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    polyjax.fit(
        "mine.jsonl", **SMALL | {"steps": 1, "train": {"validate_every_steps": 1}}, run_dir="q", quiet=True
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"data": 5}, "data"),
        ({"data": []}, "data"),
        ({"data": [3]}, "data[0]"),
        ({"data": {"context": "a"}}, "data"),
        ({"data": [{"context": "a", "label": 5}, {"context": "b"}]}, "data"),
        ({"arch": "poli"}, "arch"),
        ({"preset": "demmo"}, "preset"),
        ({"optim": {"learning_rat": 1e-4}}, "optim['learning_rat']"),
        ({"data": "chitchat", "valid": ROWS}, "valid"),
        ({"data": None}, "data"),
        ({"optimizer": lambda optim, n_steps: None}, "optimizer"),
        ({"loss": lambda scores, batch: None}, "loss"),
        ({"data": [polyjax.Example("1", ("hello",), ("x",), 1, "")]}, "data[0].label"),
    ],
)
def test_wrong_arguments_are_named(changes, argument, folder):
    settings = {"data": ROWS, **SMALL, **changes}
    with pytest.raises(InputError) as refused:
        polyjax.fit(settings.pop("data"), **settings, run_dir="wrong")
    assert refused.value.argument == argument
    assert not (folder / "wrong").exists()


TYPES = """
import sys, polyjax
sys.path.insert(0, {tests!r})
rows = [{{"context": f"q{{i}}", "label": f"l{{i}}"}} for i in range(60)]
cases = {{
    "data[0].context": {{"data": [polyjax.Example("1", "hello", ("x",), 0, "")]}},
    "data[0].answers": {{"data": [polyjax.Example("1", ("hello",), ("x",), 0, "", answers="yz")]}},
    "data[0].negatives": {{"data": [polyjax.Example("1", ("hello",), ("x",), 0, "", negatives="bad")]}},
    "data[0].candidates": {{"data": [polyjax.Example("1", ("hello",), None, 0, "")]}},
    "data[0].label": {{"data": [polyjax.Example("1", ("hello",), ("x",), "0", "")]}},
    "arch": {{"arch": "bi", "head": polyjax.PolyConfig(n_codes=4)}},
    "batch": {{"batch": 64}}, "text": {{"text": "x"}}, "head": {{"head": 5}}, "encoder": {{"encoder": None}},
    "run_dir": {{"run_dir": 5}}, "callbacks": {{"callbacks": print}},
    "test_examples": {{"test_examples": "5"}},
    "steps": {{"steps": 1.5}}, "seed": {{"seed": "0"}}, "time_limit": {{"time_limit": "5"}},
    "early_stopping": {{"early_stopping": "3"}}, "train.best_by": {{"train": {{"best_by": "foo"}}}},
    "optim.decay": {{"optim": {{"decay": "cosine"}}}},
    "batch.candidates": {{"batch": {{"candidates": "in"}}}},
    "none.txt": {{"rank": {{"candidates": "fixed", "file": "none.txt"}}}},
    "text.context_tokens": {{"text": {{"context_tokens": "256"}}}},
    "optim.learning_rate": {{"optim": {{"learning_rate": "1e-3"}}}},
    "batch.batch_size": {{"batch": {{"batch_size": "8"}}}},
    "head.n_codes": {{"head": {{"n_codes": "4"}}}}, "rank.n": {{"rank": {{"n": "3"}}}},
    "callbacks[1]": {{"callbacks": [print, 3]}},
    "batch.chunk": {{"batch": {{"chunk": 2.5}}, "steps": 1}},
}}
classes = [(name, {{name: polyjax.PolyConfig}}) for name in ("head", "loss", "batch", "optim", "encoder")]
for argument, changes in [*cases.items(), *classes]:
    try:
        polyjax.fit(changes.pop("data", rows), **{{"run_dir": "wrong"}} | changes)
    except polyjax.InputError as error:
        assert error.argument == argument, (argument, error)
    else:
        raise AssertionError(argument)
"""


def test_arguments_of_other_types_are_named(tmp_path):
    """In a process of its own: the tests check the types of calls."""
    code = TYPES.format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "wrong").exists()


def test_the_settings_of_every_preset_are_of_their_types():
    for preset in PRESETS.values():
        for arch in ("bi", "poly", "cross"):
            with contextlib.suppress(InputError):  # a recipe has one architecture
                check_types(preset(arch))


def test_explicit_steps_beat_the_presets_limit_of_epochs(run):
    """At 8 contexts a step, 64 training rows make 8 steps an epoch; the demo ends few rows after 5."""
    assert run.config["train"]["steps"] == 4 and run.config["train"]["most_epochs"] == 0


def test_a_notebook_sees_bars_and_a_curve():
    pages = []
    display = Display(pages.append)
    with watched_by(display.progress):
        display.log(1, "train", {"loss": 2.0})
        display.progress("training", 1, 2, "loss <2>")
        display.log(
            2, "valid", {"loss": 1.5, "recall@1/4": 0.5, "recall@1/4 95% interval": [0.4, 0.6], "mrr": 0.6}
        )
        display.progress("training", 2, 2, "")
    assert "<progress value=2 max=2>" in pages[-1] and "data:image/png;base64," in pages[-1]
    assert any("loss &lt;2&gt;" in page for page in pages)


def test_results_are_a_mapping_that_prints():
    row = {
        "recall@1/20": 0.5,
        "recall@2/20": 0.75,
        "recall@1/20 95% interval": [0.4, 0.6],
        "mrr": 0.7,
        "n": 1234,
    }
    results = Results({"a <b>": row}, title="t")
    assert dict(results) == {"a <b>": row} and results.table()[0][2:] == [
        "recall@1/20",
        "95% interval",
        "@2",
        "MRR",
    ]
    assert "1,234" in str(results) and "a &lt;b&gt;" in results._repr_html_()


def test_importing_polyjax_brings_nothing_that_ranking_does_not_need():
    heavy = "orbax", "matplotlib", "tensorflow_datasets", "grain", "sklearn", "tyro"
    script = f"import sys, polyjax; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_public_list_is_there():
    assert {"fit", "evaluate", "Run", "Ranker", "InputError"} <= set(polyjax.__all__)
    assert all(getattr(polyjax, name) is not None for name in polyjax.__all__)
    assert not isinstance(polyjax.Ranker, nnx.Module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        polyjax.nothing  # noqa: B018


def test_rows_that_share_their_candidates_calibrate_the_scores_too(tmp_path):
    file = tmp_path / "shared.txt"
    file.write_text("".join(f"{row['label']}\n" for row in ROWS))
    rank = {"candidates": "fixed", "file": file}
    settings = SMALL | {"steps": 30, "rank": rank, "train": {"validate_every_steps": 30}}
    found = polyjax.fit(ROWS, **settings, run_dir=tmp_path / "run", quiet=True)
    scores = read_card(found.folder).scores
    assert scores is not None and scores.slope > 0


def test_few_labels_are_refused_with_an_argument_that_works(tmp_path):
    """Settings are named as ``fit`` and ``evaluate`` have them."""
    rows = [{"context": f"my {a} {b}", "label": f"do {b}"} for a in WORDS for b in FAULTS]
    settings = {name: value for name, value in SMALL.items() if name != "rank"} | {"quiet": True}
    with pytest.raises(InputError) as refused:
        polyjax.fit(rows, **settings, run_dir=tmp_path / "run")
    assert refused.value.argument == "rank.n" and str(refused.value).endswith("use rank.n 8")
    with pytest.raises(InputError) as few:
        polyjax.fit(ROWS[:3], **settings, run_dir=tmp_path / "few")
    assert "`valid`" in few.value.fix and "task." not in few.value.fix
    found = polyjax.fit(rows, **settings, run_dir=tmp_path / "run", rank={"n": 8})
    assert "recall@1/8" in found.test.model
    with pytest.raises(InputError, match=r"rank\.n: .* use rank\.n 8"):
        polyjax.evaluate(found.ranker(), rows, quiet=True)
    evaluated = polyjax.evaluate(found.ranker(), rows, quiet=True, rank=polyjax.data.RankConfig(n=8))
    assert "recall@1/8" in evaluated.model
    with pytest.raises(InputError, match="epochs: expected 0 where steps is given"):
        polyjax.fit(rows, **settings, epochs=1.0)


def test_a_run_that_is_not_tested_yet_shows_its_folder(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    assert repr(Run(tmp_path / "run")) == f"<Run: {tmp_path / 'run'}, not tested yet>"
    assert Run(tmp_path / "run")._repr_html_() is None
