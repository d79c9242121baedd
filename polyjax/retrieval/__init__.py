"""Indexes of encoded candidates, in memory or on disk, and search."""

from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.store import CandidateIndex
from polyjax.retrieval.making import make_index
from polyjax.retrieval.reranking import Reranker
from polyjax.retrieval.search.searcher import Found, Method, Results
from polyjax.retrieval.searchable import Index
from polyjax.retrieval.stages.faiss import FaissStage, FirstStage

__all__ = [
    "CandidateIndex",
    "FaissStage",
    "FirstStage",
    "Found",
    "Index",
    "IndexDtype",
    "Method",
    "Reranker",
    "Results",
    "make_index",
]
