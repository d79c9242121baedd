"""Models as commands name them. Imports no more than ranking needs."""

from pathlib import Path

from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker


def load_ranker(model: Path, *, step: int | None = None, dtype: Dtype | None = None) -> Ranker:
    """The model of a run directory, or ``minilm``: an encoder that was not trained to rank."""
    if str(model) == "minilm" and not model.is_dir():
        return Ranker.from_encoder("minilm", dtype=dtype)
    return Ranker.load(model, step=step, dtype=dtype)
