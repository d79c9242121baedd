"""A data set of one's own, in this file alone."""

import dataclasses
from typing import ClassVar

from problem import recall, rows, trained

import polyjax
from polyjax.config import recorded
from polyjax.data.rows import RankConfig, Rows
from polyjax.data.tasks import Task
from polyjax.data.tasks.protocol import read_to_rank


@polyjax.part("letters", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LettersTask:
    """Right answers start with the context's letter."""

    licence: ClassVar[str] = "public domain"
    lengths: ClassVar[None] = None
    ks: ClassVar[tuple[int, ...]] = (1, 2)
    n: int = 60

    def read(self, split: str) -> Rows:
        return Rows(rows(self.n, 1, ("train", "valid", "test").index(split)))


def test_it_is_trained_on_and_ranked(tmp_path):
    task = LettersTask()
    assert isinstance(task, Task)
    ranked = read_to_rank(task, "test", RankConfig(candidates="sampled", n=4))
    assert {len(example.candidates) for example in ranked.examples} == {4}
    assert recall(trained(tmp_path / "run", examples=task.read("train").examples)) > 0.8


def test_a_run_records_it():
    found = recorded(LettersTask(n=9))
    assert (found.name, found.version, found.settings) == ("letters", 1, {"n": 9})
