"""Configurations survive JSON, and nothing else gets in."""

import dataclasses
import json
from pathlib import Path
from typing import Literal

import pytest

from conftest import ENCODERS, HEADS, tiny
from polyjax import InputError, ModelConfig
from polyjax.config import from_json, to_json
from polyjax.data.text import TextConfig
from polyjax.runs import ModelCard


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_round_trip(head, encoder):
    card = ModelCard(
        model=ModelConfig(encoder=tiny(**ENCODERS[encoder]), head=HEADS[head]), text=TextConfig()
    )
    assert from_json(ModelCard, json.loads(json.dumps(to_json(card))), source="x") == card


@dataclasses.dataclass(frozen=True)
class Sample:
    count: int = 1
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    path: Path | None = None
    either: Literal["all"] | int = "all"
    many: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize("either", ["all", 3])
@pytest.mark.parametrize("path", [None, Path("x")])
def test_optional_and_mixed_types(either, path):
    sample = Sample(either=either, path=path)
    assert from_json(Sample, json.loads(json.dumps(to_json(sample))), source="x") == sample


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "1"}, "file.count: expected a whole number, got '1'"),
        ({"count": True}, "file.count: expected a whole number, got True"),
        ({"rate": None}, "file.rate: expected a number, got None"),
        ({"kind": "c"}, r"file.kind: expected one of \['a', 'b'\], got 'c'"),
        ({"either": "some"}, "file.either: expected"),
        ({"many": [1, "2"]}, r"file.many\[1\]: expected a whole number"),
        ({"extra": 1}, r"file: expected no other entries, got \['extra'\]"),
        ({"type": "Other"}, "file.type: expected 'Sample', got 'Other'"),
    ],
)
def test_wrong_entries_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        from_json(Sample, to_json(Sample()) | changes, source="file")


@dataclasses.dataclass(frozen=True)
class Needed:
    size: int
    rate: float = 0.5


def test_missing_entries_are_named():
    with pytest.raises(InputError, match=r"file: the entries \['size'\] are missing"):
        from_json(Needed, {"type": "Needed"}, source="file")


def test_an_entry_that_came_later_takes_its_default():
    """A run directory stays readable when a setting is added."""
    assert from_json(Needed, {"type": "Needed", "size": 2}, source="file") == Needed(2)
