"""Loads the model that a command names. It imports only what ranking needs."""

import os
from pathlib import Path
from typing import Annotated

import tyro
from jax.sharding import Mesh

from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.interop.hub import hub_name
from polyjax.interop.pretrained import MINILM, is_model_folder, names_minilm, zero_shot_scorer
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker

ModelName = Annotated[str, tyro.conf.arg(metavar="MODEL")]
"""A flag or argument that names a model as ``load_ranker`` takes it."""


def load_ranker(
    model: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: Dtype | None = None,
    mesh: Mesh | None = None,
) -> Ranker:
    """The model that a command names.

    Args:
        model: a run directory, a folder of sentence-transformers or transformers, ``organisation/model`` of
            the hub with or without ``@revision``, or ``minilm``, an encoder not trained to rank.
        step: a saved step of a run; the best one by default.
        dtype: dtype of the computation; that of the model by default.
        mesh: devices that share each batch of texts.

    Raises:
        InputError: there is no such model, a file of it is missing or broken, or an argument is invalid.
    """
    if not names_minilm(model):
        return Ranker.load(model, step=step, dtype=dtype, mesh=mesh)
    if step is not None:
        raise InputError(
            "step", problem="only run directories have saved steps", got=step, fix="leave it out"
        )
    return Ranker(TextScorer(*zero_shot_scorer(MINILM, dtype=dtype), mesh=mesh))


def run_folder(model: str | os.PathLike[str]) -> Path | None:
    """The run directory that a command names, whether or not it exists; None for a model from elsewhere."""
    elsewhere = names_minilm(model) or hub_name(model) is not None or is_model_folder(Path(model))
    return None if elsewhere else Path(model)
