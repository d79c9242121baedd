"""Strict jax for every test: promotion of ranks and dtypes raises, as a warning does."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from polyjax import BiConfig, CrossConfig, EncoderConfig, PolyConfig, Tokens
from polyjax.nn.encoders import (
    AlbertConfig,
    DebertaConfig,
    DistilBertConfig,
    ElectraConfig,
    GteConfig,
    ModernBertConfig,
    MPNetConfig,
    NomicBertConfig,
    RobertaConfig,
)
from polyjax.nn.heads import DenseConfig, GatedCrossConfig
from polyjax.runtime import hardware

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

VOCAB = 50
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""XLA_FLAGS of commands that a test starts."""
collect_ignore = ["golden"]  # scripts that made the golden files; they need torch


LONG = (
    "test_notebooks",
    "test_processes",
    "test_plan",
    "test_loop",
    "test_faults",
    "test_pretrain",
    "test_docs",
)


def pytest_collection_modifyitems(items):
    """Long modules first, so that no worker begins one when the others are done."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True, scope="module")
def programs():
    """Kept for a module only: those of all are gigabytes, which keep the garbage collector busy."""
    yield
    jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(0)


@pytest.fixture(params=["avx512_bf16", "avx2"])
def processor(request, monkeypatch, tmp_path) -> str:
    """A CPU that multiplies bfloat16 numbers itself, and one that does not."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {request.param} fma\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    hardware.cpu_has_bfloat16.cache_clear()
    jax.clear_caches()
    request.addfinalizer(lambda: (hardware.cpu_has_bfloat16.cache_clear(), jax.clear_caches()))
    return request.param


@pytest.fixture
def rngs() -> nnx.Rngs:
    """Seeded parameter initialisation."""
    return nnx.Rngs(0)


def tiny(**changes) -> EncoderConfig:
    """A transformer small enough for a test."""
    return EncoderConfig(
        **(
            {"vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 2, "mlp_dim": 32, "n_positions": 64}
            | changes
        )
    )


def random_tokens(
    rng: np.random.Generator, lengths, *, width: int, leading: tuple[int, ...] | None = None
) -> Tokens:
    """Random rows of the given lengths, padded with 0 to ``width``; row count or ``leading`` shape."""
    lengths = np.asarray(lengths)
    mask = np.arange(width) < lengths[..., None]
    ids = np.where(mask, rng.integers(1, VOCAB, mask.shape), 0).astype(np.int32)
    return Tokens(ids, mask, np.zeros_like(ids))


DUAL_HEADS = {
    "bi-mean": BiConfig(),
    "bi-first": BiConfig(reduction="first"),
    "bi-max-unit": BiConfig(reduction="max", normalize=True, score_scale=20.0),
    "bi-shared": BiConfig(shared_encoder=True),
    "bi-dense": BiConfig(
        reduction="last",
        also=("weighted_mean", "mean_sqrt"),
        dense=(DenseConfig(dim=12), DenseConfig(dim=8, unit_input=True, activation="gelu", bias=False)),
        shared_encoder=True,
        normalize=True,
        raw_embeddings=True,
    ),
    "poly-basic": PolyConfig(n_codes=5, codes_std=1.0),
    "poly-sqrt": PolyConfig(n_codes=5, codes_std=1.0, codes_attention="sqrt", candidate_attention="sqrt"),
    "poly-multihead": PolyConfig(
        n_codes=5,
        codes_attention="multihead",
        candidate_attention="multihead",
        codes_heads=2,
        candidate_heads=2,
    ),
    "poly-first": PolyConfig(n_codes=5, codes="first"),
    "poly-first-mean": PolyConfig(n_codes=5, codes="first", with_mean=True),
    "poly-learnt-sharpness": PolyConfig(
        n_codes=5, codes_std=1.0, candidate_sharpness=2.0, learnt_sharpness=True, with_mean=True
    ),
    "poly-unit-shared": PolyConfig(
        n_codes=5, shared_encoder=True, normalize=True, score_scale=20.0, candidate_sharpness=10.0
    ),
}
CROSS_HEADS = {
    "cross-first": CrossConfig(),
    "cross-mean": CrossConfig(reduction="mean"),
    "cross-classifier": CrossConfig(dense="gelu", dense_bias=False, norm="scale"),
    "cross-gated": GatedCrossConfig(gate=-1.0, normalize=True, score_scale=20.0),
}
HEADS = DUAL_HEADS | CROSS_HEADS
TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "mlp_dim": 32,
    "n_positions": 64,
    "norm_eps": 1e-5,
}
ENCODERS = {
    "bert": tiny(),
    "xlm": tiny(output_scaling=0.06, norm_eps=1e-5, n_segments=2),
    "pre-norm": tiny(norm="pre", embedding_norm=False),
    "aiayn": tiny(
        embedding_norm=False,
        positions="sinusoidal",
        embedding_scale=True,
        activation="relu",
        n_segments=0,
    ),
    "roberta": RobertaConfig(**TINY),
    "distilbert": DistilBertConfig(**TINY),
    "electra": ElectraConfig(**TINY, embedding_dim=12),
    "mpnet": MPNetConfig(**TINY),
    "albert": AlbertConfig(**TINY | {"n_layers": 4}, embedding_dim=12, n_groups=2, blocks_per_layer=2),
    "modernbert": ModernBertConfig(**TINY | {"n_layers": 8}, window=2),
    "deberta-v2": DebertaConfig(**TINY, n_buckets=4, max_distance=16, n_segments=2),
    "deberta-v2-own": DebertaConfig(
        **TINY,
        n_buckets=4,
        max_distance=16,
        absolute_positions=True,
        shared_projections=False,
        terms=("c2p",),
    ),
    "nomic_bert": NomicBertConfig(**TINY),
    "gte": GteConfig(**TINY),
}
"""Settings of every family, and of the shapes that EncoderConfig covers."""


@pytest.fixture(scope="session")
def parlai_models() -> Path:
    """Folders of models that ParlAI wrote."""
    return Path(__file__).parent / "golden" / "parlai"


def shared_data(name: str) -> Path:
    """A folder of the real data that is kept beside the project, or a skip where it is not there."""
    folder = Path(__file__).parent.parent.parent / "shared" / "data" / name
    if not folder.is_dir():
        pytest.skip(f"needs the real data of ../shared/data/{name}")
    return folder


SHARED_ENCODERS = Path(__file__).parent.parent.parent / "shared" / "golden_encoders"
OWN_ENCODERS = Path(__file__).parent / "golden" / "encoders"
"""The few of them that are kept with the tests."""


def golden_encoder(name: str) -> tuple[Path, dict[str, Any]]:
    """A folder that transformers or sentence-transformers wrote, and the arrays that those compute."""
    folder = next((root / name for root in (OWN_ENCODERS, SHARED_ENCODERS) if (root / name).is_dir()), None)
    if folder is None:
        pytest.skip(f"needs ../shared/golden_encoders/{name}")
    return folder, dict(np.load(folder / "expected.npz")) if (folder / "expected.npz").is_file() else {}


def golden_encoders(kind: str) -> list[Path]:
    """All folders of a kind, or a skip where they are not there."""
    if not SHARED_ENCODERS.is_dir():
        pytest.skip("needs ../shared/golden_encoders")
    found = (path.parent for path in sorted(SHARED_ENCODERS.glob("*/expected.json")))
    return [folder for folder in found if json.loads((folder / "expected.json").read_text())["kind"] == kind]
