"""Matches texts with the candidates of an index: copies, new texts, and candidates named by their text.

Whether two texts are the same is decided by ``polyjax.data.identity``.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from polyjax.data.identity import text_key
from polyjax.errors import InputError
from polyjax.retrieval.index.store import CandidateIndex


def text_digest(texts: Iterable[str]) -> str:
    """The sha256 of candidates in their order, hexadecimal."""
    digest = hashlib.sha256()
    for text in texts:
        # 0xff, which UTF-8 never has, takes the place of a 0 within a text.
        digest.update(text.encode("utf-8").replace(b"\0", b"\xff") + b"\0")
    return digest.hexdigest()


def first_places(texts: Sequence[str]) -> np.ndarray:
    """The indices of texts that are not copies of an earlier one, int [n].

    >>> first_places(["yes", "no", "Yes ", "maybe"]).tolist()
    [0, 1, 3]
    """
    places: dict[str, int] = {}
    for place, text in enumerate(texts):
        places.setdefault(text_key(text), place)
    return np.fromiter(places.values(), int, len(places))


def added(index: CandidateIndex, texts: Sequence[str], *, next_id: int) -> tuple[list[int], list[str]]:
    """The id that each text has after adding all, and the texts that are new.

    Args:
        index: the index to add to.
        texts: the texts, in the order in which new ones get their ids.
        next_id: id of the first new text.
    """
    known: dict[str, int] = {}
    for id_, text in index.items():
        known.setdefault(text_key(text), id_)
    ids, new = [], []
    for text in texts:
        key = text_key(text)
        if key not in known:
            known[key] = next_id + len(new)
            new.append(text)
        ids.append(known[key])
    return ids, new


def ids_of(index: CandidateIndex, texts: Sequence[str]) -> list[int]:
    """The ids of candidates given by their texts, increasing.

    A candidate with exactly that text takes precedence over one that ``polyjax.data.identity`` treats as the
    same; an index of an older version may have both.

    Raises:
        InputError: a text is not in the index, or matches several candidates and none exactly.
    """
    exact: defaultdict[str, list[int]] = defaultdict(list)
    alike: defaultdict[str, list[int]] = defaultdict(list)
    for id_, text in index.items():
        exact[text].append(id_)
        alike[text_key(text)].append(id_)
    found: set[int] = set()
    missing = []
    for place, text in enumerate(texts):
        meant = exact.get(text) or alike.get(text_key(text), [])
        if len(meant) > 1 and text not in exact:
            raise InputError(
                f"texts[{place}]",
                problem=f"{text[:60]!r} may be any of the candidates {meant}, which differ only in spelling",
                fix="name one by its exact text or by `ids`",
            )
        missing += [] if meant else [place]
        found.update(meant)
    if missing:
        problem = f"not in the index (of {len(texts):,} texts, {len(missing):,} are not)"
        raise InputError(f"texts[{missing[0]}]", problem=problem, got=texts[missing[0]][:60])
    return sorted(found)
