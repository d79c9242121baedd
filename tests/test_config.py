"""Configurations survive JSON, and nothing else gets in."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from conftest import ENCODERS, HEADS, tiny
from polyjax import InputError, ModelConfig
from polyjax.config import RecordedPart, from_json, part, to_json
from polyjax.data.text import TextConfig
from polyjax.nn.heads import HeadSettings
from polyjax.runs import ModelCard


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_round_trip(head, encoder):
    card = ModelCard(model=ModelConfig(encoder=ENCODERS[encoder], head=HEADS[head]), text=TextConfig())
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
    ("changes", "place", "expected", "got"),
    [
        ({"count": "1"}, "file.count", "a whole number", "1"),
        ({"count": True}, "file.count", "a whole number", True),
        ({"rate": None}, "file.rate", "a number", None),
        ({"kind": "c"}, "file.kind", "one of ['a', 'b']", "c"),
        ({"either": "some"}, "file.either", "Literal or int", "some"),
        ({"many": [1, "2"]}, "file.many[1]", "a whole number", "2"),
        ({"extra": 1}, "file", "no other entries", ["extra"]),
        ({"type": "Other"}, "file.type", "'Sample'", "Other"),
    ],
)
def test_wrong_entries_are_named(changes, place, expected, got):
    with pytest.raises(InputError) as error:
        from_json(Sample, to_json(Sample()) | changes, source="file")
    assert (error.value.argument, error.value.expected, error.value.got) == (place, expected, got)
    assert not error.value.is_argument


@dataclasses.dataclass(frozen=True)
class Needed:
    size: int
    rate: float = 0.5


def test_missing_entries_are_named():
    with pytest.raises(InputError) as error:
        from_json(Needed, {"type": "Needed"}, source="file")
    assert (error.value.argument, error.value.problem) == ("file", "the entries ['size'] are missing")


def test_an_entry_that_came_later_takes_its_default():
    """A run directory stays readable when a setting is added."""
    assert from_json(Needed, {"type": "Needed", "size": 2}, source="file") == Needed(2)


@part("pooled", version=2)
@dataclasses.dataclass(frozen=True, kw_only=True)
class PooledConfig:
    """Settings of a head from outside; ``build`` is not called here."""

    arch: ClassVar[str] = "pooled"
    inputs: ClassVar[str] = "dual"
    shared_encoder: bool = True
    width: int = 4

    def build(self, dim, *, rngs):
        raise AssertionError("reading a card builds nothing")


@part("wide", version="2026-01")
@dataclasses.dataclass(frozen=True, kw_only=True)
class WideEncoder:
    """Settings of an encoder from outside."""

    dim: int = 8
    n_layers: int = 1
    n_positions: int = 16
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def build(self, *, rngs):
        raise AssertionError("reading a card builds nothing")


def written(value):
    return json.loads(json.dumps(to_json(value)))


CARD = ModelConfig(encoder=WideEncoder(dim=12), head=PooledConfig(width=6))
HANDED = {"head": PooledConfig, "encoder": WideEncoder}


def test_a_card_records_name_version_and_settings_of_a_part_from_outside():
    assert written(CARD)["head"] == {
        "type": "custom",
        "name": "pooled",
        "version": 2,
        "settings": {"shared_encoder": True, "width": 6},
    }
    assert written(CARD)["encoder"]["version"] == "2026-01"
    assert str(PooledConfig.__module__) not in json.dumps(written(CARD))  # nothing that could be imported


@pytest.mark.parametrize("head", [PooledConfig, PooledConfig(width=6)])
def test_a_part_is_read_where_it_is_handed_in(head):
    assert from_json(ModelConfig, written(CARD), source="card", parts=HANDED | {"head": head}) == CARD


def test_a_field_that_a_part_got_later_takes_its_default():
    data = written(CARD)
    del data["head"]["settings"]["shared_encoder"]
    for head in (PooledConfig, PooledConfig(width=6)):
        assert from_json(ModelConfig, data, source="card", parts=HANDED | {"head": head}) == CARD


@pytest.mark.parametrize("parts", [None, {"encoder": WideEncoder}, {"head": None, "encoder": WideEncoder}])
def test_a_part_that_is_not_handed_in_is_named(parts):
    data = written(CARD) | {"encoder": written(tiny())} if parts is None else written(CARD)
    with pytest.raises(InputError) as error:
        from_json(ModelConfig, data, source="card", parts=parts)
    assert error.value.argument == "card.head"
    assert "'pooled', version 2" in error.value.expected
    assert "head=" in error.value.fix


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What can be read without its parts."""

    head: HeadSettings | RecordedPart
    rate: float = 0.5


def test_a_field_whose_type_says_so_keeps_the_record():
    data = written(Settings(head=PooledConfig(width=6)))
    kept = from_json(Settings, data, source="run")
    assert kept.head == RecordedPart("pooled", 2, {"shared_encoder": True, "width": 6})
    assert written(kept) == data
    assert from_json(Settings, data, source="run", parts={"head": PooledConfig}).head == PooledConfig(width=6)


@pytest.mark.parametrize(("name", "version"), [("pooled", 3), ("pooled", "2"), ("other", 2)])
def test_another_part_or_version_is_refused(name, version):
    other = part(name, version)(dataclasses.make_dataclass("Other", [("width", int, 4)], frozen=True))
    with pytest.raises(InputError) as error:
        from_json(ModelConfig, written(CARD), source="card", parts=HANDED | {"head": other})
    assert error.value.argument == "head"
    assert "'pooled', version 2" in error.value.expected
    assert error.value.got == f"{name!r}, version {version!r}"


@pytest.mark.parametrize(
    ("head", "argument"),
    [
        (PooledConfig(width=7), "head"),  # other settings than the card's
        (object(), "head"),  # no name and version
    ],
)
def test_a_part_that_does_not_fit_is_refused(head, argument):
    with pytest.raises(InputError) as error:
        from_json(ModelConfig, written(CARD), source="card", parts=HANDED | {"head": head})
    assert error.value.argument == argument


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"version": None},
        {"settings": []},
        {"settings": {"width": "6"}},
        {"settings": {"depth": 1}},
    ],
)
def test_a_damaged_record_is_refused(change):
    data = written(CARD)
    data["head"] |= change
    with pytest.raises(InputError) as error:
        from_json(ModelConfig, data, source="card", parts=HANDED)
    assert error.value.argument.startswith("card.head")


def test_a_part_is_refused_where_the_card_has_one_of_the_librarys_own():
    card = ModelConfig(encoder=tiny(), head=HEADS["poly-basic"])
    with pytest.raises(InputError) as error:
        from_json(ModelConfig, written(card), source="card", parts={"head": PooledConfig})
    assert (error.value.argument, error.value.got) == ("head", "pooled")


def test_a_part_without_name_and_version_cannot_be_recorded():
    nameless = dataclasses.make_dataclass(
        "Nameless",
        [("dim", int, 8), ("n_layers", int, 1), ("n_positions", int, 9), ("dtype", str, "float32")],
    )
    nameless.build = lambda self, *, rngs: None
    with pytest.raises(InputError) as error:
        to_json(ModelConfig(encoder=nameless(), head=PooledConfig()))
    assert (error.value.argument, error.value.got) == ("encoder", "Nameless")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """A slot for functions, beside names."""

    loss: Literal["softmax", "bce"] | Callable[[float], float] = "softmax"


@part("hinge", version=1)
def hinge(score: float) -> float:
    return score


def test_a_function_is_a_part_too():
    written_loss = written(Objective(loss=hinge))
    assert written_loss["loss"] == {"type": "custom", "name": "hinge", "version": 1, "settings": {}}
    assert from_json(Objective, written_loss, source="run", parts={"loss": hinge}).loss is hinge
    assert from_json(Objective, written(Objective()), source="run").loss == "softmax"
    for broken in ({"loss": "other"}, {"loss": {"type": "hinge"}}, {"loss": 1}):
        with pytest.raises(InputError) as error:
            from_json(Objective, written(Objective()) | broken, source="run")
        assert error.value.argument == "run.loss"
    with pytest.raises(InputError) as error:
        to_json(Objective(loss=lambda score: score))
    assert (error.value.argument, error.value.got) == ("loss", "<lambda>")


CHOICES = """
import dataclasses
from polyjax import BiConfig, CrossConfig, EncoderConfig, InputError, PolyConfig
from polyjax.nn.heads import GatedCrossConfig
shape = EncoderConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, mlp_dim=32, n_positions=32)
for argument, make in (
    ("head.reduction", lambda: BiConfig(reduction="foo")),
    ("head.n_codes", lambda: PolyConfig(n_codes=4.0)),
    ("head.n_codes", lambda: PolyConfig(n_codes="4")),
    ("head.score_scale", lambda: PolyConfig(score_scale="x")),
    ("head.score_scale", lambda: GatedCrossConfig(score_scale="x")),
    ("head.norm", lambda: CrossConfig(reduction="mean", norm="x")),
    ("encoder.norm", lambda: dataclasses.replace(shape, norm="middle")),
    ("encoder.vocab_size", lambda: EncoderConfig.small(vocab_size="8")),
):
    try:
        make()
    except InputError as error:
        assert error.argument == argument, (argument, error)
    else:
        raise AssertionError(argument)
"""


def test_settings_that_there_are_not_are_refused():
    """An unknown reduction was taken for another one. In a process of its own: tests check types of calls."""
    done = subprocess.run([sys.executable, "-c", CHOICES], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_function_keeps_the_name_of_its_part():
    """The decorator marks the function itself: another name would change the part that it was."""

    def flat(scores, batch):
        return scores.sum(axis=-1)

    assert part("flat", version=2)(part("flat", version=1)(flat)).version == 2
    with pytest.raises(InputError, match="'flat', which the part has already"):
        part("steep", version=1)(flat)
