"""ParlAI's parts in files of runs: written, read, and read where older versions had entries for them."""

import dataclasses
import json

import numpy as np
import pytest

from polyjax import BiConfig, CrossConfig, InputError, PolyConfig, Ranker
from polyjax.config import from_json, to_json
from polyjax.data.text import TextConfig
from polyjax.interop.cards import read_card
from polyjax.interop.parlai.cards import PARLAI, upgraded
from polyjax.interop.parlai.heads import OverPadding, ParlaiBiConfig
from polyjax.interop.parlai.layout import ParlaiLayout
from polyjax.interop.parlai.model import ConvertedFrom, convert_parlai
from polyjax.interop.parlai.warmup import ParlaiWarmup
from polyjax.nn.heads import HeadConfig, HeadSettings
from polyjax.recipes.presets import default_of_run, demo
from polyjax.recipes.settings import RunConfig
from polyjax.retrieval.index.fingerprint import canonical
from polyjax.runs import open_run
from polyjax.runs import read_card as read_plain_card
from polyjax.train.optim import OptimConfig

SETTINGS = {
    "bi": (
        ParlaiBiConfig(reduction=OverPadding(kind="max"), normalize=True),
        {"type": "BiConfig", "reduction": "max", "shared_encoder": True, "normalize": True}
        | {"candidate_mlp": True, "shared_words": False, "over_padding": True},
    ),
    "words": (
        ParlaiBiConfig(shared_encoder=False, candidate_mlp=False, shared_words=True),
        {"type": "BiConfig", "shared_encoder": False, "candidate_mlp": False, "shared_words": True}
        | {"over_padding": False},
    ),
    "poly": (
        PolyConfig(n_codes=3, reduction=OverPadding()),
        {"type": "PolyConfig", "n_codes": 3, "reduction": "mean", "over_padding": True},
    ),
    "cross": (
        CrossConfig(reduction=OverPadding(kind="first")),
        {"type": "CrossConfig", "over_padding": True},
    ),
    "plain": (BiConfig(), {"type": "BiConfig"} | dict.fromkeys(BiConfig.RETIRED, False)),
    "text": (TextConfig(max_turns=2, layout=ParlaiLayout()), {"type": "TextConfig", "max_turns": 2}
             | {"layout": "parlai", "padding": "bucket"}),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Held:
    settings: HeadConfig | TextConfig | HeadSettings


def written(value):
    return json.loads(json.dumps(to_json(value)))


@pytest.mark.parametrize("name", SETTINGS)
def test_entries_of_before_are_read_as_parts(name):
    settings, before = SETTINGS[name]
    for data in (before, written(settings)):
        held = {"type": "Held", "settings": data}
        assert from_json(Held, held, source="card", foreign=PARLAI).settings == settings


@pytest.mark.parametrize("name", SETTINGS)
def test_digests_are_those_of_the_entries_of_before(name):
    """So that an index that was built before belongs to its model: entries at their defaults are left out."""
    settings, before = SETTINGS[name]
    defaults = {"reduction": "first" if name == "cross" else "mean", "padding": "bucket"}
    expected = {
        entry: value for entry, value in before.items() if value is not False and value != defaults.get(entry)
    }
    assert canonical(settings) == expected


def test_the_core_alone_refuses_what_it_does_not_know():
    with pytest.raises(InputError) as error:
        from_json(PolyConfig, {"type": "PolyConfig", "over_padding": True}, source="card")
    assert (error.value.argument, error.value.got) == ("card.over_padding", True)
    with pytest.raises(InputError) as error:
        from_json(PolyConfig, written(SETTINGS["poly"][0]), source="card")
    assert "parlai-over-padding" in str(error.value.expected)


def test_a_run_of_before_resumes(tmp_path):
    """Its warm-up was an entry of the optimiser's settings, and its other settings are what they were."""
    config = RunConfig(own_optimizer=ParlaiWarmup(steps=5), text=TextConfig(layout=ParlaiLayout()))
    old = written(config)
    old["optim"]["parlai_warmup"], old["own_optimizer"], old["text"]["layout"] = 5, None, "parlai"
    old["head"] |= {"over_padding": False}
    assert from_json(RunConfig, old, source="config", foreign=PARLAI) == config
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    open_run(tmp_path, config, foreign=PARLAI)
    with pytest.raises(InputError) as error:
        open_run(tmp_path, RunConfig(text=config.text), foreign=PARLAI)
    assert "own_optimizer" in error.value.problem
    assert upgraded(written(RunConfig())) == written(RunConfig())


@pytest.mark.parametrize("name", ["bi_shared_max_trained", "cross_prelayernorm_mean"])
def test_models_converted_before_load(name, tmp_path, parlai_models):
    model, run = parlai_models / name / "model", tmp_path / "run"
    convert_parlai(model, run, padding="parlai")
    context, texts = ["hi there"], ["yes", "no way", "of course"]
    expected = Ranker.load(run).score(context, texts)
    np.testing.assert_array_equal(expected, Ranker.from_parlai(model, padding="parlai").score(context, texts))
    card, origin = (json.loads((run / file).read_text()) for file in ("model.json", "config.json"))
    head = read_card(run).model.head
    kind = head.reduction.kind
    if name.startswith("bi"):
        old = {"type": "BiConfig", "shared_encoder": True, "candidate_mlp": True, "shared_words": False}
    else:
        old = {entry: value for entry, value in card["model"]["head"].items() if entry != "reduction"}
    card["model"]["head"] = old | {"reduction": kind, "over_padding": True}
    card["text"]["layout"] = "parlai"
    (run / "model.json").write_text(json.dumps(card))
    steps = origin.pop("warmup")
    origin["optim"]["parlai_warmup"] = steps
    (run / "config.json").write_text(json.dumps(origin))
    assert read_card(run).model.head == head
    np.testing.assert_array_equal(Ranker.load(run).score(context, texts), expected)
    default = default_of_run(demo, run)
    assert default.own_optimizer == (ParlaiWarmup(steps=steps) if steps else None)
    with pytest.raises(InputError):
        read_plain_card(run)


def test_the_warm_up_leaves_no_room_for_another():
    assert ConvertedFrom(arch="bi", padding="none", optim=OptimConfig()).optimizer is None
    with pytest.raises(InputError) as error:
        ParlaiWarmup(steps=4).schedule(OptimConfig(warmup_steps=3), 10)
    assert error.value.argument == "optim.warmup_steps"
    with pytest.raises(InputError) as error:
        ParlaiWarmup(steps=0)
    assert error.value.argument == "optimizer.steps"
