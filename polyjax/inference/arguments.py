"""Checks of what a caller gave, before anything is computed with it."""

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from polyjax.errors import InputError
from polyjax.retrieval.stages.faiss import FirstStage


def check_count(name: str, count: object) -> None:
    """Raise InputError unless it is a number of things."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {count!r}")


def check_folder(folder: object) -> None:
    """Raise InputError unless it is a path."""
    if not isinstance(folder, str | os.PathLike):
        raise InputError(f"folder: expected the path of an index, got {folder!r}")


def check_mesh(mesh: object) -> None:
    """Raise InputError unless it is None or a mesh."""
    if mesh is not None and not isinstance(mesh, Mesh):
        raise InputError(f"mesh: expected a mesh of devices, as jax.make_mesh gives, got {mesh!r}")


def check_stage(first_stage: object) -> None:
    """Raise InputError unless it can be searched."""
    if not isinstance(first_stage, FirstStage):
        raise InputError(
            "first_stage: expected an object with `search`, `exact` and `made_for`, as FaissStage"
        )


def check_list(name: str, lists: object) -> None:
    """Raise InputError unless it is a list (of contexts, or of lists of candidates)."""
    if isinstance(lists, str) or not isinstance(lists, Sequence):
        raise InputError(f"{name}: expected a list, got {type(lists).__name__}")


def as_texts(name: str, texts: Iterable[str]) -> list[str]:
    """A list of texts that can be encoded, or InputError."""
    if isinstance(texts, str):
        raise InputError(f"{name}: expected a list of texts, got one text; write [text]")
    if isinstance(texts, set | frozenset | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"{name}: expected a list of texts, got {type(texts).__name__}")
    found = list(texts)
    if not found:
        raise InputError(f"{name}: expected at least one text, got none")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{name}[{i}]: expected a text, got {type(text).__name__} {text!r}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"{name}[{i}]: {text[:40]!r} holds half a character (a lone surrogate); was it read with "
                "another encoding?"
            ) from None
    return found
