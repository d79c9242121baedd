"""Reads folders saved by Hugging Face transformers: config.json, safetensors, tokenizer."""

from polyjax.interop.huggingface.config import (
    CONFIG,
    family_for,
    family_of,
    read_config,
    read_entries,
    read_object,
)
from polyjax.interop.huggingface.minilm import check_sha256, is_minilm, minilm_folder
from polyjax.interop.huggingface.weights import (
    WEIGHTS,
    TensorFiles,
    check_no_more,
    fill,
    load_encoder_weights,
    parameter_shapes,
    read_parameters,
    tensors_of,
)

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "TensorFiles",
    "check_no_more",
    "check_sha256",
    "family_for",
    "family_of",
    "fill",
    "is_minilm",
    "load_encoder_weights",
    "minilm_folder",
    "parameter_shapes",
    "read_config",
    "read_entries",
    "read_object",
    "read_parameters",
    "tensors_of",
]
