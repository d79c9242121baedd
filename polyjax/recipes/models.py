"""Loads the model that a command names. It imports only what ranking needs."""

from pathlib import Path

from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker


def load_ranker(model: Path, *, step: int | None = None, dtype: Dtype | None = None) -> Ranker:
    """The model of a run directory or model folder, or ``minilm``, an encoder not trained to rank.

    Raises:
        InputError: as ``Ranker.load``.
    """
    if str(model) == "minilm" and not model.is_dir():
        return Ranker.from_encoder("minilm", dtype=dtype)
    return Ranker.load(model, step=step, dtype=dtype)
