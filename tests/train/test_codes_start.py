"""Codes of a poly-encoder that start from clusters of the training contexts' token outputs."""

import numpy as np
import pytest
from flax import nnx

import toy
from polyjax import CrossConfig, InputError, PolyConfig, make_scorer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.recipes.start import start_codes

TEXT = TextConfig(context_tokens=16, candidate_tokens=8, buckets=(16,))


def codes(head=None, *, seed=0, n=40):
    """The codes that training on the toy rows starts from."""
    head = head or PolyConfig(n_codes=4, codes_start="clusters")
    scorer = make_scorer(toy.SHAPE, head, rngs=nnx.Rngs(0))
    drawn = np.asarray(scorer.head.codes[...])
    start_codes(scorer, TextEncoder(toy.Letters(), TEXT), toy.examples(n), seed=seed)
    return np.asarray(scorer.head.codes[...]), drawn


def test_they_are_a_function_of_the_rows_and_the_seed():
    found, drawn = codes()
    np.testing.assert_array_equal(found, codes()[0])
    assert not np.array_equal(found, codes(seed=1)[0]) and not np.array_equal(found, codes(n=30)[0])
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    assert (unit @ unit.T - 2 * np.eye(4)).max() < 0.9, "they differ from each other"
    assert np.linalg.norm(found, axis=1) == pytest.approx(0.05 * 32**0.5, rel=1e-4)
    assert not np.array_equal(found, drawn)


def test_other_heads_start_as_drawn():
    found, drawn = codes(PolyConfig(n_codes=4))
    np.testing.assert_array_equal(found, drawn)
    scorer = make_scorer(toy.SHAPE, CrossConfig(), rngs=nnx.Rngs(0))
    start_codes(scorer, TextEncoder(toy.Letters(), TEXT), toy.examples(4), seed=0)  # has no codes


def test_more_codes_than_outputs_are_refused():
    with pytest.raises(InputError) as error:
        codes(PolyConfig(n_codes=500, codes_start="clusters"), n=2)
    assert (error.value.argument, error.value.got) == ("head.n_codes", 500)
