"""Testing on training rows is found out, however they come; a run resumes when its files have moved."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from conftest import golden_encoder
from polyjax import Ranker
from polyjax.config import from_json
from polyjax.data.identity import digests
from polyjax.data.known import BEFORE, KNOWN, count_known, load_known, load_seen, save_known
from polyjax.data.rows import Rows, rows_digest
from polyjax.data.tasks.jsonl import OwnDataConfig
from polyjax.errors import InputError
from polyjax.recipes.mining import header_difference
from polyjax.recipes.own_rows import rows_trained_on
from polyjax.recipes.pretrain import check_corpus, note_corpus
from polyjax.recipes.rows_in_memory import RowFiles, as_jsonl
from polyjax.recipes.session import INCIDENTAL
from polyjax.recipes.settings import (
    INIT,
    EncoderChoice,
    GuideConfig,
    RunConfig,
    TeacherConfig,
    TokenizerChoice,
)
from polyjax.recipes.splits import read_splits
from polyjax.runs import open_run
from polyjax.types import Example

ROWS = [{"context": [f"hi {i}", f"my thing {i}"], "label": f"fix number {i}"} for i in range(100)]


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def example(context: str, label: str) -> Example:
    return Example("any id", (context,), ("x", label), 1, "any group")


def test_rows_are_known_by_what_they_say(tmp_path):
    save_known(tmp_path, digests([example("a b", "c"), example("d", "e"), example("d", "e")]))
    known = load_known(tmp_path)
    assert known is not None and known.dtype == np.uint64 and len(known) == 2
    asked = [example("A  b\u200b", "C"), example("d", "c"), example("a", "c"), example("e", "d")]
    assert count_known(digests(asked).rows, known) == 1
    assert load_known(tmp_path / "nowhere") is None


def test_digests_that_are_damaged_are_named_and_written_again(tmp_path):
    path = tmp_path / KNOWN
    for damage in (b"", b"no array", b"\x93NUMPY\x01\x00"):
        path.write_bytes(damage)
        with pytest.raises(InputError) as caught:
            load_known(tmp_path)
        assert caught.value.argument == str(path)
        assert "pickle" not in str(caught.value) and "remove it" in str(caught.value)
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="expected digests"):
        load_known(tmp_path)
    save_known(tmp_path, digests([example("a", "b")]))
    assert len(load_known(tmp_path)) == 1


@pytest.fixture
def opened(tmp_path):
    """A run whose rows were read, as before its first step."""
    task = OwnDataConfig(train=write(tmp_path / "data" / "mine.jsonl", ROWS), n_candidates=5)
    config = RunConfig(task=task, run_dir=tmp_path / "run")
    open_run(config.folder, config)
    return config, read_splits(config, None)


def test_training_rows_are_known_in_every_file(opened, tmp_path):
    """Moved, copied, in part, in other letters, among others: by digests, whatever is given as what."""
    config, splits = opened
    training, test = list(splits.train.examples), list(splits.test.examples)

    def count(rows):
        task = OwnDataConfig(train=write(tmp_path / "other" / "x.jsonl", rows), n_candidates=5)
        examples = task.beside(config.task).read("test").examples
        assert len(examples) == len(rows)
        return rows_trained_on(config.folder, config.task, examples)

    assert count(ROWS) == len(training) == len(ROWS) - len(test) - len(splits.valid.examples)
    new = [{"context": f"new {i}", "label": f"new {i}"} for i in range(20)]
    assert count(new) == 0
    some = [{"context": list(e.context), "label": e.label_text.upper()} for e in training[:7]]
    assert count([*new, *some]) == 7
    lines = [{"context": "\n".join(e.context), "label": e.label_text} for e in training[:6]]
    assert count([*new, *lines]) == 6, "a table reads such lines as turns"
    further = [
        {"context": list(e.context), "label": "another", "answers": [e.label_text]} for e in training[:5]
    ]
    assert count([*new, *further]) == 5, "the best placed of them counts as the label"
    config.task.train.unlink()
    assert count(ROWS) == len(training), "the run keeps what is needed to know"


def test_the_training_rows_of_the_runs_before_are_known_too(opened, tmp_path):
    config, splits = opened
    trained = list(splits.train.examples)
    new = [{"context": f"new {i}", "label": f"thing {i}"} for i in range(100)]
    second = dataclasses.replace(
        config,
        task=OwnDataConfig(train=write(tmp_path / "data" / "new.jsonl", new), n_candidates=5),
        run_dir=tmp_path / "second",
        init=config.folder,
        encoder=EncoderChoice(name=INIT),
        tokenizer=TokenizerChoice(kind="pretrained"),
    )
    open_run(second.folder, second)
    read_splits(second, None)
    assert rows_trained_on(second.folder, second.task, trained) == len(trained)
    third = dataclasses.replace(
        second,
        task=dataclasses.replace(config.task, test=write(tmp_path / "data" / "test.jsonl", ROWS)),
        run_dir=tmp_path / "third",
        init=second.folder,
    )
    open_run(third.folder, third)
    (note,) = [note for note in read_splits(third, None).notes if f"training rows of {second.folder}" in note]
    assert note.startswith(f"warning: {len(trained)} of {len(ROWS)} test rows")
    # A run that is resumed after the folder that it started from has gone still knows.
    shutil.rmtree(config.folder)
    read_splits(second, None)
    assert rows_trained_on(second.folder, second.task, trained) == len(trained)
    assert len(load_known(second.folder)) < len(load_seen(second.folder))


def test_a_run_that_kept_no_digests(opened, tmp_path):
    config, splits = opened
    (config.folder / KNOWN).unlink()
    rows = splits.train.examples
    assert rows_trained_on(config.folder, config.task, rows) == len(rows), "its rows are read again"
    config.task.train.unlink()
    assert rows_trained_on(config.folder, config.task, rows) is None


def test_test_rows_that_are_training_rows_are_said(tmp_path):
    """Given as files of their own, to validate and to test on; on the console and in the report."""
    train = write(tmp_path / "a.jsonl", ROWS)
    test = write(tmp_path / "b.jsonl", [*ROWS[:9], {"context": "new", "label": "new"}])
    config = RunConfig(
        task=OwnDataConfig(train=train, valid=test, test=test, n_candidates=5), run_dir=tmp_path / "r"
    )
    open_run(config.folder, config)
    notes = read_splits(config, None).notes
    assert "warning: 9 of 10 test rows are training rows too" in notes
    assert "warning: 9 of 10 valid rows are training rows too" in notes
    assert "9 of 10 test labels are training labels too" in notes


def test_rows_that_the_model_to_start_from_was_trained_on_are_said(opened, tmp_path):
    before, _ = opened
    train = write(tmp_path / "new.jsonl", [{"context": f"new {i}", "label": f"new {i}"} for i in range(20)])
    test = write(tmp_path / "old.jsonl", [*ROWS, {"context": "newer", "label": "newer"}])
    config = RunConfig(
        task=OwnDataConfig(train=train, valid=train, test=test, n_candidates=5),
        run_dir=tmp_path / "later",
        init=before.folder,
        encoder=EncoderChoice(name=INIT),
        tokenizer=TokenizerChoice(kind="pretrained"),
    )
    open_run(config.folder, config)
    notes = read_splits(config, None).notes
    n = len(read_splits(before, None).train.examples)
    assert f"warning: {n} of {len(ROWS) + 1} test rows are training rows of {before.folder}" in notes


def test_rows_that_an_encoders_folder_or_a_teacher_was_trained_on_are_said(opened, tmp_path):
    """An exported folder has the digests of its run; a teacher may have seen the rows of the test."""
    before, splits = opened
    trained, exported = splits.train.examples, tmp_path / "exported"
    exported.mkdir()
    shutil.copyfile(before.folder / KNOWN, exported / KNOWN)
    train = write(tmp_path / "new.jsonl", [{"context": f"new {i}", "label": f"new {i}"} for i in range(20)])
    test = write(tmp_path / "old.jsonl", ROWS)
    config = RunConfig(
        task=OwnDataConfig(train=train, valid=train, test=test, n_candidates=5),
        run_dir=tmp_path / "later",
        encoder=EncoderChoice(name=str(exported)),
        teacher=TeacherConfig(models=(before.folder,)),
        tokenizer=TokenizerChoice(kind="pretrained"),
    )
    open_run(config.folder, config)
    notes = read_splits(config, exported).notes
    for place in (exported, before.folder):
        assert f"warning: {len(trained)} of {len(ROWS)} test rows are training rows of {place}" in notes
    assert rows_trained_on(config.folder, config.task, trained) == len(trained)
    # A model that mines negatives, and a guide.
    teacher = TeacherConfig(models=("minilm",), miner=before.folder)
    for change in ({"teacher": teacher}, {"teacher": None, "guide": GuideConfig(model=before.folder)}):
        other = dataclasses.replace(config, **change, encoder=EncoderChoice())
        notes = read_splits(other, None).notes
        assert (
            f"warning: {len(trained)} of {len(ROWS)} test rows are training rows of {before.folder}" in notes
        )
    # A teacher in memory, of a run that does not start from the folder.
    (config.folder / BEFORE).unlink()
    other = dataclasses.replace(config, teacher=None, encoder=EncoderChoice())
    teacher = Ranker.load(golden_encoder("bert")[0])
    teacher.folder = before.folder
    notes = read_splits(other, None, teachers=[teacher]).notes
    assert f"warning: {len(trained)} of {len(ROWS)} test rows are training rows of {before.folder}" in notes
    assert rows_trained_on(config.folder, config.task, trained) == len(trained)


def test_changed_negatives_and_scores_are_other_rows():
    row = Example("1", ("q",), ("a",), 0, "1")
    rows = [
        row,
        dataclasses.replace(row, negatives=("x",)),
        dataclasses.replace(row, negatives=("y",)),
        dataclasses.replace(row, negatives=("y",), scores=(1.0, 0.5)),
        dataclasses.replace(row, negatives=("y",), scores=(1.0, 0.6)),
    ]
    assert len({rows_digest(Rows([one])) for one in rows}) == len(rows)


def test_what_contexts_have_several_answers_is_said(tmp_path):
    rows = [{"context": f"q {i % 50}", "label": f"a {i}"} for i in range(100)]
    config = RunConfig(task=OwnDataConfig(train=write(tmp_path / "a.jsonl", rows)), run_dir=tmp_path / "r")
    open_run(config.folder, config)
    splits = read_splits(config, None)
    n = {name: len(getattr(splits, name).examples) // 2 for name in ("train", "test")}
    several = "contexts have several right answers"
    assert f"{n['train']} of {n['train']} train {several}: none is a negative of another" in splits.notes
    assert (
        f"{n['test']} of {n['test']} test {several}: the best placed of them counts as the label"
        in splits.notes
    )


def test_a_run_whose_file_has_moved_is_the_same(opened, tmp_path):
    """Its settings may name another path, and then do; other rows are refused, and change nothing."""
    config, _ = opened
    (config.folder / "checkpoints" / "1").mkdir(parents=True)  # as if it was trained
    moved = write(tmp_path / "elsewhere" / "renamed.jsonl", ROWS)
    config.task.train.unlink()
    other = dataclasses.replace(config, task=dataclasses.replace(config.task, train=moved))
    open_run(other.folder, other, incidental=INCIDENTAL)
    read_splits(other, None)
    kept = json.loads((config.folder / "config.json").read_text())
    assert from_json(RunConfig, kept, source="config").task.train == moved
    changed = write(tmp_path / "elsewhere" / "changed.jsonl", ROWS[:-1])
    third = dataclasses.replace(config, task=dataclasses.replace(config.task, train=changed))
    open_run(third.folder, third, incidental=INCIDENTAL)
    with pytest.raises(InputError, match=r"other data: \d+ of \d+ train rows are new or changed"):
        read_splits(third, None)
    assert json.loads((config.folder / "config.json").read_text()) == kept


def test_rows_in_memory_are_the_same_however_they_are_written_and_others_are_counted(tmp_path):
    def rows(*given):
        return RowFiles({"rows.jsonl": as_jsonl("data", given)})

    a, b, c = ({"context": "hi", "label": name} for name in "abc")
    rows(a, b).write(tmp_path, begun=False)
    rows({"label": "a", "context": "hi"}, b).write(tmp_path, begun=True)
    written = {"context": ["hi"], "label": "a", "answers": [], "candidates": None}
    rows(written, Example("line-2", ("hi",), ("b",), 0, "line-2")).write(tmp_path, begun=True)
    assert (tmp_path / "rows.jsonl").read_bytes() == as_jsonl("data", [a, b]), "what the run read stays"
    for given, words in (
        ((a, c, b), "1 of 3 are new or changed, 0 of the 2 before are missing"),
        ((a,), "0 of 1 are new or changed, 1 of the 2 before are missing"),
        ((b, a), "the same in another order"),
    ):
        with pytest.raises(InputError) as caught:
            rows(*given).write(tmp_path, begun=True)
        assert caught.value.argument == "data" and caught.value.problem.endswith(words)
    with pytest.raises(InputError) as caught:
        RowFiles({"valid.jsonl": as_jsonl("valid", [a])}).write(tmp_path, begun=True)
    assert caught.value.argument == "valid" and "none in memory" in caught.value.problem


def test_what_of_mined_negatives_differs_is_named():
    header = {
        "format": 1,
        "model": "aa",
        "rescore": None,
        "rows": "bb",
        "candidates": "cc",
        "rules": {"k": 1},
    }
    assert header_difference(header, header) == ""
    assert header_difference(header, header | {"rows": "dd", "model": "ee"}) == "the model and the rows"
    assert header_difference(header, header | {"rules": {"k": 2}}) == "`k` (was 1, now 2)"


def test_files_of_a_corpus_that_changed_are_named(tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    note_corpus(tmp_path, "f", "s", ["lines/a.txt/11", "lines/b.txt/22"])
    check_corpus(tmp_path, "f", [])
    with pytest.raises(InputError) as caught:
        check_corpus(tmp_path, "g", ["lines/b.txt/33", "lines/c.txt/11"])
    assert caught.value.problem.endswith("(new: c.txt; missing: a.txt; changed: b.txt)")
    with pytest.raises(InputError, match="what is left out of it, or the tokenizer"):
        note_corpus(tmp_path, "f", "t", [])
