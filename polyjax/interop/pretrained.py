"""Loads pretrained weights: from a folder of transformers or sentence-transformers, or a run directory."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from polyjax.config import from_json
from polyjax.data.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.data.tokenizers import Tokenizer, load_tokenizer
from polyjax.errors import InputError
from polyjax.interop.cards import load_scorer, read_card
from polyjax.interop.hub import hub_name, model_folder, pinned
from polyjax.interop.huggingface import CONFIG, is_minilm, load_encoder_weights, minilm_folder
from polyjax.interop.sentence_transformers import MODULES, load_folder, read_folder
from polyjax.nn.abstract import abstract_model
from polyjax.nn.encoders import Dtype, EncoderSettings, KnownEncoder, TokenEncoder
from polyjax.nn.heads import BiConfig
from polyjax.nn.pretraining import Pretrainer
from polyjax.nn.scorers import DualScorer, Scorer
from polyjax.runs import CONFIG as RUN_SETTINGS
from polyjax.runs import MODEL, PRETRAINING, Checkpoints, PretrainingCard, read_json

LONGEST = 256
"""Maximum length of a text, in tokens, for an encoder that was not trained to rank."""


MINILM = "minilm"
"""The name of all-MiniLM-L6-v2, whose weights are an installed package."""


def names_minilm(model: str | os.PathLike[str]) -> bool:
    """Whether a command's model is ``minilm`` and not a folder of this name."""
    return os.fspath(model) == MINILM and not Path(model).is_dir()


def weights_folder(name: str, *, scratch: Sequence[str]) -> Path | None:
    """The folder of weights for the name of an encoder; None for an encoder trained from scratch.

    Args:
        name: ``minilm``, a folder, the name of a hub model, or one of ``scratch``.
        scratch: names of encoders that start with random weights.

    Raises:
        InputError: there is no such folder or model.
    """
    if name in scratch:
        return None
    if name == MINILM:
        return minilm_folder()
    folder = model_folder(name, "encoder")
    if not folder.is_dir():
        raise InputError(
            "encoder",
            expected=f"minilm, {', '.join(scratch)}, a folder as transformers saves it, or a run directory",
            got=name,
        )
    return folder


def is_pretraining_run(folder: Path) -> bool:
    """Whether a folder is the run directory of a pre-training (``polyjax pretrain``)."""
    return (folder / PRETRAINING).is_file()


def is_ranking_run(folder: Path) -> bool:
    """Whether a folder is the run directory of a ranker (``polyjax train``, ``polyjax convert``)."""
    return (folder / MODEL).is_file()


def read_pretraining_card(folder: Path) -> PretrainingCard:
    """The model card of a pre-training run.

    Raises:
        InputError: it is missing or broken.
    """
    path = folder / PRETRAINING
    return from_json(PretrainingCard, read_json(path), source=str(path))


def encoder_shape(folder: Path) -> EncoderSettings:
    """The settings of the encoder in a model folder or run directory.

    Raises:
        InputError: a file is missing or broken, or asks for a feature that is not implemented.
    """
    if is_pretraining_run(folder):
        return read_pretraining_card(folder).encoder
    return read_card(folder).model.encoder if is_ranking_run(folder) else read_folder(folder).settings


def encoder_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a folder's encoder was trained with.

    In a model folder, a special token written out in a text is a special token, as in transformers (unless
    ``split_special_tokens`` is set). With minilm it is ordinary text.

    Raises:
        InputError: a file is missing or broken.
    """
    if is_pretraining_run(folder) or is_ranking_run(folder):
        return load_tokenizer(folder / "tokenizer")
    if is_minilm(folder):
        return HuggingFaceTokenizer(folder / TOKENIZER_FILE, config=False)
    return read_folder(folder).tokenizer()


def load_pretrained(encoder: TokenEncoder, folder: Path) -> None:
    """Set an encoder's parameters from a model folder or run directory.

    From a run, the checkpoint with the best validation is used. From a ranking run, the encoder is the one
    for contexts (of a cross-encoder, the one for pairs).

    Args:
        encoder: its parameters are replaced.
        folder: a model folder or run directory.

    Raises:
        InputError: a file is missing or broken, or the encoder has other settings.
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
        found = read_folder(folder)
        _check_shape(folder, found.settings, encoder.config)
        load_encoder_weights(encoder, found.transformer)


def is_model_folder(folder: Path) -> bool:
    """Whether a folder was saved by sentence-transformers or transformers, and is not a run directory."""
    if is_ranking_run(folder) or is_pretraining_run(folder):
        return False
    if (folder / MODULES).is_file():
        return True
    try:
        entries = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):  # reading the folder then raises an error that says what is wrong
        return True
    return not isinstance(entries, dict) or "type" not in entries  # a run's config.json has "type"


def load_model(
    folder: str | os.PathLike[str], *, step: int | None, dtype: Dtype | None, head: Any, encoder: Any
) -> tuple[Scorer, TextEncoder]:
    """Load a model from a run directory, or from a folder saved by other libraries.

    Args:
        folder: a run directory, a folder of sentence-transformers or transformers, or the name of a hub
            model.
        step: a saved step of a run; None for the best one.
        dtype: of the computation; None for the run's own, or float32 for a model folder.
        head: your own head, if the run's card records one.
        encoder: your own encoder, if the run's card records one.

    Raises:
        InputError: a file is missing or broken, or ``step``, ``head`` or ``encoder`` is given for a folder
            that is not a run directory.
    """
    folder = model_folder(folder)
    if not is_model_folder(folder):
        return load_scorer(folder, step=step, dtype=dtype, head=head, encoder=encoder)
    for name, value in (("step", step), ("head", head), ("encoder", encoder)):
        if value is not None:
            raise InputError(name, expected="None for a folder that is not a run directory", got=value)
    return zero_shot_scorer(folder, dtype=dtype)


def zero_shot_scorer(
    encoder: str | os.PathLike[str], *, turns: int = 2, dtype: Dtype | None = None
) -> tuple[Scorer, TextEncoder]:
    """An encoder as a scorer, without training it to rank.

    A folder of sentence-transformers or transformers is scored as its own settings say, see ``load_folder``.
    minilm reads a special token written out in a text as ordinary text, and truncates a context from its
    oldest token. The encoder of a run is used as a bi-encoder: mean over tokens, cosine.

    Args:
        encoder: ``minilm``, a folder, or the name of a hub model.
        turns: number of a context's last turns that are read.
        dtype: of the computation; None for float32.

    Raises:
        InputError: there is no such folder, or a file in it is missing or broken.
    """
    if encoder == MINILM:
        scorer, text = load_folder(minilm_folder(), turns=turns, dtype=dtype or "float32")
        tokenizer = HuggingFaceTokenizer(minilm_folder() / TOKENIZER_FILE, config=False)
        longest = text.config.candidate_tokens
        lengths = TextConfig(max_turns=turns, context_tokens=longest, candidate_tokens=longest)
        return scorer, TextEncoder(tokenizer, lengths)
    folder = model_folder(encoder, "encoder")
    if not folder.is_dir():
        expected = "minilm, or a folder with an encoder's weights"
        raise InputError("encoder", expected=expected, got=str(encoder))
    if is_model_folder(folder):
        return load_folder(folder, turns=turns, dtype=dtype or "float32")
    shape = encoder_shape(folder)
    assert dataclasses.is_dataclass(shape)
    model = dataclasses.replace(shape, dtype=dtype or "float32").build(rngs=nnx.Rngs(0))
    load_pretrained(model, folder)
    head = BiConfig(shared_encoder=True, normalize=True)
    scorer = DualScorer(model.config, head, context_encoder=model, rngs=nnx.Rngs(0))
    longest = min(LONGEST, shape.n_positions)
    lengths = TextConfig(max_turns=turns, context_tokens=longest, candidate_tokens=longest)
    return scorer, TextEncoder(encoder_tokenizer(folder), lengths)


def origin_of(name: str | os.PathLike[str]) -> str | None:
    """The hub model that a model is, or was trained from, as ``organisation/model@commit``.

    Args:
        name: the folder or hub name that was passed to ``load_model``.

    Returns:
        The name with its commit; None if the model does not come from the hub.
    """
    if hub_name(name) is not None:
        return pinned(os.fspath(name), "folder")
    if not (Path(name) / RUN_SETTINGS).is_file() or is_model_folder(Path(name)):
        return None
    settings = read_json(Path(name) / RUN_SETTINGS)
    encoder = settings.get("encoder") if isinstance(settings, dict) else None
    began = encoder.get("name") if isinstance(encoder, dict) else None
    return began if isinstance(began, str) and hub_name(began) is not None else None


def load_pretrainer(model: Pretrainer, folder: Path) -> None:
    """Set a pre-training model's parameters from a folder.

    A pre-training run gives the parameters of the encoder and the heads, any other folder the encoder's only.

    Args:
        model: its parameters are replaced.
        folder: a model folder or run directory.

    Raises:
        InputError: a file is missing or broken, or the encoder has other settings.
    """
    if not is_pretraining_run(folder):
        load_pretrained(model.encoder, folder)
        return
    shape = read_pretraining_card(folder).encoder
    _check_shape(folder, shape, model.encoder.config)
    nnx.update(model, nnx.state(_restored(folder, shape)))


def _restored(folder: Path, shape: KnownEncoder) -> Pretrainer:
    abstract = abstract_model(lambda rngs: Pretrainer(shape, rngs=rngs))
    return Checkpoints(folder, read_only=True).restore_parameters(abstract)


ARITHMETIC = ("dropout", "attention_dropout", "dtype", "remat", "remat_keeps", "scan", "output_scaling")
"""Encoder settings that may differ between the saved and the new encoder: weights fit either way."""


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
