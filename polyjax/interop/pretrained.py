"""Where an encoder's first weights come from: a folder of transformers, or a run of ours of any kind."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from polyjax.config import from_json
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import WORDPIECE_FILE, Tokenizer, WordPieceTokenizer, load_tokenizer
from polyjax.errors import InputError
from polyjax.interop.huggingface import load_encoder_weights, minilm_folder, read_config
from polyjax.nn.encoders import Dtype, EncoderSettings, KnownEncoder, TokenEncoder
from polyjax.nn.heads import BiConfig
from polyjax.nn.pretraining import Pretrainer
from polyjax.nn.scorers import DualScorer
from polyjax.runs import MODEL, Checkpoints, load_scorer, read_card, read_json

PRETRAINING = "pretraining.json"
LONGEST = 256
"""Tokens of a text for an encoder that was not trained to rank."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A task whose rows to validate and test on were left out of a corpus.

    Attributes:
        task: its name.
        digest: of those rows, see ``HeldOut.digest``.
    """

    task: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingCard:
    """What pretraining.json holds.

    Attributes:
        encoder: the shape.
        text: lengths that it was trained with.
        left_out: what was left out of the corpus.
    """

    encoder: KnownEncoder
    text: TextConfig
    left_out: tuple[LeftOut, ...] = ()


def weights_folder(name: str, *, scratch: Sequence[str]) -> Path | None:
    """The folder of weights that ``--encoder`` names; None for an encoder from scratch.

    Raises:
        InputError: it is neither one of ``scratch``, nor minilm, nor a folder.
    """
    if name in scratch:
        return None
    if name == "minilm":
        return minilm_folder()
    if not Path(name).is_dir():
        raise InputError(
            "encoder",
            expected=f"minilm, {', '.join(scratch)}, a folder as transformers saves it, or a run directory",
            got=name,
        )
    return Path(name)


def check_vocabulary(tokenizer: Tokenizer, shape: EncoderSettings, *, name: str) -> None:
    """Raise InputError where the tokenizer has more tokens than the encoder ``name`` has table rows."""
    rows = getattr(shape, "vocab_size", None)  # settings from outside need not have a table
    if rows is not None and tokenizer.vocab_size > rows:
        raise InputError(
            "encoder",
            problem=f"the tokenizer has {tokenizer.vocab_size} tokens, more than the {rows} rows of {name}'s "
            "token table",
            fix="check that its files belong together",
        )


def is_pretraining_run(folder: Path) -> bool:
    """Whether a folder is a run directory of experiments/pretrain.py."""
    return (folder / PRETRAINING).is_file()


def is_ranking_run(folder: Path) -> bool:
    """Whether a folder is a run directory of experiments/run.py or ``polyjax convert``."""
    return (folder / MODEL).is_file()


def read_pretraining_card(folder: Path) -> PretrainingCard:
    """The card of a pre-training run.

    Raises:
        InputError: it is missing or broken.
    """
    return from_json(PretrainingCard, read_json(folder / PRETRAINING), source=str(folder / PRETRAINING))


def encoder_shape(folder: Path) -> EncoderSettings:
    """The shape of a folder's encoder."""
    if is_pretraining_run(folder):
        return read_pretraining_card(folder).encoder
    return read_card(folder).model.encoder if is_ranking_run(folder) else read_config(folder)


def encoder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a folder's encoder was trained with."""
    if is_pretraining_run(folder) or is_ranking_run(folder):
        return load_tokenizer(folder / "tokenizer")
    return WordPieceTokenizer(folder / WORDPIECE_FILE)


def load_pretrained(encoder: TokenEncoder, folder: Path) -> None:
    """Fill an encoder's parameters from a folder: those of a run's best validation.

    Of a ranking run it is the encoder of contexts, or of pairs.

    Raises:
        InputError: a file is missing or broken, or the encoder has another shape.
    """
    if is_pretraining_run(folder):
        shape = read_pretraining_card(folder).encoder
        _check_shape(folder, shape, encoder.config)
        nnx.update(encoder, nnx.state(_restored(folder, shape).encoder))
    elif is_ranking_run(folder):
        _check_shape(folder, read_card(folder).model.encoder, encoder.config)
        scorer, _ = load_scorer(folder)
        nnx.update(encoder, nnx.state(scorer.encoders[0]))
    else:
        load_encoder_weights(encoder, folder)


def zero_shot_scorer(
    encoder: str | os.PathLike[str], *, turns: int, dtype: Dtype | None = None
) -> tuple[DualScorer, TextEncoder]:
    """A bi-encoder without any training to rank: cosines of an encoder's mean hidden states.

    Args:
        encoder: ``minilm`` or a folder.
        turns: the last so many turns of a context are read.
        dtype: of the arithmetic; float32 by default.

    Raises:
        InputError: there is no such folder, or a file of it is missing or broken.
    """
    folder = minilm_folder() if encoder == "minilm" else Path(encoder)
    if not folder.is_dir():
        expected = "minilm, or a folder with an encoder's weights"
        raise InputError("encoder", expected=expected, got=str(encoder))
    shape = encoder_shape(folder)
    model = dataclasses.replace(shape, dtype=dtype or "float32").build(rngs=nnx.Rngs(0))
    load_pretrained(model, folder)
    head = BiConfig(shared_encoder=True, normalize=True)
    scorer = DualScorer(model.config, head, context_encoder=model, rngs=nnx.Rngs(0))
    longest = min(LONGEST, shape.n_positions)
    lengths = TextConfig(max_turns=turns, context_tokens=longest, candidate_tokens=longest)
    return scorer, TextEncoder(encoder_tokenizer(folder), lengths)


def load_pretrainer(model: Pretrainer, folder: Path) -> None:
    """Fill a model's parameters from a folder, its heads' as well where that is a pre-training run.

    Raises:
        InputError: a file is missing or broken, or the encoder has another shape.
    """
    if not is_pretraining_run(folder):
        load_pretrained(model.encoder, folder)
        return
    shape = read_pretraining_card(folder).encoder
    _check_shape(folder, shape, model.encoder.config)
    nnx.update(model, nnx.state(_restored(folder, shape)))


def _restored(folder: Path, shape: KnownEncoder) -> Pretrainer:
    abstract = nnx.eval_shape(lambda: Pretrainer(shape, rngs=nnx.Rngs(0)))
    return Checkpoints(folder, read_only=True).restore_parameters(abstract)


ARITHMETIC = ("dropout", "attention_dropout", "dtype", "remat", "remat_keeps", "scan", "output_scaling")
"""Settings of an encoder that do not change what its weights mean."""


def _check_shape(folder: Path, shape: EncoderSettings, wanted: EncoderSettings) -> None:
    if type(shape) is not type(wanted):
        raise InputError.in_file(
            folder, expected=f"an encoder of {type(wanted).__name__}", got=type(shape).__name__
        )
    assert dataclasses.is_dataclass(wanted)
    for name in (field.name for field in dataclasses.fields(wanted) if field.name not in ARITHMETIC):
        there, asked = getattr(shape, name), getattr(wanted, name)
        if there != asked:
            raise InputError.in_file(folder, expected=f"an encoder with {name} {asked!r}", got=there)
