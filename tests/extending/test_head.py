"""A dual head of one's own, in this file alone: trained, resumed, indexed, searched with a proof."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from problem import SHAPE, TEXT, Letters, recall, trained

import polyjax
from polyjax import InputError, ModelConfig, ProductForm, Ranker, make_scorer
from polyjax.config import from_json, to_json
from polyjax.data.text import TextEncoder
from polyjax.inference.scorer import TextScorer
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import reduce


@polyjax.part("projected", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class ProjectedConfig:
    """One vector a side, from a learnt projection of the mean; the score is their product."""

    arch: ClassVar[str] = "projected"
    inputs: ClassVar[str] = "dual"
    shared_encoder: bool = True
    proven: bool = True

    def build(self, dim: int, *, rngs: nnx.Rngs) -> "ProjectedHead":
        return ProjectedHead(self, dim, rngs=rngs)


class ProjectedHead(nnx.Module):
    def __init__(self, config: ProjectedConfig, dim: int, *, rngs: nnx.Rngs):
        self.config, self.project = config, Linear(dim, dim, init_std=dim**-0.5, rngs=rngs)

    def candidate(self, hidden, mask):
        return self.project(reduce(hidden, mask, "mean"))

    def context(self, hidden, mask):
        return self.candidate(hidden, mask)[:, None], jnp.ones((hidden.shape[0], 1), bool)

    def score(self, vectors, mask, candidates):
        each = jnp.broadcast_to(candidates, (len(vectors), *candidates.shape[1:]))
        return jnp.einsum("bmd,bcd->bc", vectors, each)

    @property
    def product_form(self) -> ProductForm | None:
        return ProductForm() if self.config.proven else None


@pytest.mark.parametrize("proven", [True, False])
def test_it_is_searched_by_scan_and_with_a_proof_where_it_has_a_product_form(proven, tmp_path):
    scorer = make_scorer(SHAPE, ProjectedConfig(proven=proven), rngs=nnx.Rngs(0))
    ranker = Ranker(TextScorer(scorer, TextEncoder(Letters(), TEXT)))
    draw = np.random.default_rng(0)
    texts = sorted({"".join(draw.choice(list("abcdefghij"), 5)) for _ in range(300)})
    ranker.index(texts, tmp_path / "index")
    scanned = ranker.search("abc", top_k=5, method="scan")
    expected = ranker.rank("abc", texts)[:5]
    assert [found.text for found in scanned.found] == [ranked.text for ranked in expected]
    if proven:
        certified = ranker.search("abc", top_k=5, method="certified")
        assert certified.certified and [f.id for f in certified.found] == [f.id for f in scanned.found]
    else:
        with pytest.raises(InputError, match="product form"):
            ranker.search("abc", top_k=5, method="certified")


def test_it_is_trained_and_resumed(tmp_path):
    whole = trained(tmp_path / "whole", head=ProjectedConfig())
    assert recall(whole) > 0.8

    def stops(step, kind, metrics):
        if step >= 20:
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        trained(tmp_path / "parts", head=ProjectedConfig(), on_log=stops)
    resumed = trained(tmp_path / "parts", head=ProjectedConfig())
    assert (resumed[-1]["step"], resumed[-1]["loss"]) == (whole[-1]["step"], whole[-1]["loss"])


def test_its_card_needs_it():
    card = to_json(ModelConfig(encoder=SHAPE, head=ProjectedConfig(proven=False)))
    read = from_json(ModelConfig, card, source="model.json", parts={"head": ProjectedConfig})
    assert read.head == ProjectedConfig(proven=False)
    with pytest.raises(InputError, match="'projected', version 1"):
        from_json(ModelConfig, card, source="model.json")
