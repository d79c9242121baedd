"""First stages: certified only where it is proven, and honest where it is not."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from polyjax.errors import InputError
from polyjax.nn.heads import PolyConfig, PolyHead
from polyjax.retrieval.index.store import CandidateIndex, in_memory
from polyjax.retrieval.search.scan import Scan
from polyjax.retrieval.stages.faiss import FaissStage, StagedSearch

N, DIM, CODES, K = 2000, 24, 8, 10


class Lists:
    """A first stage as simple as can be; counts its calls."""

    def __init__(self, vectors: np.ndarray, made_for: CandidateIndex, *, exact: bool = True):
        self.vectors, self.exact, self.depths = vectors, exact, []
        self.made_for = made_for.identity

    def search(self, vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        self.depths.append(depth)
        products = vectors @ self.vectors.T
        rows = np.argsort(-products, axis=1, kind="stable")[:, :depth]
        return rows, np.take_along_axis(products, rows, 1)


@pytest.fixture
def problem(rng):
    head = PolyHead(
        PolyConfig(n_codes=CODES, candidate_sharpness=0.5, score_scale=3.0), DIM, rngs=nnx.Rngs(0)
    )
    centre = rng.standard_normal((2, 1, DIM))
    vectors = jnp.asarray((centre + 0.8 * rng.standard_normal((2, CODES, DIM))) / DIM**0.5, jnp.float32)
    candidates = rng.standard_normal((N, DIM)).astype(np.float32)
    index = in_memory([str(i) for i in range(N)], candidates)
    index = CandidateIndex(index.segments, "float32", removed=np.arange(0, N, 7))
    return head, vectors, jnp.ones((2, CODES), bool), index, candidates


@pytest.mark.parametrize("make", ["lists", "faiss"])
def test_an_exact_first_stage_finds_what_the_scan_finds(problem, make):
    head, vectors, mask, index, candidates = problem
    stage = Lists(candidates, index) if make == "lists" else FaissStage.build(index, rows_at_once=300)
    scan = Scan(head, index)
    expected = scan(vectors, mask, K)
    for i, outcome in enumerate(StagedSearch(scan, head, stage, depth=64, deepest=1.0)(vectors, mask, K)):
        assert outcome.certified and K <= outcome.rescored < len(index)
        np.testing.assert_array_equal(outcome.rows, expected[1][i])
        np.testing.assert_array_equal(outcome.scores, scan(vectors[i : i + 1], mask[i : i + 1], K)[0][0])


def test_lists_are_made_longer_until_it_is_proven(problem):
    head, vectors, mask, index, candidates = problem
    stage = Lists(candidates, index)
    (outcome,) = StagedSearch(Scan(head, index), head, stage, depth=4, deepest=1.0)(vectors[:1], mask[:1], K)
    assert outcome.certified and stage.depths[0] == 2 * K and len(stage.depths) > 1
    assert all(b == min(4 * a, N) for a, b in zip(stage.depths, stage.depths[1:], strict=False))


def test_what_is_not_proven_is_not_certified(problem):
    head, vectors, mask, index, candidates = problem
    scan = Scan(head, index)
    for stage, deepest in ((Lists(candidates, index), 0.0), (Lists(candidates, index, exact=False), 1.0)):
        (outcome,) = StagedSearch(scan, head, stage, depth=4, deepest=deepest)(vectors[:1], mask[:1], K)
        assert not outcome.certified and len(stage.depths) == 1
    half = Lists(np.where(np.arange(N)[:, None] % 2, candidates, 0), index, exact=False)
    search = StagedSearch(scan, head, half)
    assert search(vectors, mask, K)[0].recall is None, "nobody has measured it"
    found = search.measure_recall(vectors, mask, K)
    assert [outcome.recall for outcome in search(vectors, mask, K)] == [found] * 2
    expected = scan(vectors, mask, K)[1]
    assert found == np.mean(expected % 2 == 1), "every second one cannot be found"
    assert 0.2 < found < 0.8


@pytest.mark.parametrize("kind", ["HNSW16", "IVF16,Flat", "SQ8"])
def test_approximate_faiss_indexes(problem, kind):
    head, vectors, mask, index, _ = problem
    stage = FaissStage.build(index, kind)
    search = StagedSearch(Scan(head, index), head, stage)
    assert not stage.exact and not any(o.certified for o in search(vectors, mask, K))
    assert search.measure_recall(vectors, mask, K) > 0.3


def test_mistakes_are_named(problem):
    head, _, _, index, _ = problem
    for kind in ("nonsense", "IVF4096,Flat", "IDMap,Flat"):
        with pytest.raises(InputError, match=f"kind: FAISS cannot make '{kind}' of 2,000 rows"):
            FaissStage.build(index, kind)
    multi = PolyHead(PolyConfig(n_codes=4, candidate_attention="multihead"), DIM, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="not means of inner products") as error:
        StagedSearch(Scan(multi, index), multi, Lists(np.zeros((N, DIM)), index))
    assert error.value.argument == "first_stage"
    with pytest.raises(InputError, match="first_stage: expected .* rows from 0 to 1999"):
        list(
            StagedSearch(Scan(head, index), head, Beyond(index))(
                jnp.ones((1, CODES, DIM)), jnp.ones((1, CODES), bool), K
            )
        )


class Beyond:
    """Gives rows that are not there."""

    exact = True

    def __init__(self, made_for: CandidateIndex):
        self.made_for = made_for.identity

    def search(self, vectors: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((len(vectors), depth), N), np.ones((len(vectors), depth))


def test_a_first_stage_of_another_index_is_refused(problem, rng):
    head, vectors, mask, index, candidates = problem
    scan = Scan(head, index)
    with pytest.raises(InputError, match="made for another index, or for this one before"):
        StagedSearch(scan, head, Lists(candidates[:1000], in_memory(["x"] * 1000, candidates[:1000])))
    other = Lists(rng.standard_normal(candidates.shape).astype(np.float32), index)
    with pytest.raises(InputError, match="its products are not those of the index's vectors"):
        StagedSearch(scan, head, other)(vectors, mask, K)


def test_lists_with_empty_places(problem):
    """As a store gives them that finds fewer than were asked for."""
    head, vectors, mask, index, candidates = problem
    stage = Lists(candidates, index)
    search = stage.search

    def some(found: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        rows, products = search(found, depth)
        rows[0] = -1  # nothing for one vector
        rows[:, 30:] = -1
        return rows, products

    stage.search = some
    (outcome,) = StagedSearch(Scan(head, index), head, stage, depth=64, deepest=0.0)(vectors[:1], mask[:1], K)
    assert len(outcome.rows) == K and (outcome.rows >= 0).all()


def test_nothing_to_find(problem):
    head, vectors, mask, index, candidates = problem
    gone = CandidateIndex(index.segments, "float32", removed=np.arange(N))
    for i, m in ((gone, mask), (index, jnp.zeros_like(mask))):
        scan = Scan(head, i)
        for outcome, rows in zip(
            StagedSearch(scan, head, Lists(candidates, i))(vectors, m, K), scan(vectors, m, K)[1], strict=True
        ):
            np.testing.assert_array_equal(outcome.rows, rows)
