"""The start of a run: weights, tokenizer, encoder settings, and the scorer before training."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx

from polyjax.config import RecordedPart
from polyjax.data.text import TextEncoder
from polyjax.data.tokenizers import SENTENCEPIECE_FILE, Tokenizer, load_tokenizer, train_sentencepiece
from polyjax.interop.cards import read_card
from polyjax.interop.huggingface import minilm_folder
from polyjax.interop.pretrained import (
    encoder_shape,
    encoder_tokenizer,
    load_pretrained,
    weights_folder,
)
from polyjax.nn.encoders import EncoderSettings
from polyjax.nn.heads import StartsFromOutputs
from polyjax.nn.scorers import DualScorer, Scorer, make_scorer
from polyjax.recipes.encoder_folder import start_head
from polyjax.recipes.settings import SCRATCH, RunConfig, TokenizerChoice, scratch_shape
from polyjax.runs import Checkpoints
from polyjax.runtime.progress import console
from polyjax.types import Example


def pretrained_folder(config: RunConfig) -> Path | None:
    """The folder of pretrained weights; None with ``init``, a custom encoder or one from scratch."""
    own = config.init is not None or config.own_encoder is not None
    return None if own else weights_folder(config.encoder.name, scratch=SCRATCH)


def make_tokenizer(config: RunConfig, source: Path | None, turns: Callable[[], Iterator[str]]) -> Tokenizer:
    """The tokenizer in the run directory; it is created there first if it is missing.

    Args:
        config: settings of the run.
        source: folder of the initial weights; None for none.
        turns: returns the texts of the training rows, to train a vocabulary on.
    """
    folder = config.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    if config.tokenizer.kind == "sentencepiece":
        path = folder / SENTENCEPIECE_FILE
        if not path.exists():
            learn_vocabulary(
                list(turns()),
                path,
                size=config.tokenizer.vocab_size,
                kind=config.tokenizer.model,
                seed=config.train.seed,
                shrink=config.tokenizer.vocab_size == TokenizerChoice().vocab_size,
            )
    elif config.init is not None:
        load_tokenizer(config.init / "tokenizer").save(folder)
    elif not any(folder.iterdir()):
        encoder_tokenizer(source or minilm_folder()).save(folder)
    return load_tokenizer(folder)


def learn_vocabulary(
    texts: Iterable[str],
    path: Path,
    *,
    size: int,
    kind: Literal["unigram", "bpe"],
    seed: int,
    shrink: bool,
    argument: str = "tokenizer.vocab_size",
) -> None:
    """Train a SentencePiece vocabulary, and print its size; see ``train_sentencepiece``."""
    console.print(f"training a SentencePiece vocabulary of {size} pieces")
    made = train_sentencepiece(
        texts, path, vocab_size=size, kind=kind, seed=seed, shrink=shrink, argument=argument
    )
    if made.vocab_size < size:
        console.print(f"the corpus has no more than {made.vocab_size} pieces; the vocabulary has these")


def encoder_config(config: RunConfig, source: Path | None, vocab_size: int) -> EncoderSettings:
    """The transformer's settings, with the run's dtype and dropout; the user's own settings unchanged."""
    if config.own_encoder is not None:
        assert not isinstance(config.own_encoder, RecordedPart), "it was passed"
        return config.own_encoder
    if config.init is not None:
        base = read_card(config.init).model.encoder
    elif source is not None:
        base = encoder_shape(source)
    else:
        base = scratch_shape(config.encoder.name, vocab_size)
    return config.encoder.applied_to(base)


def initial_scorer(config: RunConfig, shape: EncoderSettings, source: Path | None) -> Scorer:
    """The scorer before training, with the pretrained weights of encoders and head, if any."""
    scorer = make_scorer(shape, config.scoring, rngs=nnx.Rngs(config.train.seed))
    if config.init is not None:
        if read_card(config.init).model.head.inputs == config.inputs:
            return Checkpoints(config.init, read_only=True).restore_parameters(scorer)
        source = config.init  # a cross-encoder takes the encoder of a bi- or poly-encoder
    if source is not None:
        for encoder in scorer.encoders:
            load_pretrained(encoder, source)
        if config.init is None:
            start_head(scorer, config)
    return scorer


def start_codes(scorer: Scorer, text: TextEncoder, examples: Sequence[Example], *, seed: int) -> None:
    """Initialise a head's codes from token outputs of training contexts, if its settings ask for it.

    Args:
        scorer: the scorer with its initial weights; its codes are changed in place.
        text: turns contexts into tokens.
        examples: training rows; at most 512 contexts are encoded.
        seed: seed of the sample of contexts and of the clusters.

    Raises:
        InputError: there are fewer different token outputs than codes.
    """
    head = scorer.head
    if not (isinstance(scorer, DualScorer) and isinstance(head, StartsFromOutputs) and head.wants_outputs):
        return
    chosen = np.random.default_rng(seed).permutation(len(examples))[:CONTEXTS_FOR_CODES]
    ids = sorted((text.context(examples[i].context) for i in chosen.tolist()), key=len)
    encode = nnx.jit(lambda encoder, tokens: encoder(tokens))
    outputs = []
    for first in range(0, len(ids), 32):
        some = ids[first : first + 32]
        tokens = text.pad_contexts([*some, *[ids[0]] * (32 - len(some))])
        hidden = np.asarray(encode(scorer.context_encoder, tokens)[: len(some)], np.float32)
        outputs.append(hidden[np.asarray(tokens.mask)[: len(some)]])
    head.start_from(np.concatenate(outputs), seed=seed)


CONTEXTS_FOR_CODES = 512
"""Maximum number of contexts whose token outputs are clustered."""
