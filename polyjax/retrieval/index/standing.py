"""Checks whether an existing index is the requested one, or another that must not be replaced."""

import dataclasses
from pathlib import Path

from polyjax.errors import InputError
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.fingerprint import READABLE
from polyjax.retrieval.index.manifest import MANIFEST, read_manifest, read_version
from polyjax.retrieval.index.rows import IndexDtype
from polyjax.retrieval.index.store import CandidateIndex, open_index

REPLACE = "set `replace` to build over it, or name another folder"


@dataclasses.dataclass(frozen=True)
class Standing:
    """The state of a folder in which an index is wanted.

    Attributes:
        index: the requested index, if it is there.
        reason: otherwise, why it is not.
        occupied: whether building would replace another index.
    """

    index: CandidateIndex | None
    reason: str = ""
    occupied: bool = False

    def check_free(
        self, folder: Path, *, fix: str = "set `replace` to build over it, or name another folder"
    ) -> None:
        """Check that building does not replace another index.

        Args:
            folder: folder of the index, for the error message.
            fix: what the caller can do, for the error message.

        Raises:
            InputError: the folder holds another index.
        """
        if self.occupied:
            raise InputError.in_file(folder, problem=self.reason, fix=fix)


def standing(folder: Path, *, scorer: TextScorer, source: str, dtype: IndexDtype | None = None) -> Standing:
    """Compare the index in a folder with the requested one.

    Args:
        folder: folder of the requested index.
        scorer: its model.
        source: digest of its candidates.
        dtype: dtype of its vectors; None for any.
    """
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        # A broken index may be replaced; one of a later version is intact and must be kept.
        newer = (folder / MANIFEST).exists() and read_version(folder) not in (None, *READABLE)
        return Standing(None, error.problem or str(error), occupied=newer)
    if mismatch := manifest.mismatch(scorer):
        return Standing(None, mismatch, occupied=True)
    if not manifest.source:
        reason = "the index has been added to or removed from since it was built"
        return Standing(None, reason, occupied=True)
    if manifest.source != source:
        return Standing(None, "the index holds other candidates", occupied=True)
    if dtype not in (None, manifest.dtype):
        return Standing(None, f"the index keeps vectors in {manifest.dtype}", occupied=True)
    try:
        return Standing(open_index(folder))
    except InputError as error:
        return Standing(None, error.problem or str(error))
