"""The transformer families, one file each, and the contract that they implement."""

from polyjax.nn.activations import gelu
from polyjax.nn.encoders.albert import ALBERT, AlbertConfig
from polyjax.nn.encoders.bert import BERT, Encoder, EncoderConfig
from polyjax.nn.encoders.contract import (
    ChecksPairs,
    Dtype,
    EncoderSettings,
    GatesTexts,
    SharesBlocks,
    TokenEncoder,
)
from polyjax.nn.encoders.deberta import DEBERTA, DebertaConfig
from polyjax.nn.encoders.distilbert import DISTILBERT, DistilBertConfig
from polyjax.nn.encoders.electra import ELECTRA, ElectraConfig
from polyjax.nn.encoders.family import Classifier, ConfigJson, Family, Stored
from polyjax.nn.encoders.gte import GTE, GteConfig
from polyjax.nn.encoders.layers import sinusoidal_positions
from polyjax.nn.encoders.modernbert import MODERNBERT, ModernBertConfig
from polyjax.nn.encoders.mpnet import MPNET, MPNetConfig
from polyjax.nn.encoders.nomic import NOMIC_BERT, NomicBertConfig
from polyjax.nn.encoders.roberta import ROBERTA, RobertaConfig

FAMILIES: tuple[Family, ...] = (
    BERT,
    ROBERTA,
    DISTILBERT,
    ELECTRA,
    MPNET,
    MODERNBERT,
    ALBERT,
    DEBERTA,
    NOMIC_BERT,
    GTE,
)
"""The families whose Hugging Face folders can be read and written."""

KnownEncoder = (
    EncoderConfig
    | RobertaConfig
    | DistilBertConfig
    | ElectraConfig
    | MPNetConfig
    | ModernBertConfig
    | AlbertConfig
    | DebertaConfig
    | NomicBertConfig
    | GteConfig
)
"""Settings of the built-in families, which the command line and model.json refer to by name."""

__all__ = [
    "FAMILIES",
    "AlbertConfig",
    "ChecksPairs",
    "Classifier",
    "ConfigJson",
    "DebertaConfig",
    "DistilBertConfig",
    "Dtype",
    "ElectraConfig",
    "Encoder",
    "EncoderConfig",
    "EncoderSettings",
    "Family",
    "GatesTexts",
    "GteConfig",
    "KnownEncoder",
    "MPNetConfig",
    "ModernBertConfig",
    "NomicBertConfig",
    "RobertaConfig",
    "SharesBlocks",
    "Stored",
    "TokenEncoder",
    "gelu",
    "sinusoidal_positions",
]
