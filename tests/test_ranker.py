"""Ranker.from_encoder: an encoder that saw no training to rank."""

import numpy as np
import pytest

from polyjax import InputError, Ranker

CONTEXT = ["hey! what did you do last weekend?", "we went hiking in the mountains"]
REPLIES = ["which trail did you take?", "my printer is out of ink", "nice, how was the view?"]


@pytest.fixture(scope="module")
def ranker():
    return Ranker.from_encoder("minilm")


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
    with pytest.raises(InputError, match="'nowhere': expected minilm, or a folder"):
        Ranker.from_encoder("nowhere")
