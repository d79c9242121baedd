"""The Ranker: what it is, what it compiles, and how several threads and indexes share it."""

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import polyjax
from polyjax import Index, InputError, Ranker
from polyjax.data import token_store
from polyjax.inference import arguments
from polyjax.runtime import forks

CONTEXT = ["hey! what did you do last weekend?", "we went hiking in the mountains"]
REPLIES = ["which trail did you take?", "my printer is out of ink", "nice, how was the view?"]
POLY = "poly_codes64_fp16_legacy"


@pytest.fixture(scope="module")
def ranker():
    return Ranker.from_encoder("minilm")


@pytest.fixture
def poly(parlai_models):
    return Ranker.from_parlai(parlai_models / POLY / "model")


@pytest.fixture
def cross(parlai_models):
    return Ranker.from_parlai(parlai_models / "cross_prelayernorm_mean" / "model")


def test_scores_are_cosines(ranker):
    scores = ranker.score(CONTEXT, REPLIES)
    assert (np.abs(scores) <= 1 + 1e-6).all()
    np.testing.assert_allclose(ranker.score("out of ink", ["out of ink"]), [1.0], atol=1e-5)
    assert ranker.rank(CONTEXT, REPLIES)[-1].text == REPLIES[1]


def test_turns_before_the_last_ones_are_not_read(ranker):
    np.testing.assert_allclose(
        ranker.score(["my printer is out of ink", *CONTEXT], REPLIES),
        ranker.score(CONTEXT, REPLIES),
        atol=1e-5,
    )


def test_it_searches_what_it_ranks(ranker):
    ranker.index(REPLIES)
    assert [found.text for found in ranker.search(CONTEXT)] == [
        reply.text for reply in ranker.rank(CONTEXT, REPLIES)
    ]


def test_the_dtype_is_that_of_the_arithmetic(ranker):
    half = Ranker.from_encoder("minilm", dtype="bfloat16").score(CONTEXT, REPLIES)
    exact = ranker.score(CONTEXT, REPLIES)
    assert 1e-7 < np.abs(half - exact).max() < 0.02


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(InputError) as error:
        Ranker.from_encoder("nowhere")
    assert (error.value.argument, error.value.got) == ("encoder", "nowhere")


def test_it_says_what_it_is(poly, cross, tmp_path):
    assert repr(poly) == (
        "<Ranker: poly-encoder, 2 layers x 48, float32; reads 102 tokens of the last 20 turns and 20 of a "
        "candidate; no index>"
    )
    index = poly.index(["a", "b", "A"], tmp_path / "i", dtype="int8")
    assert repr(index) == f"<Index of 2 candidates, int8, in {str(tmp_path / 'i')!r}>"
    assert repr(poly).endswith(f"; {index!r}>")
    assert repr(poly.index(["a"])) == "<Index of 1 candidates, float32, in memory>"
    assert repr(cross).startswith("<Ranker: cross-encoder, ")


def test_a_table_is_no_list_of_texts():
    """Its columns' names would be ranked."""
    frame = pytest.importorskip("pandas").DataFrame({"text": ["one", "two"]})
    with pytest.raises(InputError, match="expected a list of texts, got a value of type DataFrame"):
        arguments.as_texts("candidates", frame)


def test_a_ranker_and_an_index_are_not_pickled_or_copied(poly):
    for use in (pickle.dumps, copy.deepcopy):
        for name, one in {"Ranker": poly, "Index": poly.index(["a", "b"])}.items():
            with pytest.raises(InputError, match=f"^{name}: it cannot be pickled.*load it in each process"):
                use(one)


class OwnReranker:
    """A model of somebody else's."""

    def __init__(self, scores):
        self.scores = scores

    def score_batch(self, contexts, candidates):
        return self.scores(candidates)


def test_scores_of_ones_own_reranker_are_checked(poly):
    index = poly.index(["a", "b", "c"])
    found = index.search(
        "hi", 2, rerank=OwnReranker(lambda some: [[float(len(t) + (t == "b")) for t in row] for row in some])
    )
    assert found[0].text == "b" and len(found) == 2, "lists will do"
    for scores, message in (
        (lambda some: [np.full(len(row), np.nan) for row in some], "model: its scores are not numbers"),
        (lambda some: [np.ones(1) for _ in some], "rerank: expected scores of each list"),
        (lambda some: [np.ones((len(row), 1)) for row in some], "rerank: expected scores of each list"),
        (lambda some: [np.arange(9.0) for _ in some], "rerank: expected scores of each list"),
        (lambda some: [["x"] * len(row) for row in some], "rerank: expected scores of each list"),
        (lambda some: [], "rerank: expected scores of each list"),
        (lambda some: None, "rerank: expected scores of each list"),
    ):
        with pytest.raises(InputError, match=message):
            index.search("hi", 2, rerank=OwnReranker(scores))


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b"])
def test_texts_that_are_no_path_are_refused(poly, path):
    for name, use in {
        "candidates": lambda: poly.index(path),
        "folder": lambda: poly.index(["a"], path),
        "run_dir": lambda: polyjax.fit([{"context": "a", "label": "b"}], run_dir=path),
        "data": lambda: polyjax.evaluate(poly, path),
        "out": lambda: polyjax.mine(poly, [{"context": "a", "label": "b"}], path),
    }.items():
        with pytest.raises(InputError, match=f"^{name}: expected a path that a file or folder can have"):
            use()
    for use in (Ranker.load, poly.open_index, polyjax.Run, polyjax.Run.load):
        with pytest.raises(InputError, match="expected a path that a file or folder can have"):
            use(path)


def test_several_indexes_of_one_ranker(poly, tmp_path):
    """Each is searched by itself; the ranker searches the latest; programs are shared."""
    one, other = poly.index(["hello", "no"]), poly.index(["yes , sure", "how are you ?"], tmp_path / "i")
    assert isinstance(one, Index)
    for index in (one, other):
        expected = [found.text for found in poly.rank("hi", index.texts)]
        assert [found.text for found in index.search("hi")] == expected
    assert poly.search("hi") == other.search("hi")
    compiled = poly.compilations
    third = poly.index(["i am a nurse", "i like tea"])
    third.search("hi")
    assert poly.search("hi") == third.search("hi") and poly.compilations == compiled
    poly.open_index(tmp_path / "i")
    assert poly.search("hi") == other.search("hi")
    assert one.search_batch(["hi", ["a", "b"]], 1)[0][0].text == one.search("hi", 1)[0].text


def test_what_was_found_shows_itself_as_lines(poly, capfd):
    """Scores and texts, as on the command line; a long text is cut, line breaks are spaces."""
    texts = ["hello\nthere", "no " * 200, *(f"candidate {i}" for i in range(30))]
    ranked = poly.rank("hi", texts)
    assert isinstance(ranked, list) and ranked == list(ranked)
    lines = repr(ranked).splitlines()
    assert len(lines) == 21 and lines[-1] == "... and 12 more"
    assert repr(poly.rank("hi", texts[:1])) == f"{poly.score('hi', texts[:1])[0]:8.4f}  hello there"
    assert len(repr(poly.rank("hi", texts[1:2]))) == 8 + 2 + 100
    index = poly.index([*texts, "HELLO there"])
    assert "copies of earlier candidates, which are left out: 1" in capfd.readouterr().err
    poly.index([*texts, "HELLO there"], quiet=True)
    assert capfd.readouterr().err == ""
    *found, exact = str(index.search("hi", 3)).splitlines()
    assert [line[:8] for line in found] == [f"{one.score:8.4f}" for one in index.search("hi", 3)]
    assert exact == "(certified: as if every candidate had been scored)"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_an_index_is_added_to_and_removed_from(poly, tmp_path, kept, dtype):
    """On disk and in memory alike; what is searched is what ranking all of it gives."""
    index = poly.index(["hello", "no", "Hello", "yes"], tmp_path / "i" if kept else None, dtype=dtype)
    index.search("hi")  # a search that was made before the change
    counted = []
    assert index.add(["maybe", "NO", "well then", "maybe"], progress=counted.append) == [4, 1, 5, 4]
    assert sum(counted) == 4
    assert index.remove(ids=[0, 2]) == 1 and index.remove(texts=["Maybe"]) == 1 and index.remove(ids=[0]) == 0
    assert index.ids == [1, 3, 5] and index.texts == ["no", "yes", "well then"] and len(index) == 3
    assert index.add(["hello"]) == [6]
    found = index.search("hi there")
    expected = poly.rank("hi there", index.texts)
    assert {one.id: one.text for one in found} == dict(index.items())
    if dtype == "float32":
        assert [one.text for one in found] == [one.text for one in expected]
        np.testing.assert_allclose([o.score for o in found], [o.score for o in expected], atol=1e-5)
    if kept:
        again = poly.open_index(tmp_path / "i")
        assert dict(again.items()) == dict(index.items())
        assert index.compact() == 2 and dict(index.items()) == dict(again.items())
        assert [o.id for o in index.search("hi there")] == [o.id for o in found]


def test_a_change_by_another_process_is_seen_by_the_next_change(poly, tmp_path):
    one = poly.index(["hello", "no"], tmp_path / "i")
    poly.open_index(tmp_path / "i").add(["yes"])
    assert len(one) == 2
    assert one.remove(texts=["yes"]) == 1 and len(one) == 2
    assert one.add(["again"]) == [3] and one.texts == ["hello", "no", "again"]


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.add(["yes"]),
        lambda index: index.remove(ids=[1]),
        lambda index: index.remove(texts=["one"]),
        lambda index: index.compact(),
    ],
)
def test_an_index_that_was_built_again_is_not_changed_by_ids_from_before(poly, tmp_path, change):
    """Id 1 was "two"; it is "one" now."""
    folder = tmp_path / "i"
    stale = poly.index(["one", "two"], folder)
    poly.open_index(folder).add(["three"])
    poly.index(["zero", "one", "two"], folder, replace=True)
    with pytest.raises(InputError, match="was built again, and its ids mean other candidates; open it again"):
        change(stale)
    opened = poly.open_index(folder)
    assert opened.texts == ["zero", "one", "two"] and stale.texts == ["one", "two"]
    assert opened.remove(ids=[1]) == 1 and opened.texts == ["zero", "two"]


def test_another_index_is_replaced_only_where_it_is_asked_for(poly, parlai_models, tmp_path):
    folder = tmp_path / "i"
    index = poly.index(["one", "two"], folder)
    written = (folder / "manifest.json").stat().st_mtime_ns
    assert poly.index(["one", "two"], folder).texts == index.texts
    assert (folder / "manifest.json").stat().st_mtime_ns == written, "it is opened"
    other = Ranker.from_parlai(parlai_models / "bi_shared_max_trained" / "model")
    for call, problem in (
        (lambda: poly.index(["one", "three"], folder), "the index holds other candidates"),
        (lambda: poly.index(["one", "two"], folder, dtype="int8"), "the index keeps vectors in float32"),
        (lambda: other.index(["one", "two"], folder), "the index was made with another model"),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert error.value.argument == str(folder) and error.value.problem.startswith(problem)
        assert error.value.fix == "set `replace` to build over it, or name another folder"
    assert poly.open_index(folder).texts == ["one", "two"]
    index.add(["three"])
    with pytest.raises(InputError, match="has been added to or removed from"):
        poly.index(["one", "two"], folder)
    assert poly.index(["one", "two"], folder, replace=True).texts == ["one", "two"]
    (folder / "manifest.json").write_text("broken")
    assert poly.index(["one", "two"], folder).texts == ["one", "two"], "of a broken one nothing is lost"


def test_each_text_of_a_call_is_checked_and_tokenised_once(poly, monkeypatch):
    checked, tokenised = Counter(), Counter()
    as_texts, encode = arguments.as_texts, poly.scorer.text.tokenizer.encode

    def counting(name, texts):
        checked.update([texts] if isinstance(texts, str) else texts)
        return as_texts(name, texts)

    def counted(texts):
        tokenised.update(texts)
        return encode(texts)

    for module in ("polyjax.inference.arguments", "polyjax.ranker"):
        monkeypatch.setattr(f"{module}.as_texts", counting)
    monkeypatch.setattr(poly.scorer.text.tokenizer, "encode", counted)
    texts = ["a first turn", "a second turn", "one reply", "another reply"]
    poly.rank(texts[:2], texts[2:])
    assert checked == tokenised == Counter(texts)
    poly.rank(texts[:2], texts[2:])
    assert tokenised == Counter(texts), "it was asked a moment ago"


@pytest.mark.parametrize("arch", ["poly", "cross"])
def test_ranking_compiles_nothing_after_compile(arch, request):
    ranker = request.getfixturevalue(arch)
    assert ranker.compile(n_candidates=40) > 0
    before = ranker.compilations
    draw = np.random.default_rng(0)
    for _ in range(40):
        texts = ["ab " * int(draw.integers(1, 30)) + str(i) for i in range(draw.integers(1, 41))]
        ranker.rank(["hi there " * int(draw.integers(1, 60))] * int(draw.integers(1, 4)), texts)
    assert ranker.compilations == before and ranker.compile(n_candidates=40) == 0
    if arch == "poly":
        ranker.rank("hi", [str(i) for i in range(65)])
        assert ranker.compilations > before, "more candidates have shapes of their own"


def test_compile_is_for_searching_as_well(poly):
    poly.index(REPLIES)
    poly.compile(3, n_candidates=3)
    before = poly.compilations
    poly.rank(CONTEXT, REPLIES)
    poly.search(CONTEXT, 3)
    assert poly.compilations == before


def asked(ranker: Ranker, index: Index, seed: int) -> list:
    """What a client gets, for questions that its number seeds."""
    draw, answers = np.random.default_rng(seed), []
    for _ in range(6):
        context = [f"turn {i} " * int(draw.integers(1, 12)) for i in draw.integers(0, 9, draw.integers(1, 4))]
        texts = [
            f"reply {i} " * int(draw.integers(1, 5)) for i in draw.permutation(40)[: draw.integers(1, 30)]
        ]
        answers.append([(one.text, round(one.score, 4)) for one in ranker.rank(context, texts)])
        for method in ("scan", "certified"):
            answers.append([(one.id, round(one.score, 4)) for one in index.search(context, 5, method=method)])
    return answers


def test_eight_threads_get_what_one_gets_and_compile_each_shape_once(parlai_models):
    alone, shared = (Ranker.from_parlai(parlai_models / POLY / "model") for _ in range(2))
    texts = [f"candidate {i} of many" for i in range(3000)]
    alone.index(texts), shared.index(texts)
    expected = [asked(alone, alone._latest(), seed) for seed in range(8)]
    together = threading.Barrier(8)

    def client(seed):
        together.wait()
        return asked(shared, shared._latest(), seed)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client, range(8)))
    for one, other in zip(found, expected, strict=True):
        for answers, wanted in zip(one, other, strict=True):
            assert [name for name, _ in answers] == [name for name, _ in wanted]
            np.testing.assert_allclose([s for _, s in answers], [s for _, s in wanted], atol=2e-4)
    assert shared.compilations == alone.compilations


SERVE = """
import json, sys, threading
import numpy as np
from polyjax import Ranker

def taken():
    return next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("RssAnon")) / 1000

ranker = Ranker.from_parlai(sys.argv[1])
ranker.scorer.text._store._limit = 2_000_000  # which the first questions fill
index = ranker.index([f"candidate {i}" for i in range(2000)])
ranker.compile(5, n_candidates=20)

def client(first, n):
    for i in range(first, first + n):
        ranker.rank(f"question {i} " * 2000, [f"reply {i} {j} " * 50 for j in range(20)])
        index.search([f"question {i}", f"and {i}"], 5)

def serve(first, n):
    threads = [threading.Thread(target=client, args=(first + 1000 * i, n)) for i in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]

serve(0, 20)
marks = [taken()]
for i in range(1, 4):
    serve(10_000 * i, 20)
    marks.append(taken())
print(json.dumps({"mb": marks, "kept": ranker.scorer.text._store.n_bytes}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the memory of a process on Linux")
def test_eight_threads_that_ask_for_ever_new_texts_do_not_grow(parlai_models):
    command = [sys.executable, "-c", SERVE, str(parlai_models / POLY / "model")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["kept"] <= 2_000_000 < token_store.CACHE_BYTES
    # 160 questions and 3,200 replies a round: their texts and ids are 17 MB.
    assert found["mb"][-1] - found["mb"][1] < 10


IMPORTS = """
import json, sys
heavy = ("orbax", "matplotlib", "tensorflow_datasets", "grain")
seen = lambda: [name for name in heavy if name in sys.modules]
import polyjax
found = {"import": seen()}
ranker = polyjax.Ranker.from_encoder("minilm")
ranker.rank("hi", ["a", "b"])
ranker.index(["a", "b"])
ranker.search("hi")
found["from_encoder"] = seen()
if len(sys.argv) > 1:
    polyjax.Ranker.load(sys.argv[1]).rank("hi", ["a", "b"])
    found["load"] = seen()
print(json.dumps(found))
"""


def test_a_ranker_imports_what_ranking_needs_only(parlai_models, tmp_path):
    model, run = parlai_models / POLY / "model", tmp_path / "run"
    command = [sys.executable, "-m", "polyjax.cli", "convert", "parlai", str(model), str(run)]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(run)], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == {"import": [], "from_encoder": [], "load": ["orbax"]}


SETTINGS = """
import jax, sys
names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
before = {name: getattr(jax.config, name) for name in names}
import polyjax
polyjax.Ranker.from_encoder("minilm").rank("hi", ["a", "b"])
polyjax.Ranker.from_parlai(sys.argv[1]).index(["a", "b"])
assert {name: getattr(jax.config, name) for name in names} == before
"""


def test_a_library_leaves_its_users_process_alone(parlai_models):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    command = [sys.executable, "-c", SETTINGS, str(parlai_models / POLY / "model")]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from flax import nnx
from polyjax import BiConfig, EncoderConfig, InputError, Ranker, make_scorer
model = sys.argv[1]
if sys.argv[2] == "used":
    ranker = Ranker.from_parlai(model)
    ranker.index(["a", "b"])
    ranker.search("hi")
    rngs = nnx.Rngs(0)
if sys.argv[2] == "failed":
    try:
        Ranker.load("nowhere")
    except InputError:
        pass
calls = {
    "rank": lambda: ranker.rank("hello there", ["a", "b", "c"]),
    "search": lambda: ranker.search("hello there"),
    "load": lambda: Ranker.from_parlai(model),
    "encoder": lambda: Ranker.from_encoder("minilm"),
    "scorer": lambda: make_scorer(EncoderConfig.tiny(50), BiConfig(), rngs=rngs),
}
for name, call in calls.items() if sys.argv[2] == "used" else [("load", calls["load"])]:
    child = os.fork()
    if child == 0:
        try:
            call()
            os._exit(0)
        except InputError as error:
            os._exit(7 if "forked" in error.problem and "spawn" in error.fix else 8)
    print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("before", "statuses"),
    [
        ("used", {"rank": 7, "search": 7, "load": 7, "encoder": 7, "scorer": 7}),
        ("unused", {"load": 0}),
        ("failed", {"load": 0}),
    ],
)
def test_a_forked_worker_is_told_instead_of_waiting_for_ever(parlai_models, before, statuses):
    """As gunicorn --preload and multiprocessing's fork make them; one that was forked before is as any."""
    command = [sys.executable, "-c", FORK, str(parlai_models / POLY / "model"), before]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    found = dict(line.split() for line in done.stdout.splitlines())
    assert {name: int(status) for name, status in found.items()} == statuses


def test_the_process_that_began_to_compute_may_go_on(monkeypatch):
    monkeypatch.setattr(forks, "_started_in", os.getpid())
    forks.refuse_forked()
    monkeypatch.setattr(forks, "_started_in", os.getpid() + 1)
    with pytest.raises(InputError) as error:
        forks.refuse_forked()
    assert not error.value.is_argument


FORKED_TRAINING = """
import os, sys, warnings
import jax.numpy as jnp
import polyjax

warnings.simplefilter("ignore")
if sys.argv[1] == "used":
    jnp.zeros(3).block_until_ready()  # by the caller, not by polyjax
if pid := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    polyjax.fit("nowhere.jsonl")
except polyjax.InputError as error:
    os._exit(7 if error.argument == "fork" else 0)
os._exit(1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(("before", "status"), [("used", 7), ("unused", 0)])
def test_training_in_a_forked_process_is_refused_whoever_started_jax(before, status, tmp_path):
    command = [sys.executable, "-c", FORKED_TRAINING, before]
    assert subprocess.run(command, cwd=tmp_path, timeout=120).returncode == status


def test_a_score_is_explained_by_its_parts(poly):
    text = "i like tea very much"
    found = poly.explain(["hello", "what do you drink ?"], text, top=3)
    scores = poly.score(["hello", "what do you drink ?"], [text])
    np.testing.assert_allclose(found.score, scores[0], rtol=1e-4)
    np.testing.assert_allclose(found.scale * (found.weights * found.products).sum(), found.score, rtol=1e-5)
    assert found.weights.shape == found.products.shape == (64,)
    np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)
    assert found.reads.shape == (3, len(found.tokens)) and (found.reads >= 0).all()
    np.testing.assert_allclose(found.reads.sum(1), 1, rtol=1e-4)
    assert found.vectors.tolist() == np.argsort(-found.weights, kind="stable")[:3].tolist()
    assert found.tokens[:4] == ["__start__", "he@@", "ll@@", "o"]


def test_what_has_no_parts_is_not_explained(ranker, cross):
    for other in (ranker, cross):
        with pytest.raises(InputError, match="explain a poly-encoder"):
            other.explain("hi", "yes")
