"""The contract of a task: all that are listed keep it, and anyone's object that keeps it will do."""

import ast
import dataclasses
from pathlib import Path

import pytest

import polyjax
from polyjax.data.rows import RankConfig, Rows
from polyjax.data.tasks import (
    NAMED,
    Task,
    beside,
    conversations,
    describe,
    listed_in_training,
    prepared_in,
    read_listed,
    read_to_rank,
    task_named,
    training_texts,
)
from polyjax.data.tasks.convai2 import ConvAI2Config
from polyjax.data.tasks.dstc7 import DSTC7Config
from polyjax.data.text import TextConfig
from polyjax.errors import InputError
from polyjax.types import Example


class Sums:
    """All that a task of one's own needs to have."""

    name = "sums"
    licence = "public domain"
    lengths = None
    ks = (1, 3)

    def read(self, split: str) -> Rows:
        """Nine rows."""
        first = {"train": 0, "valid": 10, "test": 20}[split]
        pairs = ((i, f"what is {i} and one?", str(i + 1)) for i in range(first, first + 9))
        return Rows([Example(str(i), ("hi", asked), (answer,), 0, str(i)) for i, asked, answer in pairs])


@pytest.mark.parametrize("name", NAMED)
def test_every_listed_task_keeps_the_contract(name):
    task = task_named(name)
    assert isinstance(task, Task) and task.name == name and task.licence
    assert task.ks[0] == 1 and list(task.ks) == sorted(task.ks)
    assert task.lengths is None or isinstance(task.lengths, TextConfig)
    assert task.lengths is None or task.lengths.buckets[-1] == task.lengths.context_tokens
    assert name in describe(task, "test", 7) and "7" in describe(task, "test", 7)


def test_a_task_of_ones_own_needs_no_more_than_the_contract():
    task = Sums()
    assert isinstance(task, Task)
    rows = read_to_rank(task, "test", RankConfig(candidates="sampled", n=4)).examples
    assert len(rows) == 9 and all(len(set(row.candidates)) == 4 for row in rows)
    assert read_listed(task, "test") == task.read("test")
    assert describe(task, "valid", 9) == "9 sums valid rows"
    train = task.read("train").examples
    assert list(training_texts(task, train))[:2] == ["what is 0 and one?", "1"]
    assert next(iter(conversations(task))) == ("0", ("hi", "what is 0 and one?", "1"), 2)
    assert listed_in_training(task) is None and beside(task, task_named("chitchat")) is task
    with pytest.raises(InputError) as caught:
        prepared_in(task, Path("elsewhere"))
    assert caught.value.argument == "data_dir"


def test_a_task_may_say_more_of_itself():
    @dataclasses.dataclass(frozen=True)
    class More(Sums):
        data_dir: Path = Path("here")
        listed = 5

        def read_listed(self, split):
            return Rows([], "listed")

        def describe(self, split, n):
            return "described"

        def training_texts(self, examples):
            return iter(["text"])

        def conversations(self):
            return iter([("a", ("b", "c"), 1)])

        def beside(self, trained):
            return Sums()

    task = More()
    assert read_listed(task, "test").note == "listed" and describe(task, "test", 1) == "described"
    assert list(training_texts(task, [])) == ["text"] and list(conversations(task)) == [("a", ("b", "c"), 1)]
    assert listed_in_training(task) == 5 and type(beside(task, task)) is Sums
    assert prepared_in(task, Path("elsewhere")).data_dir == Path("elsewhere")


def test_how_many_candidates_training_rows_list_is_known_without_reading():
    assert listed_in_training(ConvAI2Config()) == 20
    assert listed_in_training(ConvAI2Config(candidates=False)) is None
    assert [listed_in_training(DSTC7Config(training=kind)) for kind in ("plain", "sampled")] == [100, 16]


def test_nobody_asks_which_task_it_is():
    """Outside data/tasks a task is known by what it says: no class of one in isinstance, match or a table."""
    kinds = {kind.__name__ for kind in NAMED.values()} | {"OwnDataConfig"}
    package = Path(polyjax.__file__).parent
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "data" / "tasks"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            asked = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
                asked = ast.walk(node.args[1])
            elif isinstance(node, ast.MatchClass):
                asked = [node.cls]
            elif isinstance(node, ast.Dict):
                asked = [key for key in node.keys if key is not None]
            named = {getattr(one, "id", getattr(one, "attr", "")) for one in asked}
            assert not named & kinds, f"{path}:{node.lineno}"
