"""ParlAI checkpoints of bi-, poly- and cross-encoders -> scorers with the same scores.

A model is the files that ParlAI wrote side by side: ``model`` (weights), ``model.opt`` (flags),
``model.dict`` and ``model.dict.codecs`` (vocabulary). They are read without torch and without running
anything in them. Where padding changes a score in ParlAI (maximum over padding; mean and maximum of a
pre-norm encoder) the converted model can keep that (``padding="parlai"``) or be free of it.
"""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, assert_never

import jax.numpy as jnp
import numpy as np
from flax import nnx

from polyjax.data.dictionary import DictionarySettings, DictionaryTokenizer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.interop.torch_file import BrokenFile, read_pickle, read_torch_file
from polyjax.models import ModelConfig, Scorer, make_scorer
from polyjax.nn.encoder import EncoderConfig
from polyjax.nn.heads import AttentionKind, BiConfig, CrossConfig, HeadConfig, PolyConfig, head_label
from polyjax.nn.reduce import Reduction
from polyjax.train.checkpoint import ModelCard, fill_parameters, flat_parameters, write_model
from polyjax.train.optim import OptimConfig
from polyjax.types import InputError

Arch = Literal["bi", "poly", "cross"]
Padding = Literal["none", "parlai"]
Opt = Mapping[str, Any]
Weights = dict[str, np.ndarray]


def read_opt(path: Path) -> Opt:
    """The flags of a model.

    Args:
        path: ``model.opt``, JSON (or, in very old models, a pickle of plain data).

    Raises:
        InputError: the file is missing or is not a dictionary of flags.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected the flags that ParlAI writes beside a model") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        opt = json.loads(raw) if raw.lstrip()[:1] == b"{" else read_pickle(io.BytesIO(raw))
    except (ValueError, RecursionError, BrokenFile) as error:
        raise InputError(f"{path} cannot be read as ParlAI's flags: {error}") from None
    if not isinstance(opt, dict):
        raise InputError(f"{path} cannot be read as ParlAI's flags: it holds a {type(opt).__name__}")
    return opt


class Flags:
    """Typed access to ``model.opt``, with ParlAI's defaults for what is missing."""

    def __init__(self, opt: Opt, path: Path):
        self._opt, self.path = opt, path

    def given(self, name: str) -> bool:
        """Whether a flag is set to something."""
        return bool(self._opt.get(name))

    def _get(self, name: str, default: Any) -> Any:
        value = self._opt.get(name)
        return default if value is None else value

    def number(self, name: str, default: int) -> int:
        """A whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{self.path}: {name} must be a whole number, got {value!r}")
        return value

    def decimal(self, name: str, default: float) -> float:
        """A finite number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise InputError(f"{self.path}: {name} must be a number, got {value!r}")
        return float(value)

    def pair(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """Two numbers."""
        value = self._get(name, default)
        if (
            not isinstance(value, list | tuple)
            or len(value) < 2
            or not all(isinstance(v, float) for v in value)
        ):
            raise InputError(f"{self.path}: {name} must be two numbers, got {value!r}")
        return value[0], value[1]

    def truth(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._get(name, default)
        if not isinstance(value, bool | int):
            raise InputError(f"{self.path}: {name} must be true or false, got {value!r}")
        return bool(value)

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise InputError(f"{self.path}: {name} must be a text, got {value!r}")
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, Any]) -> Any:
        """What a text stands for."""
        value = self.text(name, default)
        if value not in choices:
            raise InputError(f"{self.path}: {name} must be one of {', '.join(choices)}, got {value!r}")
        return choices[value]


ARCHS: dict[str, Arch] = {"biencoder": "bi", "polyencoder": "poly", "crossencoder": "cross"}
VARIANTS = {
    "xlm": {"norm": "post", "embedding_norm": True},
    "bart": {"norm": "post", "embedding_norm": True},
    "aiayn": {"norm": "post", "embedding_norm": False},
    "prelayernorm": {"norm": "pre", "embedding_norm": False},
}
ATTENTIONS: dict[str, AttentionKind] = {"basic": "basic", "sqrt": "sqrt", "multihead": "multihead"}
REDUCTIONS: dict[str, Reduction] = {"first": "first", "mean": "mean", "max": "max"}
# Flags that change what a model reads, in ways that are not reproduced here.
REFUSED = ("person_tokens", "history_reversed", "split_lines", "history_add_global_end_token")


def arch_of(flags: Flags) -> Arch:
    """The architecture, from the agent's name."""
    name = flags.text("model", "").replace(":", "/").split("/")[-1].lower()
    name = name.removesuffix("agent").replace("_", "")
    if name not in ARCHS:
        raise InputError(
            f"{flags.path}: model must be a transformer/biencoder, polyencoder or crossencoder, "
            f"got {flags.text('model', '')!r}"
        )
    return ARCHS[name]


def head_config(flags: Flags, *, padding: Padding) -> HeadConfig:
    """The head's configuration."""
    reduction = flags.choice("reduction_type", "mean", REDUCTIONS)
    over_padding = padding == "parlai"
    match arch_of(flags):
        case "bi":
            shared = flags.truth("share_encoders", True)
            return BiConfig(
                reduction=reduction,
                shared_encoder=shared,
                shared_words=not shared and flags.truth("share_word_embeddings", True),
                candidate_mlp=shared,
                normalize=flags.truth("normalize_sent_emb", False),
                over_padding=over_padding,
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
                over_padding=over_padding,
            )
        case "cross":
            return CrossConfig(reduction=reduction, over_padding=over_padding)
        case other:
            assert_never(other)


def encoder_config(flags: Flags, weights: Weights, prefix: str, *, dropout: bool) -> EncoderConfig:
    """The transformer's configuration; sizes are those of the weights."""
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
    """How ParlAI made sequences of texts: history, truncation, special tokens."""
    for name in REFUSED:
        if flags.given(name):
            raise InputError(
                f"{flags.path}: {name} is set, which changes what the model reads; not supported"
            )
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
        # ParlAI cuts a context before it adds the start and end tokens, a label after.
        context_tokens=min(limit("text_truncate") + 2, room),
        candidate_tokens=label,
        padding="longest" if padding == "parlai" else "bucket",
        layout="parlai",
    )


def dictionary_settings(flags: Flags) -> DictionarySettings:
    """How the dictionary was used."""
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
    """The optimiser and warm-up that a model was trained with; no dropout or weight decay beyond it."""
    first, second = flags.pair("betas", (0.9, 0.999))
    return OptimConfig(
        optimizer=flags.choice(
            "optimizer", "adamax", {"adamax": "adamax", "adamw": "adamw", "adam": "adamw"}
        ),
        learning_rate=flags.decimal("learningrate", 1e-4),
        weight_decay=0.0,
        clip=flags.decimal("gradient_clip", 0.1),
        warmup=0.0,
        parlai_warmup=max(flags.number("warmup_updates", -1), 0),
        decay="plateau",
        plateau_factor=flags.decimal("lr_scheduler_decay", 0.5),
        plateau_patience=flags.number("lr_scheduler_patience", 3),
        head_rate=1.0,
        b1=first,
        b2=second,
        eps=flags.decimal("adam_eps", 1e-8),
    )


ENCODERS: dict[Arch, tuple[str, str]] = {
    "bi": ("context_encoder.", "cand_encoder."),
    "poly": ("encoder_ctxt.", "encoder_cand."),
    "cross": ("encoder.", ""),
}
"""Prefixes of the context's and the candidate's encoder in a state dict."""


def parameters(shape: EncoderConfig, head: HeadConfig, weights: Weights, path: Path) -> dict[str, np.ndarray]:
    """The weights under polyjax's names, float32.

    Raises:
        InputError: a weight is missing, or has another shape than the flags say.
    """
    arch = head_label(head)
    context, candidate = ENCODERS[arch]
    taken = _Taken(weights, path)
    if isinstance(head, CrossConfig):
        found = taken.encoder(shape, context, "encoder")
        return found | taken.linear("linear_layer", "head.linear")
    found = taken.encoder(shape, context, "context_encoder")
    if not head.shared_encoder:
        found |= taken.encoder(shape, candidate, "candidate_encoder")
    if isinstance(head, BiConfig):
        if head.candidate_mlp:
            for ours, theirs in enumerate((0, 2)):
                found |= taken.linear(f"cand_encoder.mlp.{theirs}", f"head.candidate_mlp.{ours}")
        return found
    if head.codes == "learnt":
        found["head.codes"] = taken.array("codes", (head.n_codes, shape.dim))
        if head.codes_attention == "multihead":
            found |= taken.attention("code_attention", "head.codes_attention")
    if head.candidate_attention == "multihead":
        found |= taken.attention("attention", "head.candidate_attention")
    return found


class _Taken:
    """Takes weights out of a state dict under polyjax's names."""

    def __init__(self, weights: Weights, path: Path):
        self._weights, self._path = weights, path

    def array(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        value = self._weights.get(name)
        if value is None:
            raise InputError(
                f"{self._path}: the weight {name} is missing; do the flags belong to this model?"
            )
        if shape is not None and value.shape != shape:
            raise InputError(f"{self._path}: {name} has shape {value.shape}, the flags ask for {shape}")
        if not np.isfinite(value).all():
            raise InputError(f"{self._path}: {name} holds numbers that are not finite")
        return value.astype(np.float32)

    def linear(self, theirs: str, ours: str) -> Weights:
        return {
            f"{ours}.kernel": np.ascontiguousarray(self.array(f"{theirs}.weight").T),
            f"{ours}.bias": self.array(f"{theirs}.bias"),
        }

    def norm(self, theirs: str, ours: str) -> Weights:
        return {
            f"{ours}.scale": self.array(f"{theirs}.weight"),
            f"{ours}.bias": self.array(f"{theirs}.bias"),
        }

    def attention(self, theirs: str, ours: str) -> Weights:
        names = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "out"}
        found: Weights = {}
        for name, mine in names.items():
            found |= self.linear(f"{theirs}.{name}", f"{ours}.{mine}")
        return found

    def encoder(self, shape: EncoderConfig, theirs: str, ours: str) -> Weights:
        table = f"{ours}.embeddings"
        found = {
            f"{table}.tokens": self.array(f"{theirs}embeddings.weight", (shape.vocab_size, shape.dim)),
            f"{table}.positions": self.array(
                f"{theirs}position_embeddings.weight", (shape.n_positions, shape.dim)
            ),
        }
        if shape.n_segments:
            found[f"{table}.segments"] = self.array(
                f"{theirs}segment_embeddings.weight", (shape.n_segments, shape.dim)
            )
        if shape.embedding_norm:
            found |= self.norm(f"{theirs}norm_embeddings", f"{table}.norm")
        if shape.norm == "pre":
            found |= self.norm(f"{theirs}norm_embeddings", f"{ours}.final_norm")
        for i in range(shape.n_layers):
            layer, block = f"{theirs}layers.{i}", f"{ours}.blocks.{i}"
            projections = [f"{layer}.attention.{name}_lin" for name in "qkv"]
            found |= {
                f"{block}.attention.qkv.kernel": np.concatenate(
                    [self.array(f"{name}.weight").T for name in projections], axis=1
                ),
                f"{block}.attention.qkv.bias": np.concatenate(
                    [self.array(f"{name}.bias") for name in projections]
                ),
            }
            found |= self.linear(f"{layer}.attention.out_lin", f"{block}.attention.out")
            found |= self.norm(f"{layer}.norm1", f"{block}.attention_norm")
            found |= self.norm(f"{layer}.norm2", f"{block}.mlp_norm")
            found |= self.linear(f"{layer}.ffn.lin1", f"{block}.mlp_in")
            found |= self.linear(f"{layer}.ffn.lin2", f"{block}.mlp_out")
        if f"{theirs}layers.{shape.n_layers}.norm1.weight" in self._weights:
            raise InputError(
                f"{self._path}: the model has more layers than the {shape.n_layers} of its flags"
            )
        return found


def _shape(weights: Weights, name: str, path: Path) -> tuple[int, int]:
    value = weights.get(name)
    if value is None or value.ndim != 2:
        raise InputError(f"{path}: the weight {name} is missing; do the flags belong to this model?")
    return value.shape


def load_parlai(
    model_file: Path, *, padding: Padding = "none", weights: Path | None = None, dropout: bool = False
) -> tuple[Scorer, TextEncoder, ModelConfig]:
    """A ParlAI model's scorer and text encoder, and its configuration.

    Args:
        model_file: ``model``; its ``.opt``, ``.dict`` and ``.dict.codecs`` lie beside it.
        padding: ``parlai`` pads and reduces as ParlAI does, so that a score can depend on the other
            sequences of a call; ``none`` is free of that.
        weights: another file of the same model's weights; ``model_file`` itself by default.
        dropout: keep the rates that the model was trained with, for training it further.

    Raises:
        InputError: a file is missing, broken or foreign, or the model is of another kind.
    """
    flags = Flags(read_opt(beside(model_file, ".opt")), beside(model_file, ".opt"))
    arch = arch_of(flags)
    settings = dictionary_settings(flags)
    tokenizer = DictionaryTokenizer(
        beside(model_file, ".dict"), beside(model_file, ".dict.codecs") if settings.bpe else None, settings
    )
    source = weights or model_file
    loaded = _read_weights(source)
    head = head_config(flags, padding=padding)
    shape = encoder_config(flags, loaded, ENCODERS[arch][0], dropout=dropout)
    text = text_config(flags, shape, padding=padding)
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputError(
            f"{beside(model_file, '.dict')} has {tokenizer.vocab_size} tokens, more than the "
            f"{shape.vocab_size} rows of the model's table; do they belong together?"
        )
    found = parameters(shape, head, loaded, source)
    abstract = nnx.eval_shape(lambda: make_scorer(shape, head, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    expected = flat_parameters(state)
    wrong = [name for name, leaf in expected.items() if found[name].shape != leaf.shape]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{source}: {name} has shape {found[name].shape}, the flags ask for {expected[name].shape}"
        )
    values = {name: jnp.asarray(found[name]) for name in expected}
    return (
        nnx.merge(graph, fill_parameters(state, values)),
        TextEncoder(tokenizer, text),
        ModelConfig(encoder=shape, head=head),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertedFrom:
    """What config.json of a converted model says: where it comes from.

    Attributes:
        library: whose model it was.
        arch: its architecture.
        padding: as ``load_parlai``.
        optim: the settings that it was trained with.
    """

    library: Literal["parlai"] = "parlai"
    arch: Arch
    padding: Padding
    optim: OptimConfig


def convert_parlai(model_file: Path, out_dir: Path, *, padding: Padding = "none") -> None:
    """Make a run directory of a ParlAI model.

    Args:
        model_file: as ``load_parlai``.
        out_dir: must not exist yet.
        padding: as ``load_parlai``.

    Raises:
        InputError: a file is missing, broken or foreign, or the directory exists or cannot be written.
    """
    if out_dir.exists():
        raise InputError(f"{out_dir} exists already; choose another directory, or remove it")
    opt = beside(model_file, ".opt")
    flags = Flags(read_opt(opt), opt)
    scorer, text, model = load_parlai(model_file, padding=padding, dropout=True)
    origin = ConvertedFrom(arch=arch_of(flags), padding=padding, optim=optim_config(flags))
    card = ModelCard(model=model, text=text.config)
    write_model(out_dir, scorer, card, text.tokenizer, config=origin)


def beside(model_file: Path, suffix: str) -> Path:
    """A file of the model's family, by its suffix."""
    return model_file.with_name(model_file.name + suffix)


def _read_weights(path: Path) -> Weights:
    """The state dict, its names without the prefixes that wrappers of the module put before them."""
    saved = read_torch_file(path)
    weights = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, np.ndarray) for w in weights.values()):
        raise InputError(f"{path} holds no ParlAI model: expected weights under 'model'")
    return {
        name.replace("cand_encoder.transformer.", "cand_encoder.").removeprefix("module."): value
        for name, value in weights.items()
    }
