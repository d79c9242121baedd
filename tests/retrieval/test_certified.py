"""Certified search: the scan's results, and bounds that hold."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from threadpoolctl import threadpool_info

from polyjax.errors import InputError
from polyjax.nn.heads import BiConfig, BiHead, PolyConfig, PolyHead
from polyjax.retrieval.index.rows import decode, norms_of
from polyjax.retrieval.index.store import CandidateIndex, in_memory
from polyjax.retrieval.search import coarse
from polyjax.retrieval.search.bounds import Limits, largest_error, limits, weighted_mean
from polyjax.retrieval.search.certified import FIRST_RESCORED, CertifiedSearch
from polyjax.retrieval.search.coarse import CoarseRows, highest
from polyjax.retrieval.search.lowrank import (
    Plan,
    _directions,
    choose,
    factorise,
    plan_rounded,
    ranks_of,
    rounded,
)
from polyjax.retrieval.search.moments import Moments, moments, turned, upper_score
from polyjax.retrieval.search.quick import QuickSearch
from polyjax.retrieval.search.scan import Scan

N, DIM, CODES = 3000, 48, 32


@pytest.fixture(autouse=True)
def rounding_pays(monkeypatch):
    """The plans are those of a machine with bfloat16 units, whichever this is."""
    monkeypatch.setattr("polyjax.runtime.hardware.cpu_has_bfloat16", lambda: True)


def exact_scores(products: np.ndarray, t: float) -> np.ndarray:
    weights = np.exp(t * (products - products.max(-1, keepdims=True)))
    return (weights * products).sum(-1) / weights.sum(-1)


@pytest.mark.parametrize("seed", range(40))
def test_no_score_is_farther_than_its_bound(seed):
    """In float64, with residuals and rounding chosen to do their worst, for all sizes."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        m, t = int(rng.integers(1, 12)), float(rng.choice([0.1, 1, 5, 20]))
        t = 0.0 if m == 1 else t
        d, n = int(rng.integers(m, 20)), 40
        residual = rng.standard_normal((m, d)) * 10 ** rng.uniform(-3, 0.3) * rng.uniform(0, 1, (m, 1))
        if rng.random() < 0.3:
            residual = np.outer(rng.standard_normal(m), rng.standard_normal(d)) * 10 ** rng.uniform(-3, 0)
        products = rng.standard_normal((n, m)) * 10 ** rng.uniform(-2, 0.5)
        mean = exact_scores(products, t)[:, None]
        weights = np.exp(t * (products - products.max(1, keepdims=True)))
        slope = weights / weights.sum(1, keepdims=True) * (1 + t * (products - mean))
        outside = rng.standard_normal((n, d))
        outside[:20] = slope[:20] @ residual  # the steepest way up
        outside[20:30] = np.linalg.svd(residual)[2][0]
        outside /= np.linalg.norm(outside, axis=1, keepdims=True) * rng.uniform(1, 2, (n, 1))
        rho = 10 ** rng.uniform(-6, -1)
        rounding = rho * (np.sign(slope) if rng.random() < 0.5 else rng.choice([-1, 1], (n, m)))
        given = limits(
            t,
            m,
            spectral=np.linalg.norm(residual, 2),
            residual=np.linalg.norm(residual, axis=1).max(),
            rounding=rho,
            longest=0.0,
            norm=1.0,
        )
        found = weighted_mean(products, t, xp=np)
        bound = largest_error(found, t, given, np.linalg.norm(outside, axis=1), xp=np)
        error = np.abs(exact_scores(products + outside @ residual.T + rounding, t) - found.score)
        assert (error <= bound * (1 + 1e-9) + 1e-13).all()


@pytest.mark.parametrize("seed", range(20))
def test_no_score_is_above_the_moments_bound(seed):
    """In float64, for all sizes: from vectors that hardly differ to one that outweighs all."""
    rng = np.random.default_rng(seed)
    tightest = np.inf
    for _ in range(40):
        m, r = int(rng.integers(2, 30)), int(rng.integers(1, 6))
        r, t, d, n = min(r, m - 1), float(rng.choice([0.1, 1, 5, 20])), 12, 60
        basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
        weights = rng.standard_normal((m, r)) * 10 ** rng.uniform(-2, 0.5) + rng.standard_normal(r)
        if rng.random() < 0.3:
            weights[1:] = weights[1] + 0.01 * weights[1:]
        residual = 10 ** rng.uniform(-4, -0.5) * rng.standard_normal((m, d - r)) @ basis[r:]
        rho = 10 ** rng.uniform(-6, -2)
        candidates = rng.standard_normal((n, d))
        candidates[:m] = residual[:n]
        inside = candidates @ basis[:r].T
        rounding = rng.choice([-rho, rho], (n, m))
        rounding[::2], rounding[::2, 0] = -rho, rho  # one apart from all others
        products = inside @ weights.T + candidates @ residual.T + rounding
        if rng.random() < 0.8:  # the bound holds along any axes, and is tight along these
            axes = turned(weights)
            weights, inside = weights @ axes, inside @ axes
        given = moments(
            weights,
            spectral=np.linalg.norm(residual, 2),
            residual=np.linalg.norm(residual, axis=1).max(),
            offset=np.linalg.norm(residual.mean(0)),
            rounding=rho,
            own=0.0,
        )
        perp = np.linalg.norm(candidates @ basis[r:].T, axis=1)
        gap = upper_score(inside, t, given, perp, xp=np) - exact_scores(products, t)
        assert (gap >= -1e-9).all()
        tightest = min(tightest, (gap / products.std(1)).min())
    assert tightest < 0.1, "and it says something"


@pytest.mark.parametrize("source", ["rounding", "residual"])
def test_no_bound_could_be_much_lower(source):
    """Products with two values, and errors as small as to leave the first order alone, along its gradient.

    There the bound is reached: a factor that is missing in it would be a score beyond it.
    """
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(400):
        m, t, size = int(rng.integers(2, 40)), 10 ** rng.uniform(-1, 1), 1e-5
        products = np.zeros((1, m))
        products[0, : rng.integers(1, m)] = rng.uniform(-8, 8) / t
        mean = exact_scores(products, t)
        weights = np.exp(t * (products - products.max()))
        slope = weights / weights.sum() * (1 + t * (products - mean))
        kinds = {"rounding": np.sign(slope), "residual": slope / np.linalg.norm(slope)}
        error = size / t * kinds[source]
        given = limits(
            t,
            m,
            spectral=np.linalg.norm(error) if source == "residual" else 0.0,
            residual=np.abs(error).max() if source == "residual" else 0.0,
            rounding=np.abs(error).max() if source == "rounding" else 0.0,
            longest=0.0,
            norm=1.0,
        )
        bound = largest_error(weighted_mean(products, t, xp=np), t, given, np.ones(1), xp=np)
        ratios += [(np.abs(exact_scores(products + error, t) - mean) / bound).item()]
    assert max(ratios) <= 1 + 1e-6
    assert max(ratios) > 0.98


def test_a_bound_is_reached():
    """One vector: a score is off by exactly what its product is."""
    given = limits(0.0, 1, spectral=0.3, residual=0.3, rounding=0.01, longest=0.0, norm=1.0)
    mean = weighted_mean(np.array([[0.7]]), 0.0, xp=np)
    np.testing.assert_allclose(largest_error(mean, 0.0, given, np.array([0.5]), xp=np), [0.16])


def quick_search(scan: Scan) -> QuickSearch:
    return QuickSearch(scan, CoarseRows(scan.index))


def unit_like(rng, n: int) -> np.ndarray:
    return (rng.standard_normal((n, DIM)) / DIM**0.5).astype(np.float32)


def head_of(kind: str, m: int = CODES):
    match kind:
        case "bi":
            return BiHead(BiConfig(score_scale=3.0), DIM, rngs=nnx.Rngs(0))
        case "basic":
            config = PolyConfig(n_codes=m, candidate_sharpness=5.0, score_scale=20.0)
        case "sqrt":
            config = PolyConfig(n_codes=m, candidate_attention="sqrt")
        case _:
            config = PolyConfig(n_codes=m, codes="first")
    return PolyHead(config, DIM, rngs=nnx.Rngs(0))


def contexts(rng, b: int, m: int, rank: int, noise: float = 1e-3) -> jax.Array:
    """Vectors near a space of few dimensions, as those of one context are."""
    inside = rng.standard_normal((b, m, rank)) @ rng.standard_normal((b, rank, DIM))
    vectors = inside / np.linalg.norm(inside, axis=-1, keepdims=True) + noise * rng.standard_normal(
        (b, m, DIM)
    )
    return jnp.asarray(vectors, jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", ["bi", "basic", "sqrt", "first"])
def test_certified_search_is_the_scan(rng, kind, dtype):
    head, b, k = head_of(kind), 4, 16
    m = 1 if kind == "bi" else CODES
    vectors = contexts(rng, b, m, min(m, 6))
    mask = np.ones((b, m), bool)
    if kind == "first":
        mask[1, 20:] = False
        vectors = jnp.where(jnp.asarray(mask)[..., None], vectors, 0.0)
    candidates = (unit_like(rng, N) * rng.uniform(0.5, 1, (N, 1))).astype(np.float32)
    candidates[1500:1505] = candidates[7]  # ties
    index = in_memory([str(i) for i in range(N)], candidates, dtype)
    index = CandidateIndex(index.segments, dtype, removed=np.arange(100, 200))
    scan = Scan(head, index)
    search = CertifiedSearch(scan, head)
    scores, rows = scan(vectors, jnp.asarray(mask), k)
    search(vectors, jnp.asarray(mask), k)
    if kind == "first":
        before = search.compilations
        for n in range(1, 14):  # the number of real vectors is no shape
            search(vectors[1:2], jnp.asarray(np.arange(m) < n)[None], k)
        assert search.compilations <= before + 1
    for i, outcome in enumerate(search(vectors, jnp.asarray(mask), k)):
        alone = scan(vectors[i : i + 1], jnp.asarray(mask[i : i + 1]), k)
        np.testing.assert_array_equal(outcome.rows, alone[1][0])
        np.testing.assert_array_equal(outcome.scores, alone[0][0], "the scores too, to the last bit")
        assert set(outcome.rows[:8]) <= set(rows[i]) and outcome.certified
        real = int(mask[i].sum())
        assert outcome.rank is not None and outcome.rank <= (real if real < 32 else 16)
        assert FIRST_RESCORED <= outcome.rescored < N / 2


@pytest.mark.parametrize("units", [True, False])
def test_upper_bounds_hold_with_all_rounding(rng, monkeypatch, units):
    """The pass itself, bfloat16 and float32 arithmetic included, against float64."""
    monkeypatch.setattr("polyjax.runtime.hardware.cpu_has_bfloat16", lambda: units)
    head = head_of("basic")
    vectors = contexts(rng, 3, CODES, 6, noise=0.003)
    mask = np.ones(CODES, bool)
    for dtype in ("float32", "bfloat16", "int8"):
        index = in_memory(["x"] * N, unit_like(rng, N), dtype)
        search = CertifiedSearch(Scan(head, index), head)
        stored = decode(*index.stored(np.arange(N))).astype(float)
        for e in np.asarray(vectors):
            exact = head.config.score_scale * exact_scores(stored @ e.T.astype(float), search.sharpness)
            known = search.sharpness, search._norm, search._lost
            factors = factorise(e, np.linalg.svd(e)[2][:8])
            plans = [Plan(rounded(e), rounded(e).limits(*known))]
            plans += [Plan(factors, factors.limits(*known)), Plan(factors, factors.moments(*known))]
            for plan in plans:
                upper = search._bounds(search._given(plan, mask), search._blocks_for(plan))
                assert (upper >= exact).all()
                if isinstance(plan.bounds, Limits):  # these contexts differ too much for moments
                    assert np.median(upper - exact) < exact.std(), "and say something"


@pytest.mark.parametrize("units", [True, False])
def test_upper_bounds_hold_where_rounding_is_all_there_is(rng, monkeypatch, units):
    """Context vectors that factors hold exactly, and candidates whose rounding takes from every product."""
    monkeypatch.setattr("polyjax.runtime.hardware.cpu_has_bfloat16", lambda: units)
    head = head_of("basic")

    def half(x: np.ndarray) -> np.ndarray:
        return x.astype(jnp.bfloat16).astype(np.float32)

    direction = half(rng.standard_normal(DIM).astype(np.float32))
    e = np.repeat(direction[None], CODES, axis=0)
    seen = half(unit_like(rng, N))
    last_place = 2.0 ** (np.floor(np.log2(np.abs(seen) + 1e-30)) - 7)
    rows = (seen + 0.24 * last_place * np.sign(direction)).astype(np.float32)
    np.testing.assert_array_equal(half(rows), seen)
    index = in_memory(["x"] * N, rows)
    search = CertifiedSearch(Scan(head, index), head)
    exact, rough = (
        head.config.score_scale * exact_scores(some.astype(float) @ e.T.astype(float), search.sharpness)
        for some in (rows, seen)
    )
    assert (rough < exact).all(), "without a bound for rounding the pass would be too low"
    known = search.sharpness, search._norm, search._lost
    factors = factorise(e, np.linalg.svd(e + 1e-3 * rng.standard_normal(e.shape))[2][:8].astype(np.float32))
    plans = [Plan(rounded(e), rounded(e).limits(*known))]
    plans += [Plan(factors, factors.limits(*known)), Plan(factors, factors.moments(*known))]
    for plan in plans:
        upper = search._bounds(search._given(plan, np.ones(CODES, bool)), search._blocks_for(plan))
        assert (upper >= exact).all()


@pytest.mark.parametrize("shape", [(6, 40), (40, 12), (64, 48)])
def test_what_is_left_out_is_measured(rng, shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    r = min(shape) // 2
    directions, values = _directions(vectors, r)
    np.testing.assert_allclose(directions @ directions.T, np.eye(r), atol=1e-4)
    for i in (1, r // 2):
        left = vectors - vectors @ directions[:i].T @ directions[:i]
        np.testing.assert_allclose(values[i], np.linalg.norm(left, 2), rtol=0.1)
    for factors in (rounded(vectors), factorise(vectors, directions)):
        fitted = factors.basis if factors.weights is None else factors.weights @ factors.basis
        left = (vectors - fitted).astype(float)
        assert np.linalg.norm(left, 2) <= factors.spectral <= 2 * np.linalg.norm(left, 2)
        np.testing.assert_allclose(factors.residual, np.linalg.norm(left, axis=1).max(), rtol=1e-3)
        assert np.linalg.norm(factors.basis @ factors.basis.T, 2) <= factors.overlap
        np.testing.assert_array_equal(factors.basis, factors.basis.astype(jnp.bfloat16).astype(np.float32))


def test_the_plan_follows_the_context(rng):
    sample = rng.standard_normal((128, DIM)).astype(np.float32)
    norm, lost = map(float, norms_of(sample, None).max(0))

    def plan(vectors, t):
        return choose(np.asarray(vectors), t, sample, norm=norm, lost=lost)

    alike, differing = contexts(rng, 2, CODES, 3, 1e-4)
    for vectors, t, bounds, rank in (
        (alike, 0.01, Moments, 16),
        (differing, 1.0, Limits, 16),
        (contexts(rng, 1, CODES, 10, 1e-4)[0], 1.0, Limits, 16),
        (rng.standard_normal((CODES, DIM)).astype(np.float32), 0.1, Limits, CODES),
    ):
        found = plan(vectors, t)
        assert found is not None and isinstance(found.bounds, bounds) and found.factors.rank == rank
    full = 1e3 * rng.standard_normal((CODES, DIM)).astype(np.float32)
    assert plan(full, 100.0) is None, "nothing that can be proven"
    assert ranks_of(CODES, DIM) == [16] and ranks_of(360, 384) == [16, 32, 48]


def test_where_nothing_can_be_proven_the_scan_does_it(rng):
    head = head_of("basic")
    vectors = 1e3 * jnp.asarray(rng.standard_normal((1, CODES, DIM)), jnp.float32)
    alike = (1 + 1e-6 * rng.standard_normal((N, DIM))).astype(np.float32)
    scan = Scan(head, in_memory(["x"] * N, alike))
    (outcome,) = CertifiedSearch(scan, head)(vectors, jnp.ones((1, CODES), bool), 4)
    assert outcome.rank is None and outcome.rescored == N and outcome.certified
    np.testing.assert_array_equal(outcome.rows, scan(vectors, jnp.ones((1, CODES), bool), 4)[1][0])


def test_fewer_candidates_than_asked_for(rng):
    head = head_of("basic")
    vectors = contexts(rng, 1, CODES, 4)
    index = in_memory(list("abcde"), rng.standard_normal((5, DIM)).astype(np.float32))
    for removed in ([], [1, 3], range(5)):
        kept = CandidateIndex(index.segments, "float32", removed=np.array(removed, np.int64))
        (outcome,) = CertifiedSearch(Scan(head, kept), head)(vectors, jnp.ones((1, CODES), bool), 8)
        assert sorted(outcome.rows[outcome.rows >= 0]) == [i for i in range(5) if i not in removed]
        assert (outcome.rows == -1).sum() == 3 + len(removed)


@pytest.mark.parametrize("n", [N, 3 * N + 5])
def test_large_blocks_bound_as_small_ones_do(rng, monkeypatch, n):
    """Without a softmax, and over one segment without scales."""
    for name, value in {"PASS_ROWS": 64, "LARGE_ROWS": 2048, "LARGE_STEP": 16}.items():
        monkeypatch.setattr(coarse, name, value)
    head, rows = head_of("basic"), unit_like(rng, n)
    search = CertifiedSearch(Scan(head, in_memory(["x"] * n, rows)), head)
    assert len(search.rows.large.parts) < len(search.rows.small.parts)
    factors = factorise(draw := np.asarray(contexts(rng, 1, CODES, 6)[0]), draw[:16])
    plan = Plan(factors, factors.moments(search.sharpness, search._norm, search._lost))
    given = search._given(plan, np.ones(CODES, bool))
    assert search._blocks_for(plan) is search.rows.large
    small, large = (search._bounds(given, blocks) for blocks in (search.rows.small, search.rows.large))
    assert np.isfinite(small).all()
    np.testing.assert_allclose(large, small, rtol=1e-5, atol=1e-6)
    eight = CertifiedSearch(Scan(head, in_memory(["x"] * n, rows, "int8")), head)
    assert eight.rows.large is eight.rows.small


@pytest.mark.parametrize("n", [1, 30, 1024, 4000, 9000])
@pytest.mark.parametrize("order", ["thrown", "sorted", "ties", "none"])
def test_the_highest_are_found(rng, n, order):
    values = rng.standard_normal(5000).astype(np.float32)
    match order:
        case "sorted":
            values.sort()
        case "ties":
            values = np.round(values)
        case "none":
            values[::3] = -np.inf
    rows = highest(values, n)
    there = np.sort(values[values > -np.inf])[::-1]
    np.testing.assert_array_equal(np.sort(values[rows])[::-1], there[:n])
    assert (np.diff(rows) > 0).all() and len(rows) == min(n, len(there))


def test_in_a_hurry_the_most_promising_are_scored(rng):
    """Where bounds tell little, as with vectors of great length, the result says that it is not proven."""
    head = head_of("basic")
    vectors = contexts(rng, 1, CODES, CODES, noise=0.0)
    mask = jnp.ones((1, CODES), bool)
    candidates = 20 * unit_like(rng, N)
    index = CandidateIndex(in_memory(["x"] * N, candidates).segments, "float32", removed=np.arange(500))
    scan = Scan(head, index)
    (outcome,) = quick_search(scan)(vectors, mask, 16)
    assert not outcome.certified and outcome.rescored < N
    expected = scan(vectors, mask, 16)[1][0]
    assert np.isin(expected, outcome.rows).mean() > 0.9 and (outcome.rows >= 500).all()
    few = CandidateIndex(index.segments, "float32", removed=np.arange(N - 5))
    (outcome,) = quick_search(Scan(head, few))(vectors, mask, 16)
    assert outcome.certified and sorted(outcome.rows[:5]) == list(range(N - 5, N)) and outcome.rows[5] == -1


def test_without_bfloat16_units_nothing_is_rounded_for_speed(rng, monkeypatch):
    """Products in float32 are as fast there: a pass pays by its few directions only."""
    monkeypatch.setattr("polyjax.runtime.hardware.cpu_has_bfloat16", lambda: False)
    head = head_of("basic")
    scan = Scan(head, in_memory(["x"] * N, unit_like(rng, N)))
    search, mask = CertifiedSearch(scan, head), jnp.ones((1, CODES), bool)
    search.compile(CODES, DIM)
    before = search.compilations
    for rank, quick, few in ((4, False, True), (4, True, False), (CODES, False, False)):
        vectors = contexts(rng, 1, CODES, rank)
        (outcome,) = (quick_search(scan) if quick else search)(vectors, mask, 16)
        np.testing.assert_array_equal(outcome.rows, scan(vectors, mask, 16)[1][0])
        assert outcome.certified and (outcome.rank is not None) == few
    assert search.compilations == before == 2


@pytest.mark.parametrize("m", [3, 5, 24, 31, 360])
@pytest.mark.parametrize("noise", [0.0, 1e-5])
def test_context_vectors_that_are_the_same(rng, m, noise):
    """As learnt codes give them for a context of one token: float32 rounding is all that tells them apart."""
    head = head_of("basic", m)
    one = rng.standard_normal((1, 1, DIM))
    vectors = jnp.asarray(one * (1 + noise * rng.standard_normal((1, m, DIM))), jnp.float32)
    mask = jnp.ones((1, m), bool)
    scan = Scan(head, in_memory(["x"] * N, rng.standard_normal((N, DIM)).astype(np.float32)))
    search = CertifiedSearch(scan, head)
    exact = np.asarray(head.score(vectors, mask, jnp.asarray(scan.index.segments[0].vectors)[None]))[0]
    expected = scan(vectors, mask, 16)[1][0]
    for quick in (False, True):
        (outcome,) = (quick_search(scan) if quick else search)(vectors, mask, 16)
        assert outcome.certified == (not quick) and outcome.rescored <= N
        np.testing.assert_array_equal(outcome.rows, expected)
    plan = plan_rounded(np.asarray(vectors[0]), search.sharpness, norm=search._norm, lost=search._lost)
    assert (search._bounds(search._given(plan, np.ones(m, bool)), search._blocks_for(plan)) >= exact).all()


def test_all_removed_and_what_is_not_finite(rng):
    head = head_of("basic")
    vectors, mask = contexts(rng, 1, CODES, 4), jnp.ones((1, CODES), bool)
    candidates = unit_like(rng, N)
    gone = CandidateIndex(in_memory(["x"] * N, candidates).segments, "float32", removed=np.arange(N))
    for search in (CertifiedSearch(Scan(head, gone), head), quick_search(Scan(head, gone))):
        for given in (vectors, vectors * jnp.nan):
            (outcome,) = search(given, mask, 4)
            assert (outcome.rows == -1).all()
    candidates[7, 3] = np.nan
    with pytest.raises(InputError, match="vector 7 is not finite"):
        in_memory(["x"] * N, candidates)


def test_threads_search_at_the_same_time_and_leave_nothing_behind(rng):
    head = head_of("basic")
    vectors, mask = contexts(rng, 8, CODES, 6), jnp.ones((1, CODES), bool)
    search = CertifiedSearch(Scan(head, in_memory(["x"] * N, unit_like(rng, N))), head)
    before = [library["num_threads"] for library in threadpool_info()]
    alone = [search(vectors[i : i + 1], mask, 8)[0].rows for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: search(vectors[i % 8 : i % 8 + 1], mask, 8)[0].rows, range(64)))
    for i, rows in enumerate(found):
        np.testing.assert_array_equal(rows, alone[i % 8])
    assert [library["num_threads"] for library in threadpool_info()] == before


@pytest.mark.parametrize("kind", ["bi", "basic", "first"])
def test_everything_is_compiled_ahead(rng, kind):
    head = head_of(kind)
    m = 1 if kind == "bi" else CODES
    search = CertifiedSearch(Scan(head, in_memory(["x"] * N, unit_like(rng, N))), head)
    search.compile(m, DIM)
    before = search.compilations
    assert before == {"bi": 1, "basic": 3, "first": 4}[kind]  # 31 vectors have no rank of 16
    for rank in (1, 6, 12, 24):
        for real in {m, max(m - 9, 1)} if kind == "first" else {m}:
            search(contexts(rng, 1, m, rank), jnp.asarray(np.arange(m) < real)[None], 8)
    assert search.compilations == before
    for real in (m, max(m - 9, 1)):
        quick_search(search.scan)(contexts(rng, 1, m, 6), jnp.asarray(np.arange(m) < real)[None], 8)
    assert search.compilations == before and search.scan.programs.rough.compilations == 1


def test_to_the_last_bit_in_the_programs_that_users_run(tmp_path):
    """The tests compile without optimisation; here as anybody does, at sizes of several blocks."""
    script = tmp_path / "compare.py"
    script.write_text(
        "import jax, numpy as np\n"
        "from flax import nnx\n"
        "from polyjax.nn.heads import PolyConfig, PolyHead\n"
        "from polyjax.runtime import hardware\n"
        "from polyjax.retrieval.search.certified import CertifiedSearch\n"
        "from polyjax.retrieval.search.scan import Scan\n"
        "from polyjax.retrieval.index.store import in_memory\n"
        "rng = np.random.default_rng(0)\n"
        "rows = rng.standard_normal((20_011, 96)).astype(np.float32)\n"
        "rows /= np.linalg.norm(rows, axis=1, keepdims=True)\n"
        "for m, units in ((5, True), (64, True), (64, False), (360, True), (360, False)):\n"
        "    hardware.cpu_has_bfloat16 = lambda: units\n"
        "    head = PolyHead(PolyConfig(n_codes=m, candidate_sharpness=5.0), 96, rngs=nnx.Rngs(0))\n"
        "    scan = Scan(head, in_memory(['x'] * len(rows), rows))\n"
        "    search, mask = CertifiedSearch(scan, head), np.ones((1, m), bool)\n"
        "    for _ in range(3):\n"
        "        draw = rng.standard_normal((m, 6)) @ rng.standard_normal((6, 96))\n"
        "        e = (draw / np.linalg.norm(draw, axis=1, keepdims=True)).astype(np.float32)[None]\n"
        "        (found,), (scores, best) = search(e, mask, 10), scan(e, mask, 10)\n"
        "        assert found.rescored < len(rows), 'something is spared'\n"
        "        np.testing.assert_array_equal(found.rows, best[0])\n"
        "        np.testing.assert_array_equal(found.scores, scores[0])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
