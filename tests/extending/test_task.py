"""A data set of one's own, in this file alone."""

import dataclasses
from typing import ClassVar

import pytest
from problem import CHANCE, PAIRS, fitted

import polyjax
from polyjax import Example, InputError
from polyjax.data.rows import Rows


# A data set
@polyjax.part("repairs", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Repairs:
    licence: ClassVar[str] = "public domain"
    lengths: ClassVar[None] = None
    ks: ClassVar[tuple[int, ...]] = (1, 2)
    verb: str = "fix"

    def read(self, split):
        place = ("train", "valid", "test").index(split)
        pairs = PAIRS[place::3]
        texts = [(f"my {thing} {fault}", f"{self.verb} the {fault} {thing}") for thing, fault in pairs]
        return Rows(
            [Example(str(i), (context,), (label,), 0, context) for i, (context, label) in enumerate(texts)]
        )


# The end of it


def test_it_is_trained_on_ranked_and_recorded(tmp_path):
    run = fitted(tmp_path / "run", Repairs())
    assert run.test.recall_at_1 > 2 * CHANCE and "recall@2/4" in run.test.model
    assert run.test.model["n"] == len(PAIRS[2::3])
    recorded = {"type": "custom", "name": "repairs", "version": 1, "settings": {"verb": "fix"}}
    assert run.config["task"] == recorded
    with pytest.raises(InputError) as error:
        fitted(run.folder, Repairs(verb="mend"))
    assert "task.settings.verb" in error.value.problem
