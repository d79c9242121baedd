"""Vectors and token outputs of texts that are neither contexts nor candidates."""

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.inference.batching import lengths_of
from polyjax.inference.numbers import check_numbers
from polyjax.inference.scorer import TextScorer
from polyjax.nn.heads import EmbedsTexts
from polyjax.nn.scorers import DualScorer
from polyjax.types import Tokens

Output = Literal["vectors", "tokens"]
_NAME = re.compile(r"[\w-]+")


def prompt_text(config: TextConfig, prompt: str | None) -> str:
    """The prompt that is put before a text.

    Args:
        config: with the model's prompts.
        prompt: the name of one of them, or a text; the model's default if None. ``query`` and
            ``document`` are always names; they mean no prompt if the model has none of that name.

    Raises:
        InputError: it is a single word that is not a name: as a prefix it would run into the text.
    """
    if prompt is None:
        return config.embedding_prompt
    if not isinstance(prompt, str):
        raise InputError("prompt", expected="a text, the name of a prompt, or None", got=prompt)
    roles = {"query": "", "document": ""}
    if not config.prompts:  # a run's own
        roles = {"query": config.context_prompt, "document": config.candidate_prompt}
    named = roles | dict(config.prompts)
    if prompt in named:
        return named[prompt]
    if prompt and _NAME.fullmatch(prompt):
        expected = f"one of {', '.join(named)}, or a text that ends in a space or a mark"
        raise InputError("prompt", expected=expected, got=prompt)
    return prompt


def embed(
    scorer: TextScorer, texts: Sequence[str], *, prompt: str | None, output: Output
) -> np.ndarray | list[np.ndarray]:
    """Vectors float32 [n, e], or each text's token outputs float32 [t, d].

    Args:
        scorer: of a bi-encoder.
        texts: any number of them.
        prompt: see ``prompt_text``.
        output: ``vectors`` or ``tokens``.

    Raises:
        InputError: the model is not a bi-encoder, or the prompt is unknown.
    """
    if not scorer.is_dual or not isinstance(scorer.head, EmbedsTexts):
        got = shown(f"a {scorer.settings.head.arch}-encoder")
        raise InputError("ranker", expected="a bi-encoder, to embed texts", got=got)
    text, config = scorer.text, scorer.text.config
    before = prompt_text(config, prompt)
    whole = [before + one for one in texts]
    text.tokenise(whole)
    rows = [text.single(one) for one in whole]
    found: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    function = DualScorer.embed if output == "vectors" else _token_outputs
    for places, length in scorer.batching.batches(lengths_of(rows), config.candidate_tokens):
        tokens = scorer.padded([rows[i] for i in places], length, prompt=before)
        batch = np.asarray(scorer.model.run(function, tokens), np.float32)
        for place, values in zip(places.tolist(), batch, strict=False):  # which is padded
            found[place] = values if output == "vectors" else values[: len(rows[place])]
    if output == "tokens":
        return found
    return check_numbers(np.stack(found), "vectors") if found else np.empty((0, scorer.dim), np.float32)


def _token_outputs(scorer: DualScorer, tokens: Tokens) -> Float[Array, "n t d"]:
    return scorer.context_encoder(tokens)
