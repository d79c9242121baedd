"""The transformers, one file a family."""

from polyjax.nn.encoders.bert import Dtype, Encoder, EncoderConfig, gelu, sinusoidal_positions

__all__ = ["Dtype", "Encoder", "EncoderConfig", "gelu", "sinusoidal_positions"]
