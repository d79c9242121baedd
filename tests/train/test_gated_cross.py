"""The cross-encoder that starts as the bi-encoder: it is one while the gates are shut, and they can open."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import toy
from conftest import ENCODERS, random_tokens, tiny
from polyjax import BiConfig, CrossConfig, DualInputs, InputError, PairInputs, PolyConfig, make_scorer
from polyjax.cli.training_flags import parse_run
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.interop.huggingface import minilm_folder
from polyjax.nn.heads import GatedCrossConfig
from polyjax.recipes.start import encoder_config, initial_scorer
from polyjax.runs import Checkpoints, ModelCard, write_model
from polyjax.types import Listed, Tokens
from toy import Letters

GATED = ["bert", "pre-norm", "aiayn", "xlm", "roberta", "distilbert", "electra", "mpnet"]
SHUT = GatedCrossConfig(gate=-np.inf, normalize=True, score_scale=20.0)


def texts(rng, b=3, c=2):
    """Contexts, candidates of each, and the pairs of both."""
    context = random_tokens(rng, [9, 4, 6], width=9)
    candidates = random_tokens(rng, rng.integers(2, 7, (b, c)), width=7)
    rows = np.zeros((3, b, c, 17), np.int32)
    for i in range(b):
        for j in range(c):
            first, second = (t.ids[at][t.mask[at]] for t, at in ((context, i), (candidates, (i, j))))
            n = len(first) + len(second)
            rows[0, i, j, :n] = np.concatenate([first, second])
            rows[1, i, j, :n], rows[2, i, j, len(first) : n] = 1, 1
    return DualInputs(context, listed=Listed(candidates)), PairInputs(Tokens(rows[0], rows[1] > 0, rows[2]))


def same_weights(encoder, head, bi):
    """A gated cross-encoder with the transformer of a bi-encoder."""
    cross = make_scorer(encoder, head, rngs=nnx.Rngs(1))
    nnx.update(cross.encoder, nnx.state(bi.context_encoder))
    return cross


@pytest.mark.parametrize("name", GATED)
def test_with_shut_gates_it_is_the_bi_encoder_of_the_same_weights(name, rng):
    encoder = ENCODERS[name]
    bi = make_scorer(
        encoder, BiConfig(shared_encoder=True, normalize=True, score_scale=20.0), rngs=nnx.Rngs(0)
    )
    dual, pairs = texts(rng)
    expected = bi(dual)
    assert float(jnp.std(expected)) > 1e-3, "the comparison would be empty"
    np.testing.assert_allclose(same_weights(encoder, SHUT, bi)(pairs), expected, rtol=1e-5, atol=1e-5)
    ajar = same_weights(encoder, dataclasses.replace(SHUT, gate=0.0), bi)(pairs)
    assert np.abs(ajar - expected).max() > 1e-3, "the texts see each other through open gates"


@pytest.mark.parametrize("reduction", ["first", "max", "mean_sqrt", "last"])
def test_each_reduction_is_that_of_each_text(reduction, rng):
    bi = make_scorer(tiny(), BiConfig(shared_encoder=True, reduction=reduction), rngs=nnx.Rngs(0))
    cross = same_weights(tiny(), GatedCrossConfig(gate=-np.inf, reduction=reduction), bi)
    dual, pairs = texts(rng)
    np.testing.assert_allclose(cross(pairs), bi(dual), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pool_prompts", [True, False])
def test_pairs_of_texts_are_read_as_a_bi_encoder_reads_them(pool_prompts):
    """From words to scores, with prompts, turns that are cut and padding."""
    config = TextConfig(
        max_turns=2,
        context_tokens=10,
        candidate_tokens=6,
        buckets=(24,),
        pairs="apart",
        context_prompt="qq",
        candidate_prompt="p",
        pool_prompts=pool_prompts,
    )
    text = TextEncoder(Letters(), config)
    contexts, candidates = [["ab", "cde"], ["abcdefghijk"]], ["xyz", "ab", "abcdefgh"]
    lists = [text.context(turns) for turns in contexts], [text.candidate(one) for one in candidates]
    pairs = [text.pair(context, candidate) for context in lists[0] for candidate in lists[1]]
    planned = [text.pair_length(len(context), len(one)) for context in lists[0] for one in lists[1]]
    assert planned == [len(ids) for ids, _ in pairs]
    assert config.pair_limit() == 16
    tokens = text.pad_pairs(pairs)
    encoder = tiny(vocab_size=Letters().vocab_size)
    bi = make_scorer(
        encoder, BiConfig(shared_encoder=True, normalize=True, score_scale=20.0), rngs=nnx.Rngs(0)
    )
    vectors, mask = bi.encode_context(text.pad_contexts(lists[0]))
    expected = bi.score(vectors, mask, bi.encode_candidates(text.pad_candidates(lists[1]))[None])
    found = same_weights(encoder, SHUT, bi).score_pairs(tokens).reshape(2, 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_pair_that_is_cut_as_a_whole_keeps_both_texts():
    text = TextEncoder(Letters(), TextConfig(pairs="apart", pair_tokens=10))
    row, first = text.pair(text.context(["abcdefgh"]), text.candidate("xy"))
    assert len(row) == 10 and first == 6 and row[first] == Letters.start_id


def test_the_gates_learn_and_so_does_the_linear_layer(rng):
    """The gradient of every gate is finite and not zero, however far it is shut."""
    scorer = make_scorer(
        tiny(), GatedCrossConfig(gate=-3.0, normalize=True, score_scale=20.0), rngs=nnx.Rngs(0)
    )
    _, pairs = texts(rng)
    graph, state = nnx.split(scorer)
    gradients = jax.grad(lambda state: (nnx.merge(graph, state)(pairs) ** 2).mean())(state)
    gate = np.asarray(gradients["head"]["gate"][...])
    assert gate.shape == (2, 2) and np.isfinite(gate).all() and (gate != 0).all()
    assert np.abs(gradients["head"]["linear"]["kernel"][...]).max() > 0
    assert not np.asarray(scorer.head.linear.kernel[...]).any(), "it starts at zero"
    np.testing.assert_array_equal(scorer.head.gates, np.full((2, 2), -3.0))


@pytest.mark.parametrize(
    "changes", [{"scan": True}, {"remat": True}, {"scan": True, "remat": True, "remat_keeps": "products"}]
)
def test_each_block_has_its_own_gates_however_the_blocks_are_run(changes, rng):
    head = GatedCrossConfig(normalize=True, score_scale=20.0)
    _, pairs = texts(rng)

    def scores_and_gradient(**changes):
        scorer = make_scorer(tiny(n_layers=4, **changes), head, rngs=nnx.Rngs(0))
        scorer.head.gate[...] = jnp.linspace(-0.1, 0.1, 8).reshape(4, 2)  # another gate everywhere
        graph, state = nnx.split(scorer)
        loss = lambda state: nnx.merge(graph, state)(pairs).std()  # noqa: E731
        return scorer(pairs), jax.grad(loss)(state)["head"]["gate"][...]

    expected, found = scores_and_gradient(), scores_and_gradient(**changes)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.6), ("float16", 0.1)])
def test_half_precision_gives_nearly_the_same_scores(dtype, atol, rng):
    head = GatedCrossConfig(normalize=True, score_scale=20.0)
    _, pairs = texts(rng)
    exact = make_scorer(tiny(), head, rngs=nnx.Rngs(0))(pairs)
    half = make_scorer(tiny(dtype=dtype), head, rngs=nnx.Rngs(0))(pairs)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, exact, atol=atol)


@pytest.mark.parametrize("name", ["modernbert", "albert", "deberta-v2", "nomic_bert", "gte"])
def test_encoders_without_gates_are_refused(name):
    with pytest.raises(InputError) as error:
        make_scorer(ENCODERS[name], GatedCrossConfig(), rngs=nnx.Rngs(0))
    assert error.value.argument == "encoder"
    assert str(error.value.got) == type(ENCODERS[name]).__name__


@pytest.mark.parametrize("gate", [np.nan, np.inf])
def test_a_gate_that_cannot_be_learnt_is_refused(gate):
    with pytest.raises(InputError) as error:
        GatedCrossConfig(gate=gate)
    assert error.value.argument == "head.gate"


def write_run(folder, head, **changes):
    """A run directory of an untrained model."""
    encoder = tiny(vocab_size=Letters.vocab_size, **changes)
    scorer = make_scorer(encoder, head, rngs=nnx.Rngs(5))
    text = TextConfig(context_tokens=10, candidate_tokens=6, buckets=(10,))
    tokenizer = HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE)  # one that is kept as a file
    write_model(folder, scorer, ModelCard(model=scorer.settings, text=text), tokenizer, config={})
    return scorer


def test_a_cross_encoder_starts_from_the_encoder_and_scale_of_a_run(tmp_path):
    """With shut gates it scores as the run's bi-encoder; from a poly-encoder it takes the same."""
    head = BiConfig(shared_encoder=True, normalize=True, score_scale=7.0, reduction="max")
    poly = PolyConfig(shared_encoder=True, normalize=True, score_scale=7.0, reduction="max", n_codes=3)
    scorer = write_run(tmp_path / "bi", head)
    write_run(tmp_path / "poly", poly)
    for name in ("bi", "poly"):
        config = parse_run(["--arch", "cross", "--init", str(tmp_path / name)], prog="run")
        assert config.head == GatedCrossConfig(normalize=True, score_scale=7.0, reduction="max")
        assert (config.text.pairs, config.text.context_tokens) == ("apart", 10)
        assert config.text.pair_limit() == 16 and 16 in config.text.buckets
        assert config.optim.learning_rate == 1.5e-5 and config.batch.n_negatives == 7
    config = parse_run(["--arch", "cross", "--init", str(tmp_path / "bi"), "--head.gate=-inf"], prog="run")
    cross = initial_scorer(config, encoder_config(config, None, 0), None)
    tokens = [random_tokens(np.random.default_rng(0), [5], width=5) for _ in range(2)]
    rows = [np.concatenate([getattr(t, name)[0] for t in tokens])[None] for name in ("ids", "mask")]
    pair = Tokens(*rows, np.repeat([0, 1], 5)[None].astype(np.int32))
    expected = scorer(DualInputs(tokens[0], listed=Listed(jax.tree.map(lambda x: x[None], tokens[1]))))
    # The run's arithmetic is the model's own.
    np.testing.assert_allclose(cross.score_pairs(pair), np.asarray(expected)[0], rtol=1e-5, atol=1e-5)
    joint = parse_run(["--arch", "cross", "--head", "joint", "--init", str(tmp_path / "bi")], prog="run")
    assert joint.head == CrossConfig(reduction="mean") and joint.text.pairs == "joined"


@pytest.mark.parametrize(
    ("head", "changes", "argument"),
    [
        (BiConfig(), {}, "init"),  # two encoders
        (BiConfig(shared_encoder=True, also=("max",)), {}, "init"),
        (BiConfig(shared_encoder=True, reduction="weighted_mean"), {}, "init"),
    ],
)
def test_runs_that_a_cross_encoder_cannot_start_from_are_refused(head, changes, argument, tmp_path):
    write_run(tmp_path / "run", head, **changes)
    with pytest.raises(InputError) as error:
        parse_run(["--arch", "cross", "--init", str(tmp_path / "run")], prog="run")
    assert error.value.argument == argument and "\n" not in str(error.value)


def test_another_tokenizer_than_the_runs_is_refused_with_it(tmp_path):
    write_run(tmp_path / "run", BiConfig(shared_encoder=True))
    words = ["--arch", "cross", "--init", str(tmp_path / "run"), "--tokenizer", "sentencepiece"]
    with pytest.raises(InputError, match="init: the model of .* brings its own encoder and tokenizer"):
        parse_run(words, prog="run")


def test_presets_choose_the_head_by_what_the_encoder_is():
    gated = parse_run(["--arch", "cross"], prog="run")
    assert isinstance(gated.head, GatedCrossConfig) and gated.text.pairs == "apart"
    assert 1e-5 <= gated.optim.learning_rate <= 2e-5 and (
        gated.batch.batch_size,
        gated.batch.n_negatives,
    ) == (8, 7)
    convai2 = parse_run(["--arch", "cross", "--task", "convai2"], prog="run").text
    assert convai2.pairs == "apart" and convai2.pair_limit() in convai2.buckets
    for arguments in (["--head", "joint"], ["--encoder", "tiny"]):
        joint = parse_run(["--arch", "cross", "--preset", "long", *arguments], prog="run")
        assert joint.head == CrossConfig(reduction="mean") and joint.text.pairs == "joined"
        assert (
            joint.optim.learning_rate == 1e-4 and joint.batch.n_negatives == 3 and joint.train.steps == 2000
        )


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        (["--arch", "poly", "--head", "joint"], "head"),
        (["--arch", "cross", "--head", "both"], "head"),
        (["--recipe", "convai2-cross", "--head", "gated"], "head"),
    ],
)
def test_heads_that_do_not_fit_are_refused(arguments, argument):
    with pytest.raises(InputError) as error:
        parse_run(arguments, prog="run")
    assert error.value.argument == argument


def test_gates_need_texts_that_are_apart():
    config = parse_run(["--arch", "cross"], prog="run")
    with pytest.raises(InputError) as error:
        dataclasses.replace(config, text=TextConfig())
    assert (error.value.argument, error.value.got) == ("text.pairs", "joined")


def test_a_killed_run_with_gates_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(toy.HEADS, "gated", GatedCrossConfig(normalize=True, score_scale=20.0))
    monkeypatch.setitem(toy.OPTIM, "gated", toy.OPTIM["cross"])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    toy.run(whole, "gated", steps=8, validate_every_steps=4, save_every_steps=4, quiet=True)

    class Killed(Exception):
        pass

    def kill(step, kind, metrics):
        if step == 4 and kind == "valid":
            raise Killed

    with pytest.raises(Killed):
        toy.run(
            cut, "gated", steps=8, validate_every_steps=4, save_every_steps=4, quiet=True, callbacks=[kill]
        )
    toy.run(cut, "gated", steps=8, validate_every_steps=4, save_every_steps=4, quiet=True)

    def weights(folder):
        scorer = nnx.eval_shape(lambda: make_scorer(toy.SHAPE, toy.HEADS["gated"], rngs=nnx.Rngs(0)))
        return jax.tree.leaves(nnx.state(Checkpoints(folder, read_only=True).restore_parameters(scorer, 8)))

    for one, other in zip(weights(whole), weights(cut), strict=True):
        np.testing.assert_array_equal(one, other)
