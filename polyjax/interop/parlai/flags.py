"""Reads ``model.opt``, ParlAI's flags, and turns them into polyjax configurations."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from polyjax.data.dictionary import DictionarySettings
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.interop.parlai.heads import OverPadding, ParlaiBiConfig
from polyjax.interop.parlai.layout import ParlaiLayout
from polyjax.interop.parlai.warmup import ParlaiWarmup
from polyjax.interop.torch_pickle import BrokenFile, read_pickle
from polyjax.nn.encoders import EncoderConfig
from polyjax.nn.heads import AttentionKind, CrossConfig, PolyConfig
from polyjax.train.optim import OptimConfig

Arch = Literal["bi", "poly", "cross"]
Padding = Literal["none", "parlai"]
Opt = Mapping[str, Any]
Weights = dict[str, np.ndarray]


def read_opt(path: Path) -> Opt:
    """The flags of a ParlAI model.

    Args:
        path: ``model.opt``, which is JSON (in very old models a pickle of plain data).

    Raises:
        InputError: the file is missing, cannot be read, or does not hold a dictionary of flags.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        expected = "the flags that ParlAI writes beside a model"
        raise InputError.in_file(path, problem="the file is missing", expected=expected) from None
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error.strerror or error}") from None
    try:
        opt = json.loads(raw) if raw.lstrip()[:1] == b"{" else read_pickle(io.BytesIO(raw))
    except (ValueError, RecursionError, BrokenFile) as error:
        raise InputError.in_file(path, problem=f"cannot be read as ParlAI's flags: {error}") from None
    if not isinstance(opt, dict):
        got = shown(type(opt).__name__)
        raise InputError.in_file(path, expected="a dictionary of ParlAI's flags", got=got)
    return opt


class Flags:
    """Typed access to the flags in ``model.opt``; the caller passes ParlAI's default for a missing flag.

    Each method but ``given`` raises InputError, with the file and the flag, for a value of another type.

    Args:
        opt: the flags.
        path: the file that they come from, for error messages.
    """

    def __init__(self, opt: Opt, path: Path):
        self._opt, self.path = opt, path

    def given(self, name: str) -> bool:
        """Whether a flag is set to a value that counts as true."""
        return bool(self._opt.get(name))

    def _get(self, name: str, default: Any) -> Any:
        value = self._opt.get(name)
        return default if value is None else value

    def number(self, name: str, default: int) -> int:
        """A flag that is a whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "a whole number", value)
        return value

    def decimal(self, name: str, default: float) -> float:
        """A flag that is a finite number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise self._wrong(name, "a finite number", value)
        return float(value)

    def pair(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """A flag that is a list of numbers with decimal points: the first two."""
        value = self._get(name, default)
        if (
            not isinstance(value, list | tuple)
            or len(value) < 2
            or not all(isinstance(v, float) for v in value)
        ):
            raise self._wrong(name, "two numbers", value)
        return value[0], value[1]

    def truth(self, name: str, default: bool) -> bool:
        """A flag that is true or false; a whole number counts as true unless it is 0."""
        value = self._get(name, default)
        if not isinstance(value, bool | int):
            raise self._wrong(name, "true or false", value)
        return bool(value)

    def text(self, name: str, default: str) -> str:
        """A flag that is a text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, "a text", value)
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, Any]) -> Any:
        """The value in ``choices`` under a flag's text; other texts are refused."""
        value = self.text(name, default)
        if value not in choices:
            raise self._wrong(name, f"one of {', '.join(choices)}", value)
        return choices[value]

    def _wrong(self, name: str, expected: str, got: object) -> InputError:
        return InputError.in_row(expected=expected, got=got).at(f"{self.path}: {name}")


ARCHS: dict[str, Arch] = {"biencoder": "bi", "polyencoder": "poly", "crossencoder": "cross"}
VARIANTS = {
    "xlm": {"norm": "post", "embedding_norm": True},
    "bart": {"norm": "post", "embedding_norm": True},
    "aiayn": {"norm": "post", "embedding_norm": False},
    "prelayernorm": {"norm": "pre", "embedding_norm": False},
}
ATTENTIONS: dict[str, AttentionKind] = {"basic": "basic", "sqrt": "sqrt", "multihead": "multihead"}
REDUCTIONS: dict[str, Literal["first", "mean", "max"]] = {"first": "first", "mean": "mean", "max": "max"}
CHECK_FLAGS = "check that the flags belong to this model"
# Flags that change the model's input in ways that polyjax does not implement.
REFUSED = ("person_tokens", "history_reversed", "split_lines", "history_add_global_end_token")


def arch_of(flags: Flags) -> Arch:
    """The architecture, from the name of ParlAI's agent in the flag ``model``.

    Raises:
        InputError: the agent is not a bi-, poly- or cross-encoder.
    """
    name = flags.text("model", "").replace(":", "/").split("/")[-1].lower()
    name = name.removesuffix("agent").replace("_", "")
    if name not in ARCHS:
        raise InputError.in_file(
            flags.path,
            expected="a model of transformer/biencoder, polyencoder or crossencoder",
            got=flags.text("model", ""),
        )
    return ARCHS[name]


Head = ParlaiBiConfig | PolyConfig | CrossConfig


def head_config(flags: Flags, *, padding: Padding) -> Head:
    """The head's configuration.

    Args:
        flags: of the model.
        padding: ``parlai`` reduces over padding too, as ParlAI does.

    Raises:
        InputError: a flag has a value that is not supported.
    """
    kind = flags.choice("reduction_type", "mean", REDUCTIONS)
    reduction = OverPadding(kind=kind) if padding == "parlai" else kind
    match arch_of(flags):
        case "bi":
            shared = flags.truth("share_encoders", True)
            return ParlaiBiConfig(
                reduction=reduction,
                shared_encoder=shared,
                shared_words=not shared and flags.truth("share_word_embeddings", True),
                candidate_mlp=shared,
                normalize=flags.truth("normalize_sent_emb", False),
            )
        case "poly":
            codes: dict[str, Literal["learnt", "first"]] = {"codes": "learnt", "n_first": "first"}
            return PolyConfig(
                n_codes=flags.number("poly_n_codes", 64),
                codes=flags.choice("polyencoder_type", "codes", codes),
                codes_attention=flags.choice("codes_attention_type", "basic", ATTENTIONS),
                codes_heads=flags.number("codes_attention_num_heads", 4),
                candidate_attention=flags.choice("poly_attention_type", "basic", ATTENTIONS),
                candidate_heads=flags.number("poly_attention_num_heads", 4),
                reduction=reduction,
            )
        case "cross":
            return CrossConfig(reduction=reduction)
        case other:
            assert_never(other)


def encoder_config(flags: Flags, weights: Weights, prefix: str, *, dropout: bool) -> EncoderConfig:
    """The transformer's configuration; table and MLP sizes come from the weights, the rest from the flags.

    Args:
        flags: of the model.
        weights: the state dict.
        prefix: of the encoder's names in it.
        dropout: keep the dropout rates of the flags; otherwise they are 0.

    Raises:
        InputError: a weight is missing, or a flag has a value that is not supported.
    """
    vocab_size, dim = _shape(weights, f"{prefix}embeddings.weight", flags.path)
    n_positions, _ = _shape(weights, f"{prefix}position_embeddings.weight", flags.path)
    mlp_dim, _ = _shape(weights, f"{prefix}layers.0.ffn.lin1.weight", flags.path)
    segments = weights.get(f"{prefix}segment_embeddings.weight")
    n_layers = flags.number("n_encoder_layers", -1)
    return EncoderConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=n_layers if n_layers > 0 else flags.number("n_layers", 2),
        n_heads=flags.number("n_heads", 2),
        mlp_dim=mlp_dim,
        n_positions=n_positions,
        n_segments=0 if segments is None else segments.shape[0],
        **flags.choice("variant", "aiayn", VARIANTS),
        positions="learnt" if flags.truth("learn_positional_embeddings", False) else "sinusoidal",
        activation=flags.choice("activation", "relu", {"gelu": "gelu", "relu": "relu"}),
        norm_eps=1e-5,
        embedding_scale=flags.truth("embeddings_scale", True),
        output_scaling=flags.decimal("output_scaling", 1.0),
        zero_padding=True,
        dropout=flags.decimal("dropout", 0.0) if dropout else 0.0,
        attention_dropout=flags.decimal("attention_dropout", 0.0) if dropout else 0.0,
    )


def text_config(flags: Flags, shape: EncoderConfig, *, padding: Padding) -> TextConfig:
    """How texts become tokens, as in ParlAI: history, truncation, special tokens.

    Args:
        flags: of the model.
        shape: the encoder's configuration, which limits the lengths.
        padding: ``parlai`` pads to the longest sequence of a call; ``none`` to a bucket's length.

    Raises:
        InputError: a flag is set that changes the model's input and is not supported.
    """
    for name in REFUSED:
        if flags.given(name):
            problem = f"{name} is set; it changes what the model reads and is not supported"
            raise InputError.in_file(flags.path, problem=problem)
    truncate = flags.number("truncate", 1024)

    def limit(name: str) -> int:
        chosen = flags.number(name, truncate)
        chosen = chosen if chosen > 0 else truncate
        return chosen if chosen > 0 else shape.n_positions

    history = flags.number("history_size", -1)
    longest = shape.n_positions
    label = min(limit("label_truncate"), longest)
    room = longest - label if arch_of(flags) == "cross" else longest
    return TextConfig(
        max_turns=history if history > 0 else 10**9,
        # ParlAI truncates a context before it adds the start and end tokens, and a label afterwards.
        context_tokens=min(limit("text_truncate") + 2, room),
        candidate_tokens=label,
        padding="longest" if padding == "parlai" else "bucket",
        layout=ParlaiLayout(),
    )


def dictionary_settings(flags: Flags) -> DictionarySettings:
    """How the dictionary splits texts, and which tokens are special."""
    kinds = {"bpe": True, "re": False}
    return DictionarySettings(
        lower=flags.truth("dict_lower", False),
        bpe=flags.choice("dict_tokenizer", "re", kinds),
        null=flags.text("dict_nulltoken", "__null__"),
        start=flags.text("dict_starttoken", "__start__"),
        end=flags.text("dict_endtoken", "__end__"),
        unknown=flags.text("dict_unktoken", "__unk__"),
        delimiter=flags.text("delimiter", "\n"),
        pad_to_eight=flags.truth("fp16", False) or flags.truth("force_fp16_tokens", False),
    )


def optim_config(flags: Flags) -> OptimConfig:
    """The optimiser settings that a model was trained with.

    The warm-up is left to ``warmup``; weight decay is set to 0, whatever the flags say.
    """
    first, second = flags.pair("betas", (0.9, 0.999))
    return OptimConfig(
        optimizer=flags.choice(
            "optimizer", "adamax", {"adamax": "adamax", "adamw": "adamw", "adam": "adamw"}
        ),
        learning_rate=flags.decimal("learningrate", 1e-4),
        weight_decay=0.0,
        clip=flags.decimal("gradient_clip", 0.1),
        warmup=0.0,
        decay="plateau",
        plateau_factor=flags.decimal("lr_scheduler_decay", 0.5),
        plateau_patience=flags.number("lr_scheduler_patience", 3),
        head_rate=1.0,
        b1=first,
        b2=second,
        eps=flags.decimal("adam_eps", 1e-8),
    )


def warmup(flags: Flags) -> ParlaiWarmup | None:
    """The warm-up that a model was trained with; None for none."""
    steps = flags.number("warmup_updates", -1)
    return ParlaiWarmup(steps=steps) if steps > 0 else None


def beside(model_file: Path, suffix: str) -> Path:
    """The path of a file that ParlAI writes beside the model, such as ``model.opt``.

    Args:
        model_file: the model.
        suffix: appended to its name, with the dot.

    Raises:
        InputError: ``model_file`` is a folder.
    """
    if model_file.is_dir():
        expected = f"the model file in this folder, such as {model_file / 'model'}"
        raise InputError.in_file(model_file, expected=expected, got=shown("the folder"))
    return model_file.with_name(model_file.name + suffix)


def _shape(weights: Weights, name: str, path: Path) -> tuple[int, int]:
    value = weights.get(name)
    if value is None or value.ndim != 2:
        raise InputError.in_file(path, problem=f"the weight {name} is missing", fix=CHECK_FLAGS)
    return value.shape
