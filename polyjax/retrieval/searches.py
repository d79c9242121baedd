"""A ranker's indexes: built, opened, and searched through it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from jax.sharding import Mesh

from polyjax.errors import InputError
from polyjax.inference.arguments import Context, as_path, check_choice, check_folder, check_mesh
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.build import check_dual
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.store import open_index
from polyjax.retrieval.making import make_index
from polyjax.retrieval.reranking import Reranker
from polyjax.retrieval.search.programs import SearchPrograms
from polyjax.retrieval.search.searcher import Method, Results
from polyjax.retrieval.searchable import Index
from polyjax.retrieval.stages.faiss import FirstStage
from polyjax.runtime.progress import errors, hushed


class SearchesIndexes:
    """What a ranker does with indexes. It may have several; ``search`` means the latest.

    Attributes:
        scorer: the model with its tokenizer.
    """

    scorer: TextScorer
    _index: Index | None
    _programs: SearchPrograms | None

    def index(
        self,
        candidates: str | os.PathLike[str] | Sequence[str],
        folder: str | os.PathLike[str] | None = None,
        *,
        dtype: IndexDtype = "float32",
        mesh: Mesh | None = None,
        replace: bool = False,
        quiet: bool = False,
    ) -> Index:
        """Encode candidates once into an index, which ``search`` of this ranker then searches.

        A ranker may have several indexes, which share its compiled programs.

        Args:
            candidates: texts, or the path of a file with one per line. Their places in the list or file are
                their ids; of texts that are one (``polyjax.data.identity``) the first is kept.
            folder: where the index is kept, to be opened with ``open_index``; in memory if None. An index
                of exactly these candidates is opened; an interrupted build is resumed.
            dtype: of the kept vectors; bytes per number: float32 6 (a bfloat16 copy too), bfloat16 2, int8 1.
            mesh: devices that share the candidates, of one process or of several.
            replace: always build, and replace an existing index at the end.
            quiet: print nothing on standard error: no progress, and no count of what was cut or left out.

        Raises:
            InputError: the model is a cross-encoder, another index is in the folder, an argument cannot work,
                or a file or folder cannot be read or written.
        """
        check_dual(self.scorer)
        check_mesh(mesh)
        check_choice("dtype", dtype, get_args(IndexDtype))
        if isinstance(candidates, str | os.PathLike):
            check_folder(candidates, "candidates")
        with hushed(quiet, errors):
            self._index = make_index(
                self.scorer,
                candidates,
                as_path(folder),
                dtype=dtype,
                mesh=mesh,
                replace=replace,
                programs=self._programs,
            )
        return self._index

    def open_index(self, folder: str | os.PathLike[str], *, mesh: Mesh | None = None) -> Index:
        """Open an index that was built before with this model.

        Args:
            folder: of the index.
            mesh: devices that share the candidates, of one process or of several.

        Raises:
            InputError: there is no index, it is broken, or it was made with another model.
        """
        check_dual(self.scorer)
        check_mesh(mesh)
        check_folder(folder)
        found = open_index(Path(folder), scorer=self.scorer)
        self._index = Index(self.scorer, found, folder=Path(folder), mesh=mesh, programs=self._programs)
        return self._index

    def search(
        self,
        context: Context,
        top_k: int = 10,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
        rerank: Reranker | None = None,
        rerank_top: int = 50,
    ) -> Results:
        """The best candidates of the index that was built or opened last; see ``Index.search``."""
        options = {"method": method, "first_stage": first_stage, "rerank": rerank, "rerank_top": rerank_top}
        return self._latest().search(context, top_k, **options)

    def search_batch(
        self,
        contexts: Sequence[Context],
        top_k: int = 10,
        *,
        method: Method = "auto",
        first_stage: FirstStage | None = None,
        rerank: Reranker | None = None,
        rerank_top: int = 50,
    ) -> list[Results]:
        """``search`` for several contexts, which share the scan and the re-ranker's batches."""
        options = {"method": method, "first_stage": first_stage, "rerank": rerank, "rerank_top": rerank_top}
        return self._latest().search_batch(contexts, top_k, **options)

    def measure_recall(
        self, contexts: Sequence[Context], first_stage: FirstStage, *, top_k: int = 10
    ) -> float:
        """Share of the scan's best candidates that a first stage finds; see ``Index.measure_recall``."""
        return self._latest().measure_recall(contexts, first_stage, top_k=top_k)

    def _latest(self) -> Index:
        if self._index is None:
            problem, fix = "there is no index to search", "call index(candidates) or open_index(folder)"
            raise InputError("index", problem=problem, fix=fix, is_argument=False)
        return self._index
