"""A dual head of one's own, in this file alone: trained, resumed, indexed, searched with a proof."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import pytest
from flax import nnx
from problem import CHANCE, PAIRS, assert_same, fitted

import polyjax
from polyjax import InputError, ProductForm, Ranker
from polyjax.nn.linear import Linear
from polyjax.nn.reduce import reduce


# A head
@polyjax.part("projected", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Projected:
    arch: ClassVar[str] = "projected"
    inputs: ClassVar[str] = "dual"
    shared_encoder: bool = True

    def build(self, dim, *, rngs):
        return ProjectedHead(self, dim, rngs=rngs)


class ProjectedHead(nnx.Module):
    def __init__(self, config, dim, *, rngs):
        self.config, self.project = config, Linear(dim, dim, init_std=dim**-0.5, rngs=rngs)
        self.product_form = ProductForm()  # None: then only a scan is exact

    def candidate(self, hidden, mask):
        return self.project(reduce(hidden, mask, "mean"))

    def context(self, hidden, mask):
        return self.candidate(hidden, mask)[:, None], jnp.ones((hidden.shape[0], 1), bool)

    def score(self, vectors, mask, candidates):
        return jnp.einsum("bmd,bcd->bc", vectors, jnp.repeat(candidates, len(vectors) // len(candidates), 0))


# The end of it


@polyjax.part("unproven", version=1)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Unproven(Projected):
    arch: ClassVar[str] = "unproven"

    def build(self, dim, *, rngs):
        head = ProjectedHead(self, dim, rngs=rngs)
        head.product_form = None
        return head


TEXTS = sorted({f"{fix} the {fault} {thing}" for fix in ("fix", "mend", "sell") for thing, fault in PAIRS})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fitted(tmp_path_factory.mktemp("head") / "run", head=Projected())


def test_it_is_trained_and_resumed(run, tmp_path):
    assert run.test.recall_at_1 > 2 * CHANCE

    def stops(step, kind, metrics):
        if (step, kind) == (20, "valid"):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fitted(tmp_path / "parts", head=Projected(), callbacks=[stops])
    steps = []
    seen = [lambda step, kind, metrics: steps.append(step)]
    resumed = fitted(tmp_path / "parts", head=Projected(), callbacks=seen)
    assert min(steps) > 10, "what was saved is not trained again"
    assert_same(run.ranker(), resumed.ranker())


def test_it_is_indexed_and_searched_by_scan_and_with_a_proof(run, tmp_path):
    ranker = Ranker.load(run.folder, head=Projected)
    index = ranker.index(TEXTS, tmp_path / "index", dtype="float32")
    scanned = index.search("my lamp hums", 5, method="scan")
    expected = ranker.rank("my lamp hums", TEXTS)[:5]
    assert [found.text for found in scanned] == [ranked.text for ranked in expected]
    certified = index.search("my lamp hums", 5, method="certified")
    assert certified.certified and [f.id for f in certified] == [f.id for f in scanned]


def test_without_a_product_form_only_the_scan_is_exact(tmp_path):
    ranker = fitted(tmp_path / "run", head=Unproven(), steps=2).ranker()
    index = ranker.index(TEXTS, tmp_path / "index")
    assert len(index.search("my lamp hums", 5, method="scan")) == 5
    with pytest.raises(InputError, match="product form"):
        index.search("my lamp hums", 5, method="certified")


def test_its_card_needs_it(run, tmp_path):
    with pytest.raises(InputError, match="'projected', version 1"):
        Ranker.load(run.folder)
    with pytest.raises(InputError) as error:
        fitted(run.folder, head=Projected(shared_encoder=False))
    assert "head.settings.shared_encoder" in error.value.problem
