"""Converts ParlAI checkpoints of bi-, poly- and cross-encoders to scorers with the same scores.

A model consists of files that ParlAI wrote side by side: ``model`` (weights), ``model.opt`` (flags),
``model.dict`` and ``model.dict.codecs`` (vocabulary). They are read without torch, and no code in them is
run. In ParlAI, padding changes some scores (maximum over padding; mean and maximum of a pre-norm encoder).
``padding="parlai"`` reproduces this; the default does not.
"""

import dataclasses
from pathlib import Path
from typing import Literal, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx

from polyjax.data.dictionary import DictionaryTokenizer
from polyjax.data.text import TextEncoder
from polyjax.errors import InputError, shown
from polyjax.interop.parlai.flags import (
    CHECK_FLAGS,
    Arch,
    Flags,
    Head,
    Padding,
    Weights,
    arch_of,
    beside,
    dictionary_settings,
    encoder_config,
    head_config,
    optim_config,
    read_opt,
    text_config,
    warmup,
)
from polyjax.interop.parlai.heads import ParlaiBiConfig
from polyjax.interop.parlai.warmup import ParlaiWarmup
from polyjax.interop.torch_file import read_torch_file
from polyjax.nn.abstract import abstract_model
from polyjax.nn.encoders import EncoderConfig
from polyjax.nn.heads import CrossConfig
from polyjax.nn.scorers import ModelConfig, Scorer, make_scorer
from polyjax.runs import ModelCard, fill_parameters, flat_parameters, write_model
from polyjax.train.optim import OptimConfig

ENCODERS: dict[Arch, tuple[str, str]] = {
    "bi": ("context_encoder.", "cand_encoder."),
    "poly": ("encoder_ctxt.", "encoder_cand."),
    "cross": ("encoder.", ""),
}
"""Prefixes of the context encoder's and candidate encoder's names in a state dict."""


def parameters(shape: EncoderConfig, head: Head, weights: Weights, path: Path) -> dict[str, np.ndarray]:
    """The parameters of the scorer, float32, by dotted path.

    Args:
        shape: the encoder's configuration.
        head: the head's configuration.
        weights: the state dict.
        path: its file, for error messages.

    Raises:
        InputError: a weight is missing, not finite, or of another shape than the flags say.
    """
    arch = head.arch
    context, candidate = ENCODERS[cast(Arch, arch)]
    taken = _Taken(weights, path)
    if isinstance(head, CrossConfig):
        found = taken.encoder(shape, context, "encoder")
        return found | taken.linear("linear_layer", "head.linear")
    found = taken.encoder(shape, context, "context_encoder")
    if not head.shared_encoder:
        found |= taken.encoder(shape, candidate, "candidate_encoder")
    if isinstance(head, ParlaiBiConfig):
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
    """Reads weights from a state dict and renames them to polyjax's names."""

    def __init__(self, weights: Weights, path: Path):
        self._weights, self._path = weights, path

    def array(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """A weight as float32; InputError if it is missing, not finite, or of another shape."""
        value = self._weights.get(name)
        if value is None:
            raise InputError.in_file(self._path, problem=f"the weight {name} is missing", fix=CHECK_FLAGS)
        if shape is not None and value.shape != shape:
            raise _other_shape(self._path, name, value.shape, shape)
        if not np.isfinite(value).all():
            raise InputError.in_file(self._path, problem=f"the weight {name} has numbers that are not finite")
        return value.astype(np.float32)

    def linear(self, theirs: str, ours: str) -> Weights:
        """A linear layer; PyTorch stores its kernel transposed."""
        return {
            f"{ours}.kernel": np.ascontiguousarray(self.array(f"{theirs}.weight").T),
            f"{ours}.bias": self.array(f"{theirs}.bias"),
        }

    def norm(self, theirs: str, ours: str) -> Weights:
        """A layer norm."""
        return {
            f"{ours}.scale": self.array(f"{theirs}.weight"),
            f"{ours}.bias": self.array(f"{theirs}.bias"),
        }

    def attention(self, theirs: str, ours: str) -> Weights:
        """The four linear layers of a block's attention."""
        names = {"q_lin": "query", "k_lin": "key", "v_lin": "value", "out_lin": "out"}
        found: Weights = {}
        for name, mine in names.items():
            found |= self.linear(f"{theirs}.{name}", f"{ours}.{mine}")
        return found

    def encoder(self, shape: EncoderConfig, theirs: str, ours: str) -> Weights:
        """A whole transformer."""
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
            problem = f"the model has more layers than the {shape.n_layers} that its flags say"
            raise InputError.in_file(self._path, problem=problem, fix=CHECK_FLAGS)
        return found


def _other_shape(path: Path, name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> InputError:
    return InputError.in_file(
        path, expected=f"{name} of shape {list(expected)}, as the flags say", got=list(got)
    )


def load_dictionary(model_file: Path) -> DictionaryTokenizer:
    """The tokenizer of a ParlAI model: its ``.dict`` and, for BPE, ``.dict.codecs``, used as ``.opt`` says.

    Args:
        model_file: path of the model, which need not exist; the other files are beside it.

    Raises:
        InputError: a file is missing or broken, or asks for a feature that is not supported.
    """
    opt = beside(model_file, ".opt")
    settings = dictionary_settings(Flags(read_opt(opt), opt))
    codes = beside(model_file, ".dict.codecs") if settings.bpe else None
    return DictionaryTokenizer(beside(model_file, ".dict"), codes, settings)


def load_parlai(
    model_file: Path, *, padding: Padding = "none", weights: Path | None = None, dropout: bool = False
) -> tuple[Scorer, TextEncoder, ModelConfig]:
    """Load a ParlAI model: its scorer, its text encoder and its configuration.

    Args:
        model_file: ``model``; its ``.opt``, ``.dict`` and ``.dict.codecs`` are beside it.
        padding: ``parlai`` pads and reduces as ParlAI does, so that a score can depend on the other
            sequences in the batch; with ``none`` it does not.
        weights: another weights file of the same model; ``model_file`` itself by default.
        dropout: keep the dropout rates that the model was trained with, for further training.

    Raises:
        InputError: a file is missing, broken or not ParlAI's, or the model is of another architecture.
    """
    flags = Flags(read_opt(beside(model_file, ".opt")), beside(model_file, ".opt"))
    arch = arch_of(flags)
    tokenizer = load_dictionary(model_file)
    source = weights or model_file
    loaded = _read_weights(source)
    head = head_config(flags, padding=padding)
    shape = encoder_config(flags, loaded, ENCODERS[arch][0], dropout=dropout)
    text = text_config(flags, shape, padding=padding)
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputError.in_file(
            beside(model_file, ".dict"),
            expected=f"at most {shape.vocab_size} tokens, the rows of the model's table",
            got=tokenizer.vocab_size,
            fix="check that the dictionary belongs to this model",
        )
    found = parameters(shape, head, loaded, source)
    abstract = abstract_model(lambda rngs: make_scorer(shape, head, rngs=rngs))
    graph, state = nnx.split(abstract)
    expected = flat_parameters(state)
    wrong = [name for name, leaf in expected.items() if found[name].shape != leaf.shape]
    if wrong:
        name = wrong[0]
        raise _other_shape(source, name, found[name].shape, expected[name].shape)
    values = {name: jnp.asarray(found[name]) for name in expected}
    return (
        nnx.merge(graph, fill_parameters(state, values)),
        TextEncoder(tokenizer, text),
        ModelConfig(encoder=shape, head=head),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertedFrom:
    """The content of a converted model's config.json: where the model comes from.

    Attributes:
        library: the library that trained it.
        arch: its architecture.
        padding: as ``load_parlai``.
        optim: the optimiser settings that it was trained with.
        warmup: steps of ParlAI's warm-up; 0 for none.
    """

    library: Literal["parlai"] = "parlai"
    arch: Arch
    padding: Padding
    optim: OptimConfig
    warmup: int = 0

    @property
    def optimizer(self) -> ParlaiWarmup | None:
        """The optimiser with ParlAI's warm-up; None if the model was trained without warm-up."""
        return ParlaiWarmup(steps=self.warmup) if self.warmup else None


def convert_parlai(model_file: Path, out_dir: Path, *, padding: Padding = "none") -> None:
    """Convert a ParlAI model to a run directory.

    Args:
        model_file: as ``load_parlai``.
        out_dir: the run directory to create; it must not exist yet.
        padding: as ``load_parlai``.

    Raises:
        InputError: as ``load_parlai``, or the directory exists or cannot be written.
    """
    if out_dir.exists():
        fix = "choose another folder, or remove this one"
        raise InputError.in_file(out_dir, problem="the folder already exists", fix=fix)
    opt = beside(model_file, ".opt")
    flags = Flags(read_opt(opt), opt)
    scorer, text, model = load_parlai(model_file, padding=padding, dropout=True)
    warm = warmup(flags)
    origin = ConvertedFrom(
        arch=arch_of(flags),
        padding=padding,
        optim=optim_config(flags),
        warmup=0 if warm is None else warm.steps,
    )
    card = ModelCard(model=model, text=text.config)
    write_model(out_dir, scorer, card, text.tokenizer, config=origin)


def _read_weights(path: Path) -> Weights:
    """The state dict, without the prefixes that module wrappers add to its names."""
    saved = read_torch_file(path)
    weights = saved.get("model") if isinstance(saved, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, np.ndarray) for w in weights.values()):
        got = shown(f"a {type(saved).__name__} without them")
        raise InputError.in_file(path, expected="a ParlAI model with its weights under 'model'", got=got)
    return {
        name.replace("cand_encoder.transformer.", "cand_encoder.").removeprefix("module."): value
        for name, value in weights.items()
    }
