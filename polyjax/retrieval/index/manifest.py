"""An index's files, and what its manifest says."""

import dataclasses
import json
from pathlib import Path

from polyjax.config import from_json
from polyjax.errors import InputError, shown
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.fingerprint import READABLE, VERSION, Fingerprint, fingerprint
from polyjax.retrieval.index.rows import IndexDtype

MANIFEST, LOCK, BUILDING = "manifest.json", ".lock", "building"
TEXTS, ENDS, IDS = "texts.bin", "ends.npy", "ids.npy"
VECTORS, ROUNDED, SCALES, NORMS = "vectors.npy", "rounded.npy", "scales.npy", "norms.npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentInfo:
    """A segment's folder and the number of its candidates."""

    name: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an index holds and was made with.

    Attributes:
        version: of the format.
        model: what made the vectors.
        source: digest of the candidates that it was built from; "" after some were added or removed.
        dtype: of the stored vectors.
        dim: their width d.
        next_id: id of the next candidate.
        segments: in the order of their candidates' ids.
        removed: file of the removed ids; "" if nothing was removed.
        n_removed: how many there are.
    """

    version: int = VERSION
    model: Fingerprint
    source: str
    dtype: IndexDtype
    dim: int
    next_id: int
    segments: tuple[SegmentInfo, ...]
    removed: str = ""
    n_removed: int = 0

    def mismatch(self, scorer: TextScorer) -> str:
        """How the model that made the index and this one differ, in words; "" if they do not."""
        return self.model.mismatch(fingerprint(scorer, self.version))


def read_manifest(folder: Path) -> Manifest:
    """What an index holds.

    Raises:
        InputError: there is no index, or it is broken or of another version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        unfinished = " (an unfinished build is there)" if (folder / BUILDING).is_dir() else ""
        raise InputError.in_file(
            folder, problem=f"there is no index yet{unfinished}", fix="build one"
        ) from None
    except (OSError, ValueError) as error:
        raise broken(path, str(error)) from None
    if isinstance(data, dict) and data.get("version") not in READABLE:
        raise InputError.in_file(
            path,
            expected=f"an index of version {VERSION}",
            got=shown(f"version {data.get('version')}"),
            fix="build it again",
        )
    manifest = from_json(Manifest, data, source=str(path))
    if not manifest.segments:
        raise broken(path, "it has no segments")
    return manifest


def read_version(folder: Path) -> object:
    """The version that an index's manifest names; None if it cannot be read."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data.get("version") if isinstance(data, dict) else None


def broken(path: Path, why: str) -> InputError:
    """The error of an index that cannot be read."""
    return InputError.in_file(path, problem=f"the index is broken ({why})", fix="build it again")
