"""Reads modules.json and the modules that it lists: Transformer, Pooling, Dense and Normalize.

Names of old and new versions are read. An unknown type or entry is refused; the error names it.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyjax.errors import InputError, shown
from polyjax.interop.huggingface import read_object
from polyjax.nn.activations import Activation
from polyjax.nn.heads import DenseConfig
from polyjax.nn.reduce import Reduction

MODULES = "modules.json"
"""Name of the file that lists the modules; only sentence-transformers writes it."""
CONFIG = "config.json"
ONLY_TRANSFORMER = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
]
"""A cross-encoder's modules, as version 6 writes them."""
OF_PAIRS = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
"""Entries of a cross-encoder's sentence_bert_config.json."""
KNOWN = ("Transformer", "Pooling", "Dense", "Normalize")

POOLING: Mapping[str, Reduction] = {
    "cls": "first",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
"""Pooling modes by their newer names, in the order in which the vectors of several are concatenated."""
FLAGS: Mapping[str, str] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Pooling modes by their older names: flags in the module's config.json."""
ACTIVATIONS: Mapping[str, Activation] = {
    "linear.Identity": "identity",
    "activation.Sigmoid": "sigmoid",
    "activation.Tanh": "tanh",
    "activation.ReLU": "relu",
    "activation.GELU": "gelu",
    "activation.SiLU": "silu",
}
"""Activations by their class in torch.nn.modules."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseModule:
    """A Dense module: a linear layer with an activation.

    Attributes:
        folder: holds its config.json and model.safetensors.
        config: the layer's settings.
        dim_in: width of its input.
    """

    folder: Path
    config: DenseConfig
    dim_in: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modules:
    """The modules listed in modules.json.

    Attributes:
        names: class names of the modules, in their order.
        transformer: folder of the transformer.
        reductions: the Pooling module's; vectors of several are concatenated. Empty without Pooling.
        pooled_dim: width of the token outputs that Pooling expects; None if it does not say.
        pool_prompts: whether the tokens of a prompt are pooled.
        dense: Dense modules after the pooling, in their order.
        normalize: whether the final vector is scaled to length 1.
    """

    names: tuple[str, ...]
    transformer: Path
    reductions: tuple[Reduction, ...] = ()
    pooled_dim: int | None = None
    pool_prompts: bool = True
    dense: tuple[DenseModule, ...] = ()
    normalize: bool = False


def read_modules(folder: Path) -> Modules | None:
    """The modules of a folder; None if it has no modules.json.

    Raises:
        InputError: a file is missing or broken, or names a module or entry that is not supported.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    found: list[tuple[str, Path]] = []
    for entry in _listed(path):
        name = str(entry.get("type")).rpartition(".")[2]
        if name not in KNOWN:
            raise InputError.in_file(path, expected=f"modules of {', '.join(KNOWN)}", got=entry.get("type"))
        if entry.get("kwargs"):
            raise InputError.in_file(path, expected=f"no 'kwargs' of {name}", got=entry["kwargs"])
        found.append((name, folder / str(entry.get("path", ""))))
    names = tuple(name for name, _ in found)
    if not names or names[0] != "Transformer" or "Transformer" in names[1:] or names.count("Pooling") > 1:
        raise InputError.in_file(
            path, expected="a Transformer first, and one Pooling", got=shown(", ".join(names))
        )
    if len(names) > 1 and names[1] != "Pooling":
        raise InputError.in_file(path, expected="Pooling after the Transformer", got=names[1])
    return _gathered(names, [place for _, place in found])


def _listed(path: Path) -> list[dict[str, Any]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError.in_file(path, problem=f"not readable as JSON: {error}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError.in_file(path, expected="a list of objects", got=entries)
    return entries


def _gathered(names: tuple[str, ...], places: list[Path]) -> Modules:
    found = Modules(names=names, transformer=places[0])
    normalized = False
    for name, place in zip(names[1:], places[1:], strict=True):
        if name == "Pooling":
            found = _with_pooling(found, place / CONFIG)
        elif name == "Normalize":
            if (place / CONFIG).is_file():
                _check_entries(place / CONFIG, read_object(place / CONFIG), SENTENCE)
            normalized = True
        else:
            layer = _dense(place, unit_input=normalized)
            found = dataclasses.replace(found, dense=(*found.dense, layer))
            normalized = False
    return dataclasses.replace(found, normalize=normalized)


SENTENCE: Mapping[str, Any] = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
}
"""Entries of modules after the pooling, which have one possible value: they work on the pooled vector."""


def _check_entries(path: Path, entries: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise InputError for an unknown entry, or a value other than that in ``known`` (None allows any)."""
    for name, value in entries.items():
        if name not in known:
            raise InputError.in_file(path, expected=f"entries of {', '.join(known)}", got=name)
        if known[name] is not None and value != known[name]:
            raise InputError.in_file(path, expected=f"{known[name]!r} for {name!r}", got=value)


def _with_pooling(found: Modules, path: Path) -> Modules:
    entries = read_object(path)
    dims = ("word_embedding_dimension", "embedding_dimension")
    for name in entries:
        if name.startswith("pooling_mode_") and name not in FLAGS:
            raise InputError.in_file(path, expected=f"pooling modes of {', '.join(FLAGS)}", got=name)
    _check_entries(path, entries, dict.fromkeys((*dims, *FLAGS, "pooling_mode", "include_prompt")))
    if "pooling_mode" in entries:
        given = entries["pooling_mode"]
        modes = given if isinstance(given, list) else [given]
    else:
        modes = [mode for flag, mode in FLAGS.items() if entries.get(flag)]
        if not modes and "pooling_mode_mean_tokens" not in entries:
            modes = ["mean"]  # as the library has it where a file does not say
    for mode in modes:
        if mode not in POOLING:
            raise InputError.in_file(path, expected=f"pooling modes of {', '.join(POOLING)}", got=mode)
    if not modes:
        raise InputError.in_file(path, expected="a pooling mode", got=shown("none"))
    dim = next((entries[name] for name in dims if entries.get(name) is not None), None)
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
        raise InputError.in_file(path, expected="a whole number for the embedding's dimension", got=dim)
    return dataclasses.replace(
        found,
        reductions=tuple(POOLING[mode] for mode in modes),
        pooled_dim=dim,
        pool_prompts=_flag(path, entries, "include_prompt", True),
    )


def _flag(path: Path, entries: Mapping[str, Any], name: str, default: bool) -> bool:
    value = entries.get(name, default)
    if not isinstance(value, bool):
        raise InputError.in_file(path, expected=f"true or false for {name!r}", got=value)
    return value


_DENSE_ACTIVATION = "torch.nn.modules.activation.Tanh"
"""The library's default, where a Dense does not say."""


def _dense(folder: Path, *, unit_input: bool) -> DenseModule:
    path = folder / CONFIG
    entries = read_object(path)
    own = ("in_features", "out_features", "bias", "activation_function")
    _check_entries(path, entries, {**dict.fromkeys(own), **SENTENCE, "use_residual": False})
    for name in ("in_features", "out_features"):
        value = entries.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError.in_file(path, expected=f"a positive whole number for {name!r}", got=value)
    dotted = entries.get("activation_function", _DENSE_ACTIVATION)
    activation = torch_activation(path, "activation_function", dotted)
    config = DenseConfig(
        dim=entries["out_features"],
        bias=_flag(path, entries, "bias", True),
        activation=activation,
        unit_input=unit_input,
    )
    return DenseModule(folder=folder, config=config, dim_in=entries["in_features"])


def torch_activation(path: Path, name: str, dotted: Any) -> Activation:
    """The activation for the dotted name of a torch class. Nothing is imported.

    Args:
        path: the file that names it, for the error message.
        name: the entry, for the error message.
        dotted: the entry's value.

    Raises:
        InputError: the class is not one of ``ACTIVATIONS``.
    """
    known: dict[str, Activation] = {
        f"torch.nn.modules.{ending}": ours for ending, ours in ACTIVATIONS.items()
    }
    known |= {f"torch.nn.{ending.rpartition('.')[2]}": ours for ending, ours in ACTIVATIONS.items()}
    if not isinstance(dotted, str) or dotted not in known:
        raise InputError.in_file(path, expected=f"one of {', '.join(known)} for {name!r}", got=dotted)
    return known[dotted]


def torch_class(activation: Activation) -> str:
    """The dotted name of the torch class for an activation.

    >>> torch_class("tanh")
    'torch.nn.modules.activation.Tanh'
    """
    return next(f"torch.nn.modules.{ending}" for ending, ours in ACTIVATIONS.items() if ours == activation)
