"""The script of the ladder: it trains what is missing, resumes, and takes its numbers from runs alone."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from polyjax import InputError, Ranker, Run
from polyjax.cli.training_flags import parse_run
from polyjax.recipes.session import run as run_config
from test_fit import ROWS

SCRIPT = Path(__file__).parents[1] / "experiments" / "ladder.py"
SHORT = (
    "--encoder tiny --task jsonl:rows.jsonl --train.steps 2 --train.validate-every-steps 2 "
    "--batch.batch-size 8 --rank.candidates sampled --rank.n 4 --text.context-tokens 16 "
    "--text.candidate-tokens 16 --text.buckets 16 32 "
    "--head.shared-encoder --encoder.dtype float32"
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ladder", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ladder(script, tmp_path, monkeypatch):
    """A bi-encoder, a cross-encoder that starts from it, and the commands that were run."""
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"context": row["context"], "label": row["label"]}) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    rows = (
        script.Row("bi tiny", "bi", "demo", f"train --arch bi {SHORT}"),
        script.Row(
            "cross tiny",
            "cross",
            "demo",
            "train --arch cross --init {after} --task jsonl:rows.jsonl --train.steps 2 --batch.n-negatives 3 "
            "--rank.candidates sampled --rank.n 4",
            after="bi tiny",
        ),
    )
    commands = []

    def run(arguments):
        commands.append(arguments)
        run_config(parse_run(arguments[1:], prog="polyjax train"))

    return script.Ladder(rows, runs=tmp_path / "runs", results=tmp_path / "results", run=run), commands


def test_rows_are_trained_once_and_collected_from_their_runs(ladder, tmp_path):
    ladder, commands = ladder
    ladder.train("cross tiny", 3)  # and before it what it starts from
    assert [Path(words[-1]).name for words in commands] == ["bi-tiny-3", "cross-tiny-3"]
    ladder.train("bi tiny", 3)
    ladder.train("cross tiny", 3)
    assert len(commands) == 2, "what is finished is not trained again"
    table = ladder.collect()
    assert json.loads((tmp_path / "results" / "ladder.json").read_text()) == table
    assert [row["name"] for row in table] == ["bi tiny", "cross tiny"]
    run = Run.load(tmp_path / "runs" / "cross-tiny-3")
    assert table[1]["recall_at_1"] == pytest.approx(run.test.recall_at_1, abs=1e-4)
    assert (table[1]["low"], table[1]["high"]) == pytest.approx(run.test.interval, abs=1e-4)
    assert table[1]["seeds"] == [3] and table[1]["steps"] == 2 and table[1]["contexts"] == 16
    assert "--init" in table[1]["command"] and "--train.seed 3" in table[1]["command"]
    assert Ranker.load(run.folder).rank("my printer hums", ["fix the hums printer", "fix it"])
    assert Ranker.load(run.folder).scorer.settings.head.gate == -3.0

    # A seed's file without its run is enough for the table; a run without its file is not trained again.
    shutil.rmtree(tmp_path / "runs" / "cross-tiny-3")
    (tmp_path / "results" / "ladder" / "bi-tiny-3.json").unlink()
    ladder.train("bi tiny", 3)
    assert len(commands) == 2 and ladder.collect() == table


def test_the_mean_over_seeds_is_rendered(ladder, tmp_path):
    ladder, _ = ladder
    for seed, recall in ((0, 0.5), (1, 0.7)):
        facts = {"name": "bi tiny", "arch": "bi", "preset": "demo", "seed": seed, "recall_at_1": recall}
        facts |= {
            "low": recall - 0.1,
            "high": recall + 0.1,
            "steps": 2,
            "contexts": 16,
            "seconds": 10 + 10 * seed,
        }
        path = tmp_path / "results" / "ladder" / f"bi-tiny-{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        facts |= {"command": "polyjax train", "commit": f"c{seed}", "code": {"nn": "a", "train": f"b{seed}"}}
        path.write_text(json.dumps(facts))
    (row,) = ladder.collect()
    assert (row["recall_at_1"], row["low"], row["high"], row["seconds"]) == (0.6, 0.5, 0.7, 15)
    assert row["each"] == [0.5, 0.7] and row["seeds"] == [0, 1] and row["commit"] == ["c0", "c1"]
    assert row["code"] == {"nn": "a", "train": "several"}


def test_a_row_that_is_not_there_is_refused_before_training(ladder):
    ladder, commands = ladder
    with pytest.raises(InputError) as error:
        ladder.train("bi huge", 0)
    assert (error.value.argument, error.value.got) == ("rows", "bi huge") and not commands


def test_the_ladder_has_the_rows_of_the_claim(script):
    """And their commands parse, with what they start from where it is trained already."""
    names = [row.name for row in script.LADDER]
    assert names == [
        "bi demo",
        "poly demo",
        "cross demo",
        "cross mined",
        "bi long",
        "poly long",
        "cross long",
        "poly distilled",
    ]
    for row in script.LADDER:
        if row.after:
            continue
        config = parse_run(row.arguments.split()[1:], prog="polyjax train")
        assert (config.arch, config.preset) == (row.arch, row.preset)
    assert all(names.index(row.after) < names.index(row.name) for row in script.LADDER if row.after)
