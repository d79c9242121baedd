"""One's own files: what is read, and what is said about a file that is wrong."""

import dataclasses
import json
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from polyjax.data.identity import text_key
from polyjax.data.rows import RankConfig
from polyjax.data.tasks import NAMED, jsonl, own_files, read_to_rank, task_named, training_texts
from polyjax.data.tasks.jsonl import OwnDataConfig, parse, split_of
from polyjax.data.tasks.own_rows import example_of
from polyjax.errors import InputError
from polyjax.evaluation import rank_shared
from polyjax.evaluation.rankings import ranking
from polyjax.types import Example


def write(folder: Path, *rows: object, name: str = "f.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def row(i: int, **more) -> dict:
    return {"context": [f"question {i}"], "label": f"answer number {i}"} | more


def test_forms_of_a_line(tmp_path):
    path = write(
        tmp_path,
        {"context": "hi", "label": "hello"},
        {"context": ["a", "b"], "label": "y", "candidates": ["x", "y", "y"], "id": 7},
        "",
        {"context": ["ü ☕"], "label": "c", "id": "z"},
    )
    assert parse(path) == [
        Example("line-1", ("hi",), ("hello",), 0, "line-1"),
        Example("7", ("a", "b"), ("x", "y", "y"), 1, "7"),
        Example("z", ("ü ☕",), ("c",), 0, "z"),
    ]


@pytest.mark.parametrize(
    "cell",
    [
        "['hi', 'there']",
        "('hi', 'there')",
        "[np.str_('hi'), np.str_('there')]",
        "['hi' 'there']",
        '["hi", "there"]',
    ],
)
def test_a_cell_with_a_list_is_read_as_turns(tmp_path, cell):
    path = tmp_path / "f.csv"
    quoted = cell.replace('"', '""')
    path.write_text(f'context,label\n"{quoted}",a\n')
    assert parse(path)[0].context == ("hi", "there")


@pytest.mark.parametrize("cell", ["(laughs) hi", "[laughs]", "('hi')", "[hi, there]", "(1, 2)"])
def test_a_text_that_begins_like_a_list_is_a_text(tmp_path, cell):
    (tmp_path / "f.csv").write_text(f'context,label\n"{cell}",a\n')
    assert parse(tmp_path / "f.csv")[0].context == (cell,)


@pytest.mark.parametrize("cell", ["['hi', None]", "[{'role': 'user', 'content': 'hi'}]"])
def test_a_list_of_other_things_is_no_text(tmp_path, cell):
    (tmp_path / "f.csv").write_text(f'context,label\n"{cell}",a\n')
    with pytest.raises(InputError, match="expected a text"):
        parse(tmp_path / "f.csv")


@pytest.mark.parametrize("text", ["\u200b", "\u3164", " \ufeff "])
def test_a_text_of_ignorable_characters_is_empty(tmp_path, text):
    for key in ("context", "label"):
        with pytest.raises(InputError, match="the text is empty"):
            example_of({"context": "a", "label": "b", key: text}, "1")


def test_right_answers_of_the_other_files_are_no_wrong_candidates(tmp_path):
    write(tmp_path, *({"context": "hi", "label": f"l{i}"} for i in range(1, 4)), name="train.jsonl")
    test = ({"context": "hi" if i == 0 else f"x{i}", "label": f"l{i}"} for i in range(9))
    write(tmp_path, *test, name="test.jsonl")
    task = OwnDataConfig(train=tmp_path / "train.jsonl", test=tmp_path / "test.jsonl", n_candidates=4)
    row = task.read("test").examples[0]
    assert set(row.answers) == {"l1", "l2", "l3"} and not set(row.answers) & set(row.candidates)
    (tmp_path / "train.jsonl").unlink()
    assert task.read("test").examples[0].answers == (), "the other file need not be there to test"


def test_an_id_is_checked_like_a_text():
    with pytest.raises(InputError, match="id: it holds half a character"):
        example_of({"context": "a", "label": "b", "id": "\ud800"}, "1")


def test_a_missing_file_names_what_is_beside_it(tmp_path):
    kinds = ".jsonl, .json, .ndjson, .csv or .tsv"
    with pytest.raises(InputError, match=rf"replys.jsonl: the file is missing, expected a {kinds} file$"):
        parse(tmp_path / "replys.jsonl")
    (tmp_path / "replies.jsonl").touch()
    with pytest.raises(InputError, match="replys.jsonl: the file is missing.*; is .*/replies.jsonl meant[?]"):
        parse(tmp_path / "replys.jsonl")
    with pytest.raises(InputError, match="there is no folder .*/none either"):
        parse(tmp_path / "none" / "replies.jsonl")
    with pytest.raises(InputError, match=f"{tmp_path.name}: a folder, expected a .jsonl"):
        parse(tmp_path)


@pytest.mark.parametrize(("name", "tab"), [("f.csv", ","), ("f.tsv", "\t")])
def test_tables(tmp_path, name, tab):
    listed = '"[""x"", ""no""]"'
    rows = [tab.join(["id", "context", "label", "candidates", "other"])]
    rows += [tab.join(['"1"', '"a\nb, c"', "no", listed, "ignored"]), tab.join(["2", "d", "yes", "", ""])]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, ""]).encode())
    first, second = parse(tmp_path / name)
    assert first == Example("1", ("a", "b, c"), ("x", "no"), 1, "1")
    assert second == Example("2", ("d",), ("yes",), 0, "2")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON, got Expecting property name.* at column 2"),
        ('{"context": "a', "expected JSON, got Unterminated string starting at column 13"),
        ("[1]", "expected an object with a context and a label, got list"),
        ('"a text"', "expected an object with a context and a label, got str"),
        ({"context": "a"}, "the key 'label' is missing"),
        (
            {"context": "a", "response": "b"},
            "the key 'label' is missing; if 'response' is meant, rename it to 'label'",
        ),
        ({"label": "a"}, "the key 'context' is missing"),
        (
            row(1, labels=3),
            "unknown key 'labels', expected context, label, candidates, .*; is it meant to be 'label'\\?",
        ),
        ({"context": [], "label": "a"}, r"context: expected a text or a list of turns, got list \[\]"),
        ({"context": ["a", 3], "label": "b"}, r"context\[1\]: expected a text, got int 3"),
        ({"context": ["a", " "], "label": "b"}, r"context\[1\]: the text is empty"),
        ({"context": "a", "label": ""}, "label: the text is empty"),
        (row(1, candidates=["x"]), "label: expected one of the 1 candidates, got 'answer number 1'"),
        (row(1, candidates="x"), "candidates: expected a list of texts, got str 'x'"),
        (row(1, candidates=["answer number 1", ""]), r"candidates\[1\]: the text is empty"),
        (row(1, id=[1]), r"id: expected a text or a whole number, got list \[1\]"),
        (row(1, id=""), "id: expected a text or a whole number, got str ''"),
        ('{"id": ' + "1" * 5000 + "}", "expected JSON, got a number of thousands of digits"),
        ("[" * 100_000, "expected JSON, got lists nested too deeply"),
        ('{"context": "a", "label": "b", "label": "c"}', "the key 'label' is given twice"),
        (row(1, answers="b"), "answers: expected a list of texts, got str 'b'"),
        (row(1, negatives=["x", "Answer  number 1"]), r"negatives\[1\]: expected a wrong answer, got .*"),
        (row(1, negatives=["b"], answers=["B"]), r"negatives\[0\]: expected a wrong answer, got 'b'"),
        (row(1, scores=[1, 2]), r"scores: expected 1 finite numbers, .*, got list \[1, 2\]"),
        (row(1, negatives=["x"], scores=[1.0, "2"]), "scores: expected 2 finite numbers, .*"),
        ('{"context": "a", "label": "b", "scores": [NaN]}', "scores: expected 1 finite numbers, .*"),
        ('{"context": "a", "label": "b", "scores": [1' + "0" * 400 + "]}", "scores: expected 1 finite .*"),
        ('{"context": "a\\ud800", "label": "b"}', "context.*half a character.*"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path, row(0), line, row(5))
    with pytest.raises(InputError) as caught:
        parse(path)
    assert caught.value.argument.startswith(f"{path}:2") and not caught.value.is_argument
    assert re.fullmatch(message, str(caught.value).removeprefix(f"{path}:2: "))


def test_an_id_is_given_once(tmp_path):
    path = write(tmp_path, row(0, id="a"), row(1), row(2, id="a"))
    with pytest.raises(InputError, match="the id 'a' is also that of line 1") as caught:
        parse(path)
    assert caught.value.argument == f"{path}:3"


def test_all_bad_lines_are_counted_and_some_shown(tmp_path):
    with pytest.raises(InputError) as caught:
        parse(write(tmp_path, *(row(i, **{f"key {i}": 1}) for i in range(50))))
    lines = str(caught.value).split("\n")
    assert "50 bad lines" in lines[0] and len(lines) == 22 and lines[-1] == "  and 30 other errors"


def test_lines_of_one_fault_are_listed_together(tmp_path):
    with pytest.raises(InputError) as caught:
        parse(write(tmp_path, *(row(i, category="x") for i in range(50)), "{"))
    _, first, second = str(caught.value).split("\n")
    assert first.startswith("  lines 1, 2, 3 and 47 more: unknown key 'category', expected context")
    assert second.startswith("  line 51: expected JSON")


def test_encodings_and_endings(tmp_path):
    path = tmp_path / "f.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row(1)).encode() + b"\r\n" + json.dumps(row(2)).encode())
    assert [e.label_text for e in parse(path)] == ["answer number 1", "answer number 2"]
    path.write_bytes(b'{"context": "caf\xe9", "label": "x"}\n' + json.dumps(row(2)).encode())
    with pytest.raises(InputError) as caught:
        parse(path)
    assert caught.value.argument == f"{path}:1"
    assert caught.value.problem == "not valid UTF-8: invalid continuation byte at byte 16"


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(own_files, "LONGEST_LINE", 100)
    path = write(tmp_path, {"context": "a" * 500, "label": "b"}, row(1))
    with pytest.raises(InputError) as caught:
        parse(path)
    assert (caught.value.argument, caught.value.problem) == (f"{path}:1", "longer than 100 bytes")


def test_a_line_of_a_hundred_megabytes_is_named_and_never_in_memory(tmp_path):
    path = tmp_path / "f.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(row(1)).encode() + b"\n" + b'{"context": "')
        for _ in range(100):
            file.write(b"a" * 1_000_000)
        file.write(b'", "label": "b"}\n' + json.dumps(row(2)).encode() + b"\n{\n")
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        parse(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert "2 bad lines" in message and "line 2: longer than 10,000,000 bytes" in message
    assert "line 4: expected JSON" in message, "the lines after it are read as usual"
    assert peak < 45_000_000


def test_a_file_is_read_once_for_all_splits_and_again_when_it_changes(tmp_path, monkeypatch):
    path = write(tmp_path, *map(row, range(200)))
    calls = []
    monkeypatch.setattr(jsonl, "parse", lambda path: calls.append(path) or parse(path))
    monkeypatch.setattr(jsonl, "_files", jsonl.FileCache(limit=10**6))
    config = OwnDataConfig(train=path)
    sizes = [len(config.read(split).examples) for split in ("train", "valid", "test")]
    assert sum(sizes) == 200 and len(calls) == 1
    write(tmp_path, *map(row, range(100)))
    os.utime(path, ns=(1, 1))
    assert sum(len(config.read(split).examples) for split in ("train", "valid", "test")) == 100
    assert len(calls) == 2
    state = path.stat()
    write(
        tmp_path,
        *(row(i) | {"label": f"another number {i}"[: len(f"answer number {i}")]} for i in range(100)),
    )
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size and "another" in config.read("train").examples[0].label_text


def test_splits_by_fraction_are_stable_and_keep_equal_contexts_together(tmp_path):
    rows = [row(i // 2, id=i) for i in range(2000)]
    config = OwnDataConfig(train=write(tmp_path, *rows), valid_fraction=0.2, n_candidates=5)
    splits = {name: config.read(name).examples for name in ("train", "valid", "test")}
    sizes = {name: len(examples) for name, examples in splits.items()}
    assert sum(sizes.values()) == 2000 and 300 < sizes["valid"] < 500 and 130 < sizes["test"] < 270
    contexts = [{e.context for e in examples} for examples in splits.values()]
    assert not contexts[0] & contexts[1] and not contexts[0] & contexts[2] and not contexts[1] & contexts[2]
    fewer = OwnDataConfig(
        train=write(tmp_path, *rows[:500], name="g.jsonl"), valid_fraction=0.2, n_candidates=5
    )
    assert {e.id for e in fewer.read("valid").examples} <= {e.id for e in splits["valid"]}
    assert {len(e.candidates) for e in splits["valid"]} == {5}
    assert {len(e.candidates) for e in splits["train"]} == {1}


def test_splits_by_file(tmp_path):
    train, valid = (
        write(tmp_path, *map(row, range(100))),
        [row(i, candidates=["x", f"answer number {i}"]) for i in range(9)],
    )
    config = OwnDataConfig(train=train, valid=write(tmp_path, *valid, name="v.jsonl"))
    assert [len(e.candidates) for e in config.read("valid").examples] == [2] * 9
    n_train, n_test = (len(config.read(split).examples) for split in ("train", "test"))
    assert n_train + n_test == 100 and n_test > 0
    uneven = write(tmp_path, row(1, candidates=["answer number 1", "b"]), row(2), name="v.jsonl")
    with pytest.raises(InputError) as caught:
        OwnDataConfig(train=train, valid=uneven).read("valid")
    assert caught.value.argument == str(uneven) and caught.value.got == "none in example 'line-2'"
    many = [row(i, candidates=["x", f"answer number {i}"]) for i in range(60)]
    many[3]["candidates"] += ["y"]
    uneven = OwnDataConfig(train=write(tmp_path, *many, name="w.jsonl"))
    for split in ("valid", "test"):  # whichever of them the row is in, or none
        with pytest.raises(InputError) as caught:
            uneven.read(split)
        assert caught.value.expected == "2 candidates, as most rows"
        assert caught.value.got == "3 candidates in example 'line-4'"


def test_too_few_rows(tmp_path):
    config = OwnDataConfig(train=write(tmp_path, row(1)))
    empty = next(
        name
        for name in ("train", "valid", "test")
        if name != split_of(parse(config.train)[0], valid=0.1, test=0.1)
    )
    with pytest.raises(InputError) as caught:
        config.read(empty)
    assert caught.value.problem == f"no example falls into the split {empty!r}"
    assert "`task.valid`" in caught.value.fix or "`task.test`" in caught.value.fix
    with pytest.raises(
        InputError,
        match="too few different labels to draw [a-z]+ candidates from: 5, .*; use task.n_candidates 5",
    ):
        few = write(tmp_path, *map(row, range(5)))
        OwnDataConfig(train=few, valid=few, test_fraction=0.5).read("test")


def test_tasks_by_name(tmp_path):
    own = task_named("jsonl:some/talk.jsonl")
    assert own.name == "talk" and own == OwnDataConfig(train=Path("some/talk.jsonl"))
    for name in NAMED:
        assert task_named(name).name == name
    with pytest.raises(InputError) as caught:
        task_named("squad")
    expected = "chitchat, convai2, dstc7, ubuntu_v2, wikipedia_search or jsonl:PATH"
    assert (caught.value.argument, caught.value.expected, caught.value.got) == ("task", expected, "squad")
    with pytest.raises(InputError) as caught:
        task_named("jsonl:")
    assert caught.value.argument == "task" and "path of a file" in str(caught.value.expected)
    task = OwnDataConfig(train=write(tmp_path, *map(row, range(50))))
    examples = task.read("train").examples
    texts = list(training_texts(task, examples))
    assert len(texts) == 2 * len(examples) and texts[:2] == [examples[0].context[-1], examples[0].label_text]


def test_a_table_with_bytes_that_are_no_text_names_all_its_bad_lines(tmp_path):
    path = tmp_path / "f.csv"
    path.write_bytes(b"context,label\na,b\ncaf\xe9,c\n,d\ne,\n")
    with pytest.raises(InputError) as caught:
        parse(path)
    message = str(caught.value)
    assert "3 bad lines" in message and "line 3: not valid UTF-8" in message
    assert "line 4: context" in message and "line 5: label" in message


def test_other_candidates_may_be_asked_for_than_a_file_can_give(tmp_path):
    """Ten classes have too few labels for twenty candidates, and lists of many lengths are no matter then."""
    classes = [f"class {i}" for i in range(10)]
    path = write(tmp_path, *({"context": f"text {i}", "label": classes[i % 10]} for i in range(200)))
    fixed = tmp_path / "classes.txt"
    fixed.write_text("\n".join(classes))
    config = OwnDataConfig(train=path)
    with pytest.raises(InputError, match="too few different labels .*: 10, .*; use task.n_candidates 10"):
        read_to_rank(config, "test", RankConfig())
    few = read_to_rank(dataclasses.replace(config, n_candidates=10), "test", RankConfig())
    assert all(sorted(row.candidates) == classes for row in few.examples)
    rows = read_to_rank(config, "test", RankConfig(candidates="fixed", file=fixed))
    assert list(rows.shared) == classes and rows.examples


def test_files_are_kept_by_bytes(tmp_path):
    """What the cache holds is bounded, and a file that is larger than the bound is not kept at all."""
    paths = [write(tmp_path, *map(row, range(20)), name=f"{i}.jsonl") for i in range(5)]
    size = paths[0].stat().st_size
    cache = jsonl.FileCache(limit=3 * size)
    files = [cache.read(path) for path in paths]
    assert sum(bytes_ for _, bytes_, _ in cache._kept) <= 3 * size and len(cache._kept) == 3
    assert cache.read(paths[-1]) is files[-1] and cache.read(paths[0]) is not files[0]
    small = jsonl.FileCache(limit=size - 1)
    assert small.read(paths[0]).rows == files[0].rows and not small._kept


def test_optional_keys(tmp_path):
    path = write(
        tmp_path,
        row(1, answers=["another one"], negatives=["wrong", "worse"], scores=[3, 0.5, -1]),
        row(2, candidates=["x", "ANSWER  number 2"], negatives=["y"], scores=[0, 1, 2]),
    )
    first, second = parse(path)
    assert first.answers == ("another one",) and first.negatives == ("wrong", "worse")
    assert first.scores == (3.0, 0.5, -1.0)
    assert second.label_text == "ANSWER  number 2", "the candidate that is one text with the label"
    assert second.scores == (0.0, 1.0, 2.0)


def test_a_key_without_a_value_is_absent(tmp_path):
    """As pandas and databases write rows that have no value in a column."""
    nothing = dict.fromkeys(("candidates", "id", "answers", "negatives", "scores", "group"))
    found = parse(write(tmp_path, row(1, **nothing), row(2, candidates=[])))
    assert found == parse(write(tmp_path, row(1), row(2)))
    with pytest.raises(InputError, match="label: expected a text"):
        parse(write(tmp_path, {"context": "a", "label": None}))


def test_rows_of_a_group_share_it(tmp_path):
    first, second = parse(write(tmp_path, row(1, group="talk 1"), row(2, group=7)))
    assert (first.group, second.group) == ("talk 1", "7") and first.id == "line-1"
    path = tmp_path / "f.csv"
    path.write_text("context,label,group\na,b,talk\nc,d,\n")
    assert [one.group for one in parse(path)] == ["talk", "line-3"]
    for wrong in (["a"], True, 1.5):
        with pytest.raises(InputError, match="group: expected a text or a whole number"):
            parse(write(tmp_path, row(1, group=wrong)))


def test_with_a_single_label_the_other_answers_do_not_count(tmp_path):
    path = write(
        tmp_path, *(row(i, answers=["b"], candidates=[f"answer number {i}", "b", "c"]) for i in range(9))
    )
    for single, rank in ((False, 1), (True, 2)):
        config = OwnDataConfig(train=path, valid=path, test=path, single_label=single)
        examples = config.read("test").examples
        assert set(ranking("x", np.array([[1.0, 3.0, 0.0]] * 9), examples).ranks) == {rank}


SEVERAL = [
    {"context": f"where is thing {i % 30}" if i % 2 else f"Where is thing  {i % 30}", "label": f"place {i}"}
    for i in range(120)
]
"""30 contexts, four right answers each."""


@pytest.mark.parametrize("single_label", [False, True])
def test_a_context_with_several_right_answers(tmp_path, single_label):
    config = OwnDataConfig(train=write(tmp_path, *SEVERAL), test_fraction=0.4, single_label=single_label)
    right = {f"where is thing {c}": {f"place {i}" for i in range(120) if i % 30 == c} for c in range(30)}
    rows = {split: config.read(split).examples for split in ("train", "valid", "test")}
    assert len(rows["test"]) > 20 and len(rows["test"]) % 4 == 0, "all rows of a context are in one split"
    for example in rows["test"]:
        own = right[text_key(example.context[0])]
        wrong = {text for i, text in enumerate(example.candidates) if i != example.label}
        assert not wrong & own and len(wrong) == 19
        assert set(example.answers) == (set() if single_label else own - {example.label_text})
    assert all(not example.answers for example in rows["train"]), "other_answers finds them"


def test_the_best_placed_right_answer_counts_among_fixed_candidates(tmp_path):
    path, fixed = write(tmp_path, *SEVERAL), tmp_path / "places.txt"
    fixed.write_text("".join(f"place {i}\n" for i in range(120)))
    rank = RankConfig(candidates="fixed", file=fixed)
    ranks = []
    for single in (False, True):
        task = OwnDataConfig(train=path, test_fraction=0.4, single_label=single)
        rows = read_to_rank(task, "test", rank)
        scores = np.tile(np.arange(120, dtype=np.float32), (len(rows.examples), 1))  # the last is best
        parts = [(np.arange(len(scores)), scores, np.zeros(len(scores), np.float32))]
        ranks.append(rank_shared("model", rows.examples, rows.shared, parts).ranking.ranks)
    context = [int(e.label_text.split()[1]) % 30 for e in rows.examples]
    assert ranks[0].tolist() == [120 - (90 + c) for c in context], "the last place of a context is best"
    assert (ranks[1] > ranks[0]).mean() == 0.75


def test_copies_of_a_label_in_a_list_are_counted(tmp_path):
    listed = [row(i, candidates=["x", f"answer number {i}", "y", f"Answer number {i}"]) for i in range(30)]
    listed += [row(i, candidates=["x", f"answer number {i}", "y", "z"]) for i in range(30, 60)]
    task = OwnDataConfig(train=write(tmp_path, *listed), test_fraction=0.9, valid_fraction=0.05)
    rows = task.read("test")
    n = sum(len({text_key(text) for text in e.candidates}) == 3 for e in rows.examples)
    assert rows.note == f"{n} of {len(rows.examples)} test rows list copies of their label, which do not " + (
        "count against it"
    )


def test_copies_of_a_wrong_candidate_are_said(tmp_path):
    """They push the label down by as many places; chance counts them too."""
    listed = [row(i, candidates=["x", f"answer number {i}", "y", "X "]) for i in range(30)]
    listed += [row(i, candidates=["x", f"answer number {i}", "y", "z"]) for i in range(30, 60)]
    rows = OwnDataConfig(train=write(tmp_path, *listed), test_fraction=0.9, valid_fraction=0.05).read("test")
    n = sum(len({text_key(text) for text in e.candidates}) == 3 for e in rows.examples)
    said = f"warning: {n} of {len(rows.examples)} test rows list copies of a wrong candidate, each of which"
    assert 0 < n < len(rows.examples) and rows.note == f"{said} counts"


def test_labels_of_a_batch_are_each_there_once(tmp_path):
    """Three of four rows share a few labels."""
    rows = [row(i, label=f"answer {i % 3}" if i % 4 else f"answer number {i}") for i in range(100)]
    read = OwnDataConfig(train=write(tmp_path, *rows), test_fraction=0.9, valid_fraction=0.05)
    found = read_to_rank(read, "test", RankConfig(candidates="batch", n=10)).examples
    assert all(len({text_key(text) for text in e.candidates}) == 10 for e in found)
    with pytest.raises(InputError, match="too few labels are wrong"):
        read_to_rank(read, "test", RankConfig(candidates="batch", n=40))


def test_contexts_that_are_one_text_share_a_split(tmp_path):
    """The first of them decides, by its own letters: rows of other files stay where they were."""
    rows = [{"context": f"Question {i}", "label": f"a {i}"} for i in range(300)]
    rows += [{"context": f"QUESTION  {i}\u200b", "label": f"b {i}"} for i in range(300)]
    config = OwnDataConfig(train=write(tmp_path, *rows), n_candidates=5)
    for split in ("train", "valid", "test"):
        examples = config.read(split).examples
        first = [e for e in examples if e.label_text.startswith("a")]
        assert all(split_of(e, valid=0.1, test=0.1) == split for e in first)
        assert len({text_key(e.context[0]) for e in examples}) == len(first) == len(examples) / 2 > 0
