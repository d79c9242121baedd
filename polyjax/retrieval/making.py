"""Makes a searchable index of texts: builds it, or opens it if it exists."""

import os
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh

from polyjax.data.candidates import candidate_lines, say_copies
from polyjax.data.truncation import candidate_losses
from polyjax.inference.arguments import as_texts
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.build import build_index
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.standing import standing
from polyjax.retrieval.index.store import in_memory
from polyjax.retrieval.index.texts import first_places, text_digest
from polyjax.retrieval.search.programs import SearchPrograms
from polyjax.retrieval.searchable import Index
from polyjax.runtime.progress import errors, meter


def make_index(
    scorer: TextScorer,
    candidates: str | os.PathLike[str] | Sequence[str],
    folder: Path | None = None,
    *,
    dtype: IndexDtype = "float32",
    mesh: Mesh | None = None,
    replace: bool = False,
    programs: SearchPrograms | None = None,
) -> Index:
    """A searchable index of candidates; a progress bar is shown on standard error.

    Args:
        scorer: the model that encodes the candidates.
        candidates: texts, or the path of a file with one text per line.
        folder: folder of the index; None for an index in memory. An existing index of exactly these
            candidates is opened, and an interrupted build is resumed.
        dtype: dtype of the stored vectors.
        mesh: devices that share the candidates in a search.
        replace: always build, and replace an existing index at the end.
        programs: compiled programs to share with other indexes of the scorer.

    Raises:
        InputError: another index is in the folder, or a file or folder cannot be read or written.
    """
    if isinstance(candidates, str | os.PathLike):
        texts = candidate_lines(Path(candidates))
    else:
        texts = as_texts("candidates", candidates)
    if folder is None:
        places = first_places(texts)
        kept = [texts[i] for i in places]
        with meter("encoding", len(kept), unit="candidates", out=errors) as bar:
            vectors = scorer.encode_candidates(kept, progress=bar.add)
        say_losses(kept, scorer)
        say_copies(len(texts) - len(kept))
        found = in_memory(kept, vectors, dtype, ids=places)
        return Index(scorer, found, mesh=mesh, next_id=len(texts), programs=programs)
    found = None
    if not replace:
        there = standing(folder, scorer=scorer, source=text_digest(texts), dtype=dtype)
        there.check_free(folder)
        found = there.index
    if found is None:
        with meter("encoding", len(texts), unit="candidates", out=errors) as bar:
            found = build_index(folder, texts, scorer, dtype=dtype, progress=bar.add)
        say_losses(texts, scorer)
        say_copies(len(texts) - len(found))
    return Index(scorer, found, folder=folder, mesh=mesh, programs=programs)


def say_losses(texts: Sequence[str], scorer: TextScorer) -> None:
    """Say on standard error how many candidates are cut, and how many the model cannot tell apart.

    Args:
        texts: that were just encoded.
        scorer: encoded them.
    """
    for note in candidate_losses(texts, scorer.text).notes():
        errors.print(note)
