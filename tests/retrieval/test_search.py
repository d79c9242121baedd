"""Search: exactly the candidates that ranking all of them would put first."""

import dataclasses
import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conftest import DUAL_HEADS
from polyjax import Ranker
from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.nn.heads import BiConfig, BiHead, PolyHead
from polyjax.retrieval.index.rows import norms_of, quantise
from polyjax.retrieval.index.store import CandidateIndex, Segment, in_memory
from polyjax.retrieval.search import scan as scan_module
from polyjax.retrieval.search.blocks import blocks_of
from polyjax.retrieval.search.scan import Scan
from polyjax.retrieval.search.searcher import Searcher
from polyjax.retrieval.stages.faiss import FaissStage

DIM = 16


def head_of(name: str):
    config = DUAL_HEADS[name]
    return (BiHead if isinstance(config, BiConfig) else PolyHead)(config, DIM, rngs=nnx.Rngs(0))


def problem(rng, head, *, n: int, b: int = 3):
    m = 1 if isinstance(head, BiHead) else head.config.n_codes
    vectors = jnp.asarray(rng.standard_normal((b, m, DIM)), jnp.float32)
    mask = np.ones((b, m), bool)
    if m > 1:
        mask[0, -2:] = False
    return vectors, jnp.asarray(mask), rng.standard_normal((n, DIM)).astype(np.float32)


@pytest.mark.parametrize("name", DUAL_HEADS)
@pytest.mark.parametrize("n", [1, 7, 64, 150])
def test_a_scan_finds_what_scoring_all_finds(rng, name, n):
    head = head_of(name)
    vectors, mask, candidates = problem(rng, head, n=n)
    scan = Scan(head, in_memory([str(i) for i in range(n)], candidates), rows=64)
    scores, rows = scan(vectors, mask, 8)
    everything = np.asarray(head.score(vectors, mask, jnp.asarray(candidates)[None]))
    expected = np.argsort(-everything, axis=1, kind="stable")[:, :8]
    k = min(n, 8)
    np.testing.assert_array_equal(rows[:, :k], expected)
    np.testing.assert_allclose(scores[:, :k], np.take_along_axis(everything, expected, 1), atol=1e-4)
    assert (rows[:, k:] == -1).all() and np.isneginf(scores[:, k:]).all()
    assert scan.compilations == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_segments_removals_and_block_size_change_nothing(rng, dtype):
    head = head_of("poly-basic")
    vectors, mask, candidates = problem(rng, head, n=100)
    stored, scales = quantise(candidates, dtype)
    whole = in_memory([str(i) for i in range(100)], candidates, dtype).segments[0].vectors
    cuts = [0, 3, 40, 100]
    segments = [
        Segment(
            [str(j) for j in range(i, k)],
            np.arange(i, k),
            whole[i:k],
            norms_of(whole[i:k], None if scales is None else scales[i:k]),
            None if scales is None else scales[i:k],
        )
        for i, k in zip(cuts, cuts[1:], strict=False)
    ]
    removed = np.array([0, 2, 39, 40, 77, 99])
    decoded = np.asarray(whole, np.float32) * (1 if scales is None else scales[:, None])
    everything = np.array(head.score(vectors, mask, jnp.asarray(decoded)[None]))
    everything[:, removed] = -np.inf
    expected = np.argsort(-everything, axis=1, kind="stable")[:, :20]
    for rows in (16, 64, 128):
        index = CandidateIndex(segments, dtype, removed=removed)
        _, found = Scan(head, index, rows=rows)(vectors, mask, 20)
        np.testing.assert_array_equal(found, expected)
    assert len(stored) == 100


def test_equal_scores_keep_the_order_of_the_rows(rng):
    head = head_of("bi-mean")
    vectors, mask, _ = problem(rng, head, n=1)
    same = np.ones((50, DIM), np.float32)
    _, rows = Scan(head, in_memory(["x"] * 50, same), rows=8)(vectors, mask, 10)
    assert rows.tolist() == [list(range(10))] * 3


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_file_is_scanned_where_it_is_mapped(tmp_path, dtype):
    np.save(tmp_path / "v.npy", np.zeros((200, 64), dtype))
    vectors = np.load(tmp_path / "v.npy", mmap_mode="r")
    segment = Segment(["x"] * 200, np.arange(200), vectors, np.zeros((200, 2), np.float32))
    blocks = blocks_of(CandidateIndex([segment], "float32"), rows=64)
    places = [(b.vectors.unsafe_buffer_pointer() - vectors.ctypes.data) // vectors[0].nbytes for b in blocks]
    assert places == [0, 64, 128, 136] and [int(b.live.sum()) for b in blocks] == [64, 64, 64, 8]


def test_small_segments_share_blocks(rng):
    """As many single additions leave them: a block for each would cost as much as 64 candidates."""
    vectors = rng.standard_normal((300, DIM)).astype(np.float32)
    cuts = [0, 100, *range(101, 141), 240, *range(241, 301)]
    segments = [
        Segment(["x"] * (k - i), np.arange(i, k), vectors[i:k], norms_of(vectors[i:k], None))
        for i, k in zip(cuts, cuts[1:], strict=False)
    ]
    blocks = blocks_of(CandidateIndex(segments, "float32", removed=np.array([120])), rows=64)
    assert [int(block.first) for block in blocks] == [0, 36, 100, 140, 176, 240]
    assert [int(block.live.sum()) for block in blocks] == [64, 36, 39, 64, 36, 60]
    for block in blocks:
        live = np.flatnonzero(block.live)
        np.testing.assert_array_equal(block.vectors[live], vectors[int(block.first) + live])


SEARCH = """
import sys, threading, time
from pathlib import Path
import numpy as np
from flax import nnx
from polyjax.nn.heads import PolyConfig, PolyHead
from polyjax.retrieval.search.certified import CertifiedSearch
from polyjax.retrieval.index.change import commit, finish_segment, new_vectors, writing
from polyjax.retrieval.index.fingerprint import Fingerprint
from polyjax.retrieval.index.manifest import Manifest, SegmentInfo
from polyjax.retrieval.index.store import open_index
from polyjax.retrieval.search.coarse import CoarseRows
from polyjax.retrieval.search.quick import QuickSearch
from polyjax.retrieval.search.scan import Scan

folder, n, d = Path(sys.argv[1]), int(sys.argv[2]), 64
draw = np.random.default_rng(0)
with writing(folder, new=True):
    (folder / "000000").mkdir()
    vectors = new_vectors(folder / "000000", n, d, "bfloat16")
    for i in range(0, n, 20_000):
        vectors[i : i + 20_000] = draw.standard_normal((20_000, d), np.float32).view(np.uint32) >> 16
    vectors.flush()
    finish_segment(folder / "000000", ["x"] * n, np.arange(n), "bfloat16")
    model = Fingerprint(weights="", architecture="", tokenizer="", lengths="", arithmetic="float32")
    segments = (SegmentInfo(name="000000", count=n),)
    commit(folder, Manifest(model=model, source="", dtype="bfloat16", dim=d, next_id=n, segments=segments))


def taken():  # without what is mapped from files
    return next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("RssAnon"))


def watch():
    global most
    while True:
        most = max(most, taken())
        time.sleep(0.0005)


del vectors
before = most = taken()
head = PolyHead(PolyConfig(n_codes=8), d, rngs=nnx.Rngs(0))
scan = Scan(head, open_index(folder))
rows = CoarseRows(scan.index)
search, quick = CertifiedSearch(scan, head, rows), QuickSearch(scan, rows)
query = 0.1 * draw.standard_normal((1, 8, d), np.float32), np.ones((1, 8), bool)
threading.Thread(target=watch, daemon=True).start()
scan(*query, 32)
search(*query, 32)
quick(*query, 32)
print(1024 * (most - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the memory of a process on Linux")
def test_memory_grows_by_little_for_each_candidate(tmp_path):
    """Vectors stay in the mapped file; what is kept for a candidate are its norms and bounds."""
    taken = []
    for n in (40_000, 400_000):
        command = [sys.executable, "-c", SEARCH, str(tmp_path / str(n)), str(n)]
        taken.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))

    assert (taken[1] - taken[0]) / 360_000 < 100, "bytes; a copy of the vectors would be 128, or 256"


def test_attention_with_several_heads_takes_little_memory(ranker):
    """It keeps a vector for each row and context, so contexts do not share a pass, and blocks are small."""
    config = dataclasses.replace(DUAL_HEADS["poly-multihead"], n_codes=64)
    head = PolyHead(config, 768, rngs=nnx.Rngs(0))
    index = in_memory(["x"] * 5000, np.zeros((5000, 768), np.float32))
    given = np.zeros((5, 64, 768), np.float32), np.ones((5, 64), bool)
    parts = {"head": head, "context_batches": lambda self, contexts: iter([(np.arange(5), *given)])}
    scorer = object.__new__(type("OfHead", (TextScorer,), parts))
    searcher = Searcher(scorer, index)
    batches = list(searcher._batches([["hi"]] * 5))
    assert [places.tolist() for places, _, _ in batches] == [[0], [1], [2], [3], [4]]
    assert searcher._scan.temporary_bytes(*batches[0][1:], 8) < 60e6


@pytest.mark.parametrize("n", [1, 256, 257, 700, 900])
@pytest.mark.parametrize("agree", [True, False])
def test_few_rows_are_scored_in_small_blocks_that_agree_with_the_scans(rng, monkeypatch, n, agree):
    """To the last bit the first times; otherwise in the scan's own. Without optimisation they may not."""
    monkeypatch.setattr(scan_module, "FEW_ROWS", 256)
    head = head_of("poly-basic")
    vectors, mask, candidates = problem(rng, head, n=2000, b=1)
    scan = Scan(head, in_memory(["x"] * 2000, candidates), rows=1024)
    rows = np.sort(rng.permutation(2000)[:n])
    scores, best = scan(vectors, mask, 2000)
    everything = dict(zip(best[0].tolist(), scores[0].tolist(), strict=True))
    sizes, in_blocks = [], scan._in_blocks

    def seen(*given):
        sizes.append(given[-1])
        scores, best = in_blocks(*given)
        return (scores if agree else scores + (given[-1] == 256)), best

    monkeypatch.setattr(scan, "_in_blocks", seen)
    monkeypatch.setattr(scan_module.np, "array_equal", lambda a, b: np.allclose(a, b, atol=1e-5))
    for _ in range(6):
        scores, best = scan.among(vectors, mask, rows, 16)
        expected = sorted(rows.tolist(), key=lambda row: -everything[row])[:16]
        assert best[0][: len(expected)].tolist() == expected and (best[0][len(expected) :] == -1).all()
        there = scores[0][: len(expected)]
        np.testing.assert_allclose(there, [everything[row] for row in expected], atol=1e-5)
    compared = 4 * [256, 1024] + 2 * [256] if agree else [256, 1024] + 5 * [1024]
    assert sizes == (compared if n <= 768 else 6 * [1024])


def test_every_candidate_removed_finds_nothing(rng):
    head = head_of("bi-mean")
    vectors, mask, candidates = problem(rng, head, n=5)
    index = in_memory(list("abcde"), candidates)
    empty = CandidateIndex(index.segments, "float32", removed=np.arange(5))
    assert (Scan(head, empty)(vectors, mask, 3)[1] == -1).all()


@pytest.fixture(scope="module")
def ranker(parlai_models):
    return Ranker.from_parlai(parlai_models / "poly_codes64_fp16_legacy" / "model")


TEXTS = ["hello", "what do you do?", "i like tea", "no", "yes , sure", "how are you ?", "i am a nurse"]
CONTEXTS = ["hi there", ["hello", "how are you?"], ["a", "b", "c"]]


def test_searching_is_ranking(ranker):
    index = ranker.index([*TEXTS, "no"])
    assert len(index) == len(TEXTS)
    for context, found in zip(CONTEXTS, ranker.search_batch(CONTEXTS, 4), strict=True):
        expected = ranker.rank(context, TEXTS, top_k=4)
        assert [(f.text, f.id) for f in found] == [(r.text, r.index) for r in expected]
        np.testing.assert_allclose([f.score for f in found], [r.score for r in expected], atol=1e-5)
        alone = ranker.search(context, 4)
        assert [f.id for f in alone] == [f.id for f in found]
    assert len(ranker.search("hi", 100)) == len(TEXTS)


@pytest.mark.parametrize("method", ["scan", "certified", "quick"])
def test_every_method_finds_the_same(ranker, method, monkeypatch):
    monkeypatch.setattr("polyjax.runtime.hardware.cpu_has_bfloat16", lambda: True)
    texts = [f"i have {i} things and {i % 7} friends" for i in range(600)]
    ranker.index(texts)
    for context in CONTEXTS:
        expected, found = ranker.search(context, 5), ranker.search(context, 5, method=method)
        assert [f.id for f in found] == [f.id for f in expected]
        np.testing.assert_allclose([f.score for f in found], [f.score for f in expected], rtol=1e-6)
        assert found.certified and (found.rank is None) == (method != "certified")
        assert len(found) == 5 and found[:2] == found.found[:2] and 0 < found.rescored <= 1


def test_a_first_stage_proposes_the_candidates(ranker):
    texts = [f"i have {i} things and {i % 7} friends" for i in range(600)]
    stage = FaissStage.build(ranker.index(texts))
    for context, found in zip(CONTEXTS, ranker.search_batch(CONTEXTS, 5, first_stage=stage), strict=True):
        if found.certified:
            assert [f.id for f in found] == [f.id for f in ranker.search(context, 5)]
    assert any(r.certified for r in ranker.search_batch(CONTEXTS, 1, first_stage=stage))
    with pytest.raises(InputError) as error:
        ranker.search("hi", method="quick", first_stage=stage)
    assert (error.value.argument, error.value.problem) == (
        "method",
        "'quick' has no effect with a `first_stage`",
    )


def test_a_first_stage_of_another_index_as_large_is_refused(ranker, tmp_path):
    """On disk, of the same model, type and size: one text in the middle differs."""
    texts = [f"i have {i} things" for i in range(300)]
    stage = FaissStage.build(ranker.index(texts, tmp_path / "monday"))
    texts[177] = "what do you do?"
    tuesday = ranker.index(texts, tmp_path / "tuesday").candidates
    with pytest.raises(InputError) as error:
        ranker.search("hi", first_stage=stage)
    assert error.value.argument == "first_stage" and "made for another index" in error.value.problem
    ranker.open_index(tmp_path / "monday")
    assert ranker.search("hi", first_stage=stage).certified
    assert len({tuesday.identity, stage.made_for, in_memory(["x"] * 2, np.eye(2)).identity}) == 3
    assert in_memory(["x"] * 2, np.eye(2)).identity != in_memory(["x"] * 2, np.eye(2)[::-1]).identity


def test_what_approximate_means_is_measured(ranker):
    texts = [f"i have {i} things and {i % 7} friends" for i in range(600)]
    index = ranker.index(texts)
    stage = FaissStage.build(index, "IVF32,Flat")
    assert [r.recall for r in ranker.search_batch(CONTEXTS, 5, first_stage=stage)] == [None] * 3
    found = ranker.measure_recall(CONTEXTS, stage, top_k=5)
    shares = []
    for exact, results in zip(
        ranker.search_batch(CONTEXTS, 5), ranker.search_batch(CONTEXTS, 5, first_stage=stage), strict=True
    ):
        assert results.recall == found and exact.recall == 1 and not results.certified
        shares.append(np.isin([f.id for f in exact], [f.id for f in results]).mean())
    assert 0 < found <= 1
    np.testing.assert_allclose(found, np.mean(shares))
    ranker.search("hi", first_stage=FaissStage.build(index))
    assert ranker.search("hi", 5, first_stage=stage).recall == found, "another stage in between"
    gone = weakref.ref(stage)
    del stage
    gc.collect()
    assert gone() is None, "an index keeps no first stage, whose vectors may be gigabytes"
    assert not index._searching()._recalls._measured


def test_vectors_that_are_not_finite_are_an_error(ranker):
    """Results that say they are certified, and hold nothing, would be found much later."""
    ranker.index(TEXTS)
    encode = ranker.scorer.context_batches

    def broken(contexts):
        for places, vectors, mask in encode(contexts):
            yield places, vectors.at[int(np.flatnonzero(places == 1)[0])].set(np.nan), mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker.scorer, "context_batches", broken)
        with pytest.raises(InputError) as error:
            ranker.search_batch(["a b c", "a b", "a"])
    assert error.value.argument == "contexts[1]"
    assert error.value.problem == "the model gives vectors that are not finite"


def test_a_mesh_shares_the_candidates(ranker):
    ranker.index(TEXTS)
    expected = ranker.search("hi", 3)
    ranker.index(TEXTS, mesh=jax.make_mesh((8,), ("data",)))
    assert [f.id for f in ranker.search("hi", 3)] == [f.id for f in expected]
    with pytest.raises(InputError) as error:
        ranker.search("hi", first_stage=FaissStage(SimpleNamespace(), exact=True, made_for=""))
    assert (error.value.argument, error.value.fix) == ("first_stage", "open the index without `mesh`")
    for method in ("certified", "quick"):
        with pytest.raises(InputError) as error:
            ranker.search("hi", method=method)
        assert (error.value.argument, error.value.got) == ("method", method)
        assert error.value.expected == "auto or scan for a search over a mesh"


def test_a_cross_encoder_orders_what_was_found(ranker, parlai_models):
    cross = Ranker.from_parlai(parlai_models / "cross_prelayernorm_mean" / "model")
    ranker.index(TEXTS)
    first = ranker.search_batch(CONTEXTS, 5)
    for context, before, found in zip(
        CONTEXTS, first, ranker.search_batch(CONTEXTS, 3, rerank=cross, rerank_top=5), strict=True
    ):
        expected = cross.rank(context, [f.text for f in before], top_k=3)
        assert [f.text for f in found] == [e.text for e in expected]
        np.testing.assert_allclose([f.score for f in found], [e.score for e in expected], rtol=1e-5)
        scores = {f.id: f.score for f in before}
        assert [f.first_score for f in found] == [scores[f.id] for f in found]
    assert all(f.first_score is None for f in first[0])


@pytest.mark.parametrize("certified", [False, True])
def test_nothing_is_compiled_after_compile(ranker, monkeypatch, certified):
    monkeypatch.setattr("polyjax.retrieval.search.searcher.WORTH_CERTIFYING", 0 if certified else np.inf)
    ranker.index([f"i have {i} things" for i in range(3000 if certified else 600)])
    assert ranker.compile(5) > 0
    before = ranker.compilations
    for context in ("hi", ["hello there"] * 20, ["a b c d e f g h i j k l m n o p"] * 3):
        found, scanned = ranker.search(context, 5), ranker.search(context, 5, method="scan")
        assert found.found == scanned.found and found.certified
        assert (found.rank is not None) == certified and scanned.rank is None
    assert ranker.compilations == before and ranker.compile(5) == 0


def test_an_index_is_built_opened_and_searched(ranker, tmp_path):
    (tmp_path / "c.txt").write_text("\n".join(TEXTS) + "\n")
    built = ranker.index(tmp_path / "c.txt", tmp_path / "index", dtype="bfloat16")
    found = ranker.search("hi", 3)
    ranker.index(TEXTS[:1])
    assert ranker.search("hi")[0].text == "hello"
    opened = ranker.open_index(tmp_path / "index")
    assert ranker.search("hi", 3) == found and len(opened) == len(built) == len(TEXTS)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda r: r.search("hi"), "index"),
        (lambda r: (r.index(["a"]), r.search("hi", 0)), "top_k"),
        (lambda r: (r.index(["a"]), r.search([])), "context"),
        (lambda r: (r.index(["a"]), r.search_batch("hi")), "contexts"),
        (lambda r: (r.index(["a"]), r.search_batch(["hi", []])), "contexts[1]"),
        (lambda r: (r.index(["a"]), r.search("hi", 9, rerank=r, rerank_top=3)), "rerank_top"),
        (lambda r: r.compile(), "index"),
        (lambda r: r.compile(n_candidates=0), "n_candidates"),
        (lambda r: r.index([]), "candidates"),
        (lambda r: r.open_index("nowhere"), "nowhere"),
        (lambda r: r.index(["a"]).remove(), "ids"),
        (lambda r: r.index(["a"]).remove(ids=[1]), "ids[0]"),
        (lambda r: r.index(["a"]).remove(texts=["b"]), "texts[0]"),
        (lambda r: r.index(["a"]).add(["a", "\ud800"]), "texts[1]"),
        (lambda r: r.index(["a"]).compact(), "folder"),
    ],
)
def test_invalid_arguments_are_named(ranker_alone, call, argument):
    with pytest.raises(InputError) as error:
        call(ranker_alone)
    assert error.value.argument == argument


@pytest.fixture
def ranker_alone(parlai_models):
    """One that no other test gives an index."""
    return Ranker.from_parlai(parlai_models / "poly_codes64_fp16_legacy" / "model")


def test_arguments_of_other_types_are_named(parlai_models, tmp_path):
    """In a process of its own: the tests' type checker would be there first."""
    script = tmp_path / "mistakes.py"
    script.write_text(
        "import sys\n"
        "import numpy as np\n"
        "from polyjax import InputError, Ranker\n"
        "r = Ranker.from_parlai(sys.argv[1])\n"
        "r.index(['a', 'b'])\n"
        "r.compile(np.int64(40), n_candidates=np.int64(3)), r.search('hi', np.int64(40))\n"
        "for call in (\n"
        "    lambda: r.search('hi', 2.5),\n"
        "    lambda: r.search('hi', 1, rerank=r, rerank_top='x'),\n"
        "    lambda: r.search('hi', 1, rerank='x'),\n"
        "    lambda: r.search('hi', method='certfied'),\n"
        "    lambda: r.rank('hi', ['a'], True),\n"
        "    lambda: r.open_index(None),\n"
        "    lambda: r.index(['a'], dtype='float16'),\n"
        "    lambda: r.index(['a'], 'folder', dtype=np.dtype('int8')),\n"
        "    lambda: r.rank('hi', np.array('x')),\n"
        "    lambda: r.index(['a'], mesh='data=2'),\n"
        "    lambda: r.measure_recall([], None),\n"
        "    lambda: Ranker('runs/x'),\n"
        "    lambda: Ranker(None),\n"
        "    lambda: Ranker.load('x', dtype='fp16'),\n"
        "    lambda: Ranker.load('x', dtype='half'),\n"
        "    lambda: Ranker.load(3),\n"
        "    lambda: Ranker.from_encoder('minilm', dtype='bf16'),\n"
        "    lambda: Ranker.from_parlai('x', padding='no'),\n"
        "):\n"
        "    try:\n"
        "        call()\n"
        "    except InputError as error:\n"
        "        print(error.argument, repr(error.got), error.fix, sep='; ')\n"
    )
    model = str(parlai_models / "poly_codes64_fp16_legacy" / "model")
    command = [sys.executable, str(script), model]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines() == [
        "top_k; 2.5; None",
        "rerank_top; 'x'; None",
        "rerank; 'a value of type str'; None",
        "method; 'certfied'; did you mean certified?",
        "top_k; True; None",
        "folder; None; None",
        "dtype; 'float16'; did you mean bfloat16?",
        "dtype; dtype('int8'); did you mean int8?",
        "candidates; 'a value of type ndarray'; None",
        "mesh; 'data=2'; None",
        "first_stage; 'NoneType'; None",
        "scorer; 'runs/x'; write Ranker.load('runs/x')",
        "scorer; 'a value of type NoneType'; None",
        "dtype; 'fp16'; did you mean float16?",
        "dtype; 'half'; None",
        "folder; 3; None",
        "dtype; 'bf16'; did you mean bfloat16?",
        "padding; 'no'; did you mean none?",
    ]


def test_a_cross_encoder_has_no_index(parlai_models):
    with pytest.raises(InputError, match="cross-encoder cannot encode candidates"):
        Ranker.from_parlai(parlai_models / "cross_prelayernorm_mean" / "model").index(["a"])


def test_killed_while_building_and_adding(parlai_models, tmp_path):
    """SIGKILL at several moments: the index is always a committed one, and the next call finishes it."""
    script = tmp_path / "build.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from polyjax import Ranker\n"
        "from polyjax.retrieval.index import build\n"
        "build.SAVE_EVERY_S = 0.0\n"
        "from polyjax.inference.scorer import TextScorer\n"
        "import polyjax.inference.scorer\n"
        "polyjax.inference.scorer.CPU_TOKENS_PER_BATCH = 64\n"
        "ranker = Ranker.from_parlai(sys.argv[1])\n"
        "texts = [f'text number {i}' for i in range(400)]\n"
        "ranker.index(texts[:100], sys.argv[2])\n"
        "build.add_to_index(Path(sys.argv[2]), texts, ranker.scorer)\n"
    )
    model = str(parlai_models / "poly_codes64_fp16_legacy" / "model")

    def start(folder):
        command = [sys.executable, str(script), model, str(folder)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(timeout=300) == 0
    killed = tmp_path / "killed"
    for pause in (0.0, 0.05):
        process = start(killed)
        while not (killed / "building" / "done.json").exists():
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        process.wait()
    process = start(killed)
    while not ((killed / "manifest.json").exists() and (killed / "building" / "done.json").exists()):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    ranker = Ranker.from_parlai(model)
    assert len(ranker.open_index(killed)) == 100, "killed while adding: what was built stays"
    assert start(killed).wait(timeout=300) == 0
    one, other = ranker.open_index(killed), ranker.open_index(tmp_path / "whole")
    assert dict(one.items()) == dict(other.items())
    for a, b in zip(one.candidates.segments, other.candidates.segments, strict=True):
        np.testing.assert_array_equal(a.vectors, b.vectors)
