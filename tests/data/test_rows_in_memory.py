"""Rows that Python passes in memory: dicts, Examples, tables, and what cannot be one."""

import json

import numpy as np
import pytest

from polyjax.data.tasks.jsonl import parse
from polyjax.errors import InputError
from polyjax.recipes.rows_in_memory import as_jsonl, task_of
from polyjax.types import Example

ROWS = [
    {"context": "hi", "label": "hello", "candidates": ["hello", "no"], "answers": ["hey"]},
    {"context": "bye", "label": "see you", "candidates": ["see you", "no"]},
]


def read(data):
    with task_of(data) as task:
        return parse(task.train)


def test_a_table_of_pandas_gives_its_rows():
    """Without the cells that have no value, and with arrays as parquet files have them."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(ROWS)
    table["candidates"] = [np.array(row["candidates"], object) for row in ROWS]
    assert read(table) == read(ROWS)


def test_a_table_is_read_as_its_file(tmp_path):
    """Turns on lines, lists as text, columns without values, numbers as floats, further columns."""
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "f.csv"
    path.write_text(
        "context,label,candidates,id,group,Unnamed: 0\n"
        "\"one\ntwo\",a,\"['a', 'b']\",1,7,x\n"
        '"[\'three\', \'four\']",b,"[""a"", ""b""]",2,,y\n'
    )
    table = pandas.read_csv(path)
    assert table["group"].dtype == float
    assert read(table) == parse(path)
    whole = pandas.DataFrame({"context": ["a", "b"], "label": ["c", "d"], "id": [pandas.NA, pandas.NaT]})
    assert [one.id for one in read(whole)] == ["line-1", "line-2"]
    for columns, message in (
        (["context", "label", "answer"], "data: the column 'answer' is nearly 'answers'"),
        (["context", "text"], "data: expected columns named"),
    ):
        with pytest.raises(InputError, match=message):
            as_jsonl("data", pandas.DataFrame([["a"] * len(columns)], columns=columns))
    with pytest.raises(InputError, match=r"data\[0\]: label: expected a text, got"):
        as_jsonl("data", pandas.DataFrame({"context": ["a"], "label": ["['b', 'c']"]}))


def test_a_table_with_numbers_as_texts_and_one_with_its_header_within():
    pandas = pytest.importorskip("pandas")
    numbers = pandas.DataFrame({"context": ["what is 2 + 2 ?", "5"], "label": [4, 5]})
    assert json.loads(as_jsonl("data", numbers).splitlines()[0])["label"] == "4"
    joined = pandas.DataFrame({"context": ["a", "context"], "label": ["b", "label"]})
    with pytest.raises(InputError, match=r"data\[1\]: the column names once more"):
        as_jsonl("data", joined)


def test_a_table_of_polars_gives_its_rows():
    table = pytest.importorskip("polars").DataFrame(ROWS)
    assert read(table) == read(ROWS)


def test_a_column_that_is_there_twice_is_refused():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="data: the column 'label' is there twice"):
        as_jsonl("data", pandas.DataFrame([["a", "b", "c"]], columns=["context", "label", "label"]))


def test_an_example_keeps_all_its_fields():
    examples = [
        Example(
            "1", ("a", "b"), ("x", "y"), 1, "talk", answers=("z",), negatives=("n",), scores=(1.0, 2.0, 3.0)
        ),
        Example("2", ("c",), ("x", "y"), 0, "2"),
        Example("3", ("d",), ("x", "y"), 0, ""),
    ]
    first, second, third = read(examples)
    assert [first, second] == examples[:2], "intervals are drawn over groups"
    assert third.group == "3", "a row without a group is one of its own"


def test_rows_nested_too_deeply_are_named():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match=r"^data\[1\]: cannot be written as JSON"):
        as_jsonl("data", [ROWS[0], {"context": "a", "label": "b", "answers": deep}])


@pytest.mark.parametrize("data", ["a" * 5000, "a\0b"])
def test_a_text_that_is_no_path_is_refused(data):
    with pytest.raises(InputError, match="^data: expected a path that a file or folder can have, got"):
        task_of(data).__enter__()


def test_values_are_plain():
    rows = [{"context": "a", "label": "b", "id": np.int64(3), "scores": np.float32([0.5, 2.0])}]
    assert json.loads(as_jsonl("data", rows)) == rows[0] | {"id": 3, "scores": [0.5, 2.0]}
    with pytest.raises(InputError, match=r"data\[0\]: cannot be written as JSON \(a value of type set\)"):
        as_jsonl("data", [{"context": "a", "label": "b", "answers": {"c"}}])
