"""The transformers, one file a family, and their contract."""

from polyjax.nn.encoders.bert import Encoder, EncoderConfig, gelu, sinusoidal_positions
from polyjax.nn.encoders.contract import ChecksPairs, Dtype, EncoderSettings, TokenEncoder

KnownEncoder = EncoderConfig
"""Settings of the library's own families, which the command line and model.json know by name."""

__all__ = [
    "ChecksPairs",
    "Dtype",
    "Encoder",
    "EncoderConfig",
    "EncoderSettings",
    "KnownEncoder",
    "TokenEncoder",
    "gelu",
    "sinusoidal_positions",
]
