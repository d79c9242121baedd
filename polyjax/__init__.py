"""polyjax: pick the best of many texts for a context, with bi-, poly- and cross-encoders in JAX.

Poly-encoders: Humeau et al., ICLR 2020, arXiv 1905.01969.
"""

import importlib
from typing import TYPE_CHECKING, Any

from polyjax.config import part
from polyjax.errors import InputError
from polyjax.nn.encoders import Encoder, EncoderConfig
from polyjax.nn.heads import BiConfig, CrossConfig, HeadConfig, PolyConfig, ProductForm
from polyjax.nn.scorers import CrossScorer, DualScorer, ModelConfig, make_scorer
from polyjax.ranker import Ranker
from polyjax.retrieval import CandidateIndex, Found, Index
from polyjax.types import Batch, DualInputs, Example, Listed, PairInputs, Ranked, Shared, Tokens
from polyjax.version import __version__

if TYPE_CHECKING:
    from polyjax.recipes.evaluate import evaluate
    from polyjax.recipes.fit import fit
    from polyjax.recipes.mine import mine
    from polyjax.recipes.run import Run

_LATER = {
    "evaluate": "polyjax.recipes.evaluate",
    "fit": "polyjax.recipes.fit",
    "mine": "polyjax.recipes.mine",
    "Run": "polyjax.recipes.run",
}
"""Training is imported on demand: ranking needs no data sets, checkpoints or optimisers."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'polyjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "Batch",
    "BiConfig",
    "CandidateIndex",
    "CrossConfig",
    "CrossScorer",
    "DualInputs",
    "DualScorer",
    "Encoder",
    "EncoderConfig",
    "Example",
    "Found",
    "HeadConfig",
    "Index",
    "InputError",
    "Listed",
    "ModelConfig",
    "PairInputs",
    "PolyConfig",
    "ProductForm",
    "Ranked",
    "Ranker",
    "Run",
    "Shared",
    "Tokens",
    "__version__",
    "evaluate",
    "fit",
    "make_scorer",
    "mine",
    "part",
]
