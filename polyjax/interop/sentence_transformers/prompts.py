"""Reads config_sentence_transformers.json: prompts, similarity and activation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyjax.errors import InputError
from polyjax.interop.huggingface import read_object

PROMPTS = "config_sentence_transformers.json"
"""Name of the file with the prompts, the similarity and the activation."""
_PROMPT_ENTRIES = (
    "__version__",
    "activation_fn",
    "default_prompt_name",
    "model_type",
    "prompts",
    "similarity_fn_name",
)
ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names of the prompts of queries (contexts) and of documents (candidates)."""


def role_prompts(prompts: Mapping[str, str], default: str | None) -> tuple[str, str]:
    """The prompts of contexts and of candidates; see ``EncoderFolder.role_prompts``.

    Args:
        prompts: prompts by name.
        default: the name of the default prompt; None for none.

    >>> role_prompts({"query": "q: ", "document": "d: "}, "query"), role_prompts({"task": "t: "}, "task")
    (('q: ', 'd: '), ('t: ', 't: '))
    >>> role_prompts({"query": "", "document": "", "passage": "p: ", "task": "t: "}, "task")
    ('', 'p: ')
    """

    def of(names: tuple[str, ...], others: tuple[str, ...]) -> str:
        own = [prompts[name] for name in names if name in prompts]
        if own:
            return next(filter(None, own), "")
        return "" if default is None or default in others else prompts[default]

    queries, documents = ROLES.values()
    return of(queries, documents), of(documents, queries)


def read_prompts(folder: Path) -> dict[str, Any]:
    """Prompts, similarity and activation from config_sentence_transformers.json."""
    path = folder / PROMPTS
    entries = read_object(path) if path.is_file() else {}
    for name in entries:
        if name not in _PROMPT_ENTRIES:
            raise InputError.in_file(path, expected=f"entries of {', '.join(_PROMPT_ENTRIES)}", got=name)
    prompts, default = entries.get("prompts") or {}, entries.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise InputError.in_file(path, expected="texts by name for 'prompts'", got=prompts)
    if default is not None and (not isinstance(default, str) or default not in prompts):
        raise InputError.in_file(path, expected=f"a default_prompt_name of {', '.join(prompts)}", got=default)
    similarity = entries.get("similarity_fn_name") or "cosine"
    if similarity not in ("cosine", "dot"):
        raise InputError.in_file(path, expected="'cosine' or 'dot' for 'similarity_fn_name'", got=similarity)
    return {
        "prompts": prompts,
        "default": default,
        "similarity": similarity,
        "activation_fn": entries.get("activation_fn"),
    }
