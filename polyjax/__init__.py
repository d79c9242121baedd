"""polyjax: pick the best of many texts for a context, with bi-, poly- and cross-encoders in JAX.

Poly-encoders: Humeau et al., ICLR 2020, arXiv 1905.01969.
"""

from polyjax.errors import InputError
from polyjax.nn.encoders import Encoder, EncoderConfig
from polyjax.nn.heads import BiConfig, CrossConfig, HeadConfig, PolyConfig
from polyjax.nn.scorers import CrossScorer, DualScorer, ModelConfig, make_scorer
from polyjax.ranker import Ranked, Ranker
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.search.searcher import Found
from polyjax.types import Batch, DualInputs, Example, PairInputs, Tokens
from polyjax.version import __version__

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
    "InputError",
    "ModelConfig",
    "PairInputs",
    "PolyConfig",
    "Ranked",
    "Ranker",
    "Tokens",
    "__version__",
    "make_scorer",
]
