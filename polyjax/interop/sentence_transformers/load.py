"""Loads a folder of sentence-transformers or transformers as a scorer with the same scores."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from polyjax.data.text import TextEncoder
from polyjax.data.tokenizers import Tokenizer
from polyjax.errors import InputError
from polyjax.interop.huggingface import TensorFiles, check_no_more, fill, parameter_shapes, read_parameters
from polyjax.interop.sentence_transformers.folder import EncoderFolder, read_folder
from polyjax.nn.abstract import abstract_model
from polyjax.nn.encoders import Dtype, EncoderSettings, Stored
from polyjax.nn.scorers import Scorer, make_scorer


def load_folder(folder: Path, *, turns: int, dtype: Dtype = "float32") -> tuple[Scorer, TextEncoder]:
    """Load a bi-encoder or cross-encoder from a folder: its scorer and its text encoder.

    Args:
        folder: saved by sentence-transformers or transformers.
        turns: number of a context's last turns that are read.
        dtype: of the computation.

    Raises:
        InputError: a file is missing or broken, or asks for a feature that is not implemented.
    """
    found = read_folder(folder)
    tokenizer = found.tokenizer()
    check_vocabulary(tokenizer, found.settings, name=str(folder))
    assert dataclasses.is_dataclass(found.settings)
    shape: Any = dataclasses.replace(found.settings, dtype=dtype)  # pyright: ignore[reportCallIssue]
    head: Any = found.bi_head() if found.classifier is None else found.cross_head()
    abstract = abstract_model(lambda rngs: make_scorer(shape, head, rngs=rngs))
    graph, state = nnx.split(abstract)
    shapes = parameter_shapes(abstract)
    values = {f"encoder.{name}": value for name, value in encoder_parameters(found, shapes).items()}
    values |= {f"head.{name}": value for name, value in head_parameters(found, shapes).items()}
    flat = [
        (path, leaf.replace(jnp.asarray(values[_under_one_name(path)])))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat)), TextEncoder(tokenizer, found.text(turns=turns))


def _under_one_name(path: tuple) -> str:
    """A parameter's dotted path; ``context_encoder.`` becomes ``encoder.``, as in a cross-encoder."""
    return ".".join(map(str, path)).replace("context_encoder.", "encoder.", 1)


def encoder_parameters(found: EncoderFolder, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The encoder's parameters, float32, by dotted path inside the encoder.

    Args:
        found: the folder.
        shapes: shapes of the scorer's parameters, by dotted path.

    Raises:
        InputError: a tensor is missing, broken or of another shape.
    """
    own = {name.partition("encoder.")[2]: s for name, s in shapes.items() if not name.startswith("head.")}
    with TensorFiles(found.transformer, prefixes=found.family.prefixes) as tensors:
        stored = found.family.stored(found.settings)
        check_no_more(tensors, stored, found.settings.n_layers)
        return read_parameters(tensors, stored, own)


def head_parameters(found: EncoderFolder, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The parameters of the head (a classifier, or dense layers), float32, by dotted path inside the head.

    Args:
        found: the folder.
        shapes: shapes of the scorer's parameters, by dotted path.

    Raises:
        InputError: a tensor is missing, broken or of another shape.
    """
    own = {name.removeprefix("head."): s for name, s in shapes.items() if name.startswith("head.")}
    if found.classifier is not None:
        with TensorFiles(found.transformer) as tensors:
            return read_parameters(tensors, found.classifier.stored(), own)
    values: dict[str, np.ndarray] = {}
    for i, module in enumerate(() if found.modules is None else found.modules.dense):
        stored = [Stored(f"dense.layers.{i}.kernel", ("linear.weight",), transposed=True)]
        if module.config.bias:
            stored.append(Stored(f"dense.layers.{i}.bias", ("linear.bias",)))
        with TensorFiles(module.folder) as tensors:
            values |= read_parameters(tensors, stored, own)
    return values


def load_head(scorer: Scorer, found: EncoderFolder) -> None:
    """Set the parameters of a scorer's head from a folder whose head has the same settings.

    Args:
        scorer: its head has the settings of ``found.cross_head()`` or ``found.bi_head()``.
        found: the folder.

    Raises:
        InputError: a tensor is missing, broken or of another shape.
    """
    assert isinstance(scorer.head, nnx.Module)
    fill(scorer.head, head_parameters(found, parameter_shapes(scorer)))


def check_vocabulary(tokenizer: Tokenizer, settings: EncoderSettings, *, name: str) -> None:
    """Check that the encoder's token table has a row for each token of the tokenizer.

    Args:
        tokenizer: its vocabulary is compared.
        settings: of the encoder.
        name: of the model, for the error message.

    Raises:
        InputError: the tokenizer has more tokens than the table has rows.
    """
    rows = getattr(settings, "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise InputError(
            "encoder",
            problem=f"the tokenizer has {tokenizer.vocab_size} tokens, more than the {rows} rows of {name}'s "
            "token table",
            fix="check that its files belong together",
        )
