"""What a run starts from: weights, tokenizer, shape, and the scorer before training."""

from collections.abc import Callable, Iterator
from pathlib import Path

from flax import nnx

from polyjax.config import RecordedPart
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
from polyjax.nn.scorers import Scorer, make_scorer
from polyjax.recipes.encoder_folder import start_head
from polyjax.recipes.settings import SCRATCH, RunConfig, TokenizerChoice, scratch_shape
from polyjax.runs import Checkpoints
from polyjax.runtime.progress import console


def pretrained_folder(config: RunConfig) -> Path | None:
    """The folder of pretrained weights, or None for an encoder from scratch."""
    own = config.init is not None or config.own_encoder is not None
    return None if own else weights_folder(config.encoder.name, scratch=SCRATCH)


def make_tokenizer(config: RunConfig, source: Path | None, turns: Callable[[], Iterator[str]]) -> Tokenizer:
    """The run directory's tokenizer, put there first where it is absent."""
    folder = config.folder / "tokenizer"
    folder.mkdir(exist_ok=True)
    if config.tokenizer.kind == "sentencepiece":
        path = folder / SENTENCEPIECE_FILE
        if not path.exists():
            size = config.tokenizer.vocab_size
            console.print(f"training a SentencePiece vocabulary of {size} pieces")
            made = train_sentencepiece(
                list(turns()),
                path,
                vocab_size=size,
                kind=config.tokenizer.model,
                seed=config.train.seed,
                shrink=size == TokenizerChoice().vocab_size,
            )
            if made.vocab_size < size:
                console.print(
                    f"the corpus has no more than {made.vocab_size} pieces; the vocabulary has these"
                )
    elif config.init is not None:
        load_tokenizer(config.init / "tokenizer").save(folder)
    elif not any(folder.iterdir()):
        encoder_tokenizer(source or minilm_folder()).save(folder)
    return load_tokenizer(folder)


def encoder_config(config: RunConfig, source: Path | None, vocab_size: int) -> EncoderSettings:
    """The transformer's shape, with the run's arithmetic and dropout; one of the user's own as it is."""
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
    """The scorer before training, with the pretrained weights of its encoders and its head."""
    scorer = make_scorer(shape, config.scoring, rngs=nnx.Rngs(config.train.seed))
    if config.init is not None:
        return Checkpoints(config.init, read_only=True).restore_parameters(scorer)
    if source is not None:
        for encoder in scorer.encoders:
            load_pretrained(encoder, source)
        start_head(scorer, config)
    return scorer
