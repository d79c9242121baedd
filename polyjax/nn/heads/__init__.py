"""The scoring heads, one file an architecture (arXiv 1905.01969 §4.2-4.4)."""

from typing import Literal, assert_never

from polyjax.nn.heads.bi import BiConfig, BiHead
from polyjax.nn.heads.cross import CrossConfig, CrossHead
from polyjax.nn.heads.poly import AttentionKind, PolyConfig, PolyHead

HeadConfig = BiConfig | PolyConfig | CrossConfig

__all__ = [
    "AttentionKind",
    "BiConfig",
    "BiHead",
    "CrossConfig",
    "CrossHead",
    "HeadConfig",
    "PolyConfig",
    "PolyHead",
    "head_label",
]


def head_label(config: HeadConfig) -> Literal["bi", "poly", "cross"]:
    """The architecture's short name."""
    match config:
        case BiConfig():
            return "bi"
        case PolyConfig():
            return "poly"
        case CrossConfig():
            return "cross"
        case _:
            assert_never(config)
