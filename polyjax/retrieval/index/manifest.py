"""The files of an index, and its manifest."""

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
    """A segment.

    Attributes:
        name: name of its folder.
        count: number of its candidates, including removed ones.
    """

    name: str
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of an index, and the model that it was built with.

    Attributes:
        version: version of the format.
        model: fingerprint of the model that computed the vectors.
        source: digest of the candidates that it was built from; "" after additions or removals.
        dtype: dtype of the stored vectors.
        dim: width of the vectors.
        next_id: id of the next candidate to be added.
        segments: the segments, in the order of their candidates' ids.
        removed: name of the file of removed ids; "" if nothing was removed.
        n_removed: number of removed candidates.
        build: a random name of the build that gave the ids, kept by additions, removals and compaction; ""
            before polyjax wrote it.
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
    build: str = ""

    def mismatch(self, scorer: TextScorer) -> str:
        """How the model of the index differs from this one, for people; "" if it does not."""
        return self.model.mismatch(fingerprint(scorer, self.version))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an index.

    Raises:
        InputError: there is no index, or it is broken or of a version that cannot be read.
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
    """The version in an index's manifest; None if the manifest cannot be read."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data.get("version") if isinstance(data, dict) else None


def rebuilt(folder: Path) -> InputError:
    """The error for an index that was built again since it was opened: its ids mean other candidates now."""
    return InputError.in_file(
        folder, problem="the index was built again, and its ids mean other candidates", fix="open it again"
    )


def broken(path: Path, why: str) -> InputError:
    """The error for an index that cannot be read."""
    return InputError.in_file(path, problem=f"the index is broken ({why})", fix="build it again")
