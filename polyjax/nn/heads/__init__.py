"""The scoring heads, one file each (arXiv 1905.01969 §4.2-4.4), and the contract that they implement."""

from polyjax.nn.heads.bi import BiConfig, BiHead
from polyjax.nn.heads.contract import (
    ActivatesScores,
    DualHead,
    DualSettings,
    EmbedsTexts,
    GatedPairHead,
    GatedSettings,
    HeadSettings,
    Inputs,
    PairHead,
    ProductForm,
    SetsWidth,
    StartsFromOutputs,
    TiesEncoders,
)
from polyjax.nn.heads.cross import CrossConfig, CrossHead
from polyjax.nn.heads.dense import DenseConfig
from polyjax.nn.heads.gated import GatedCrossConfig, GatedCrossHead
from polyjax.nn.heads.poly import AttentionKind, PolyConfig, PolyHead

HeadConfig = BiConfig | PolyConfig | CrossConfig | GatedCrossConfig
"""Settings of the built-in heads, which the command line and model.json refer to by name."""

__all__ = [
    "ActivatesScores",
    "AttentionKind",
    "BiConfig",
    "BiHead",
    "CrossConfig",
    "CrossHead",
    "DenseConfig",
    "DualHead",
    "DualSettings",
    "EmbedsTexts",
    "GatedCrossConfig",
    "GatedCrossHead",
    "GatedPairHead",
    "GatedSettings",
    "HeadConfig",
    "HeadSettings",
    "Inputs",
    "PairHead",
    "PolyConfig",
    "PolyHead",
    "ProductForm",
    "SetsWidth",
    "StartsFromOutputs",
    "TiesEncoders",
]
