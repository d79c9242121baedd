"""Reads a folder's tensors (safetensors, one file or several shards) as parameters."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes  # noqa: F401  # registers bfloat16 with numpy, for safetensors
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from polyjax.errors import InputError, shown
from polyjax.interop.huggingface.config import family_for, read_object
from polyjax.nn.encoders import Stored, TokenEncoder

WEIGHTS = "model.safetensors"
"""File name of a folder's tensors when they are not split into shards."""
INDEX, PICKLE = "model.safetensors.index.json", "pytorch_model.bin"
_OLD_NAMES = {"weight": "gamma", "bias": "beta"}
"""Names of layer-norm tensors in checkpoints converted from TensorFlow's BERT."""


class TensorFiles:
    """The tensors of a folder, read by name. Use it in a ``with`` statement.

    Args:
        folder: has model.safetensors, or model.safetensors.index.json and the shards listed in it.
        prefixes: possible prefixes of the encoder's tensor names, such as ``bert.``; the first that occurs
            is used.

    Raises:
        InputError: a file is missing or broken.

    Attributes:
        path: model.safetensors, or the index of the shards.
        prefix: the prefix in use; empty if none occurs.
    """

    def __init__(self, folder: Path, *, prefixes: Iterable[str] = ()):
        self._opened = ExitStack()
        self._files: dict[str, tuple[Any, Path]] = {}
        try:
            for path, names in _weight_files(folder):
                self._add(path, names)
        except BaseException:
            self._opened.close()
            raise
        self.path = folder / (WEIGHTS if (folder / WEIGHTS).is_file() else INDEX)
        starts = (prefix for prefix in prefixes if any(name.startswith(prefix) for name in self._files))
        self.prefix = next(starts, "")

    def __enter__(self) -> "TensorFiles":
        """Return the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._opened.close()

    def _add(self, path: Path, names: Iterable[str] | None) -> None:
        if not path.is_file():
            raise InputError.in_file(path, problem=f"the shard is missing; {INDEX} lists it")
        try:
            file = self._opened.enter_context(safe_open(path, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise InputError.in_file(path, problem=f"not a readable safetensors file: {error}") from None
        there = set(file.keys())
        for name in there if names is None else names:
            if name not in there:
                raise InputError.in_file(
                    path, problem=f"the tensor {name} is missing; {INDEX} lists it in this file"
                )
            self._files[name] = file, path

    def _named(self, name: str) -> str | None:
        """The name in the file: with the prefix, and the old name of a layer norm if the file uses it."""
        start, _, end = name.rpartition(".")
        tried = [name, f"{start}.{_OLD_NAMES[end]}"] if end in _OLD_NAMES else [name]
        return next((full for full in (self.prefix + n for n in tried) if full in self._files), None)

    def has(self, name: str) -> bool:
        """Whether the folder has a tensor, by its name without prefix."""
        return self._named(name) is not None

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Read a tensor, converted to float32.

        Args:
            name: its name without prefix.
            shape: the shape expected from config.json.

        Raises:
            InputError: it is missing, broken or of another shape, or has numbers that are not finite.
        """
        full = self._named(name)
        if full is None:
            raise InputError.in_file(self.path, problem=f"the tensor {self.prefix + name} is missing")
        file, path = self._files[full]
        try:
            found = tuple(file.get_slice(full).get_shape())
            if found != shape:
                raise InputError.in_file(
                    path,
                    expected=f"{full} of shape {list(shape)}, as config.json says",
                    got=shown(list(found)),
                )
            value = file.get_tensor(full)
            if not jnp.issubdtype(value.dtype, jnp.floating):
                raise InputError.in_file(
                    path, expected=f"{full} in a floating-point dtype", got=shown(str(value.dtype))
                )
            value = value.astype(np.float32)
        except SafetensorError as error:
            raise InputError.in_file(path, problem=f"{full} cannot be read: {error}") from None
        if not np.isfinite(value).all():
            raise InputError.in_file(path, problem=f"{full} has numbers that are not finite")
        return value


def _weight_files(folder: Path) -> list[tuple[Path, list[str] | None]]:
    """The weight files, each with the names of its tensors to read; None for all of them."""
    if (folder / WEIGHTS).is_file():
        return [(folder / WEIGHTS, None)]
    if (folder / INDEX).is_file():
        places = read_object(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise InputError.in_file(
                folder / INDEX, expected="a weight_map of tensors and files", got=shown(json.dumps(places))
            )
        shards: dict[str, list[str]] = {}
        for name, file in places.items():
            if Path(file).name != file:
                raise InputError.in_file(folder / INDEX, expected="files of this folder", got=file)
            shards.setdefault(file, []).append(name)
        return [(folder / file, names) for file, names in sorted(shards.items())]
    if (folder / PICKLE).is_file():
        raise InputError.in_file(
            folder / PICKLE,
            problem=f"a pickle can run programs and is not read; expected {WEIGHTS}",
            fix="save the model with safetensors (save_pretrained of transformers does)",
        )
    raise InputError.in_file(folder / WEIGHTS, problem="the file is missing: expected weights as safetensors")


def read_parameters(
    tensors: TensorFiles, stored: Iterable[Stored], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Read parameters from a folder's tensors, float32, by dotted path.

    Args:
        tensors: the tensors of the folder.
        stored: for each parameter, the tensors that make it up.
        shapes: shapes of the parameters, by dotted path.

    Raises:
        InputError: a tensor is missing, broken or of another shape.
    """
    found: dict[str, np.ndarray] = {}
    for entry in stored:
        shape = shapes[entry.ours]
        shape = shape[::-1] if entry.transposed else shape
        rows, other = divmod(shape[0], len(entry.theirs))
        assert not other, entry
        parts = [tensors.take(name, (rows, *shape[1:])) for name in entry.theirs]
        value = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found[entry.ours] = value.T if entry.transposed else value
    return found


def tensors_of(
    stored: Iterable[Stored], values: Mapping[str, np.ndarray], prefix: str = ""
) -> dict[str, np.ndarray]:
    """The tensors to write for given parameters, float32, by name: the inverse of ``read_parameters``.

    Args:
        stored: for each parameter, the tensors that make it up.
        values: parameters by dotted path.
        prefix: put before each tensor's name.
    """
    found: dict[str, np.ndarray] = {}
    for entry in stored:
        value = values[entry.ours].T if entry.transposed else values[entry.ours]
        for name, part in zip(entry.theirs, np.split(value, len(entry.theirs)), strict=True):
            found[prefix + name] = np.ascontiguousarray(part, np.float32)
    return found


def parameter_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a module's parameters, by dotted path; the module may be abstract."""
    return {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module))}


def fill(module: nnx.Module, values: Mapping[str, np.ndarray]) -> None:
    """Set a module's parameters in place.

    Args:
        module: its parameters are replaced.
        values: a value for each of its parameters, by dotted path.
    """
    state = nnx.state(module)
    for path, variable in nnx.to_flat_state(state):
        variable.set_value(jnp.asarray(values[".".join(map(str, path))]))
    nnx.update(module, state)


def load_encoder_weights(encoder: TokenEncoder, folder: Path) -> None:
    """Set an encoder's parameters from a folder of its family.

    Raises:
        InputError: a file or tensor is missing, broken or of another shape, or the folder's model has more
            layers than the encoder.
    """
    family = family_for(encoder.config)
    assert isinstance(encoder, nnx.Module)
    with TensorFiles(folder, prefixes=family.prefixes) as tensors:
        stored = family.stored(encoder.config)
        check_no_more(tensors, stored, encoder.config.n_layers)
        fill(encoder, read_parameters(tensors, stored, parameter_shapes(encoder)))


def check_no_more(tensors: TensorFiles, stored: Iterable[Stored], n_layers: int) -> None:
    """Check that the folder has no tensors of a layer beyond the last.

    Args:
        tensors: the tensors of the folder.
        stored: for each parameter, the tensors that make it up.
        n_layers: number of layers in config.json.

    Raises:
        InputError: it has tensors of layer ``n_layers`` (layers count from 0).
    """
    last = f".{n_layers - 1}."
    names = (name for entry in stored for name in entry.theirs)
    for name in names:
        following = name.replace(last, f".{n_layers}.", 1)
        if following != name and tensors.has(following):
            raise InputError.in_file(
                tensors.path,
                problem=f"the tensor {tensors.prefix + following} belongs to a layer beyond config.json's "
                f"{n_layers}",
            )
