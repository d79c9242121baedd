"""The guide of a run: a model that finds false negatives, in-batch negatives that are right answers."""

import hashlib
from collections.abc import Sequence

import numpy as np

from polyjax.data.guide import Guide
from polyjax.errors import InputError, shown
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.ranker import Ranker
from polyjax.recipes.mining import check_fixed, examples_digest, model_digest
from polyjax.recipes.models import load_ranker
from polyjax.recipes.settings import RunConfig
from polyjax.runtime.files import save_array
from polyjax.types import Example


def guide_of(config: RunConfig, examples: Sequence[Example]) -> Guide | None:
    """The guide in the settings; its vectors are computed once and kept in the run directory.

    Args:
        config: settings of the run, whose directory this process has locked.
        examples: the training rows.

    Returns:
        The guide; None if the settings name no model.

    Raises:
        InputError: the model is missing or is not a bi-encoder.
    """
    settings = config.guide
    if settings.model is None:
        return None
    check_fixed(examples, argument="guide")
    ranker = load_ranker(settings.model)
    digest = hashlib.sha256(f"{model_digest(ranker)} {examples_digest(examples)}".encode()).hexdigest()
    path = config.folder / f"guide-{digest[:16]}.npy"
    with primary_first("guide"):
        if is_primary() and not path.exists():
            save_array(path, _vectors(ranker, examples))
        contexts, labels = np.load(path, allow_pickle=False)
    return Guide(contexts, labels, settings.margin, settings.relative)


def _vectors(ranker: Ranker, examples: Sequence[Example]) -> np.ndarray:
    """The vectors of the contexts and of the labels, float32 [2, n, e]."""
    scorer = ranker.scorer
    if scorer.settings.head.arch != "bi" or scorer.head.product_form is None:
        raise InputError(
            "guide",
            expected="a bi-encoder, with one vector for a context",
            got=shown(f"a {scorer.settings.head.arch}-encoder"),
        )
    vectors = np.empty((2, len(examples), scorer.dim), np.float32)
    for places, batch, _ in scorer.context_batches([example.context for example in examples]):
        vectors[0, places] = np.asarray(batch)[: len(places), 0]
    vectors[1] = scorer.encode_candidates([example.label_text for example in examples])
    return vectors
