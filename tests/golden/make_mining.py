"""Make the golden file of tests/test_mining.py with sentence-transformers' mine_hard_negatives.

    pip install -e '.[bench]' datasets
    python tests/golden/make_mining.py

mining.json: vectors of contexts and candidates, of which candidate i is right for context i, and for each set
of rules the negatives with their scores. Made with sentence-transformers 6.2.0, torch 2.13.0.
"""

import json
from pathlib import Path

import numpy as np

N, CANDIDATES, DIM, SEED = 24, 60, 6, 0
RULES = {
    "best": {"relative_margin": None},
    "relative": {"relative_margin": 0.05},
    "absolute": {"relative_margin": None, "absolute_margin": 0.1},
    "scores": {"relative_margin": None, "max_score": 0.6, "min_score": 0.2},
    "range": {"relative_margin": 0.02, "range_min": 3, "n_negatives": 4},
    "all": {"relative_margin": 0.01, "absolute_margin": 0.02, "max_score": 0.8, "range_min": 1},
}
DEPTH = 20


class Vectors:
    """What mine_hard_negatives asks of a SentenceTransformer: vectors by text, and cosines of them."""

    device = "cpu"

    def __init__(self, contexts: np.ndarray, candidates: np.ndarray):
        self._of = {f"context {i}": row for i, row in enumerate(contexts)}
        self._of |= {f"candidate {i}": row for i, row in enumerate(candidates)}

    def encode_query(self, texts, **options):
        return np.stack([self._of[text] for text in texts])

    encode_document = encode_query

    @staticmethod
    def similarity(one, other):
        import torch

        return torch.as_tensor(one) @ torch.as_tensor(other).T

    @staticmethod
    def similarity_pairwise(one, other):
        import torch

        return (torch.as_tensor(one) * torch.as_tensor(other)).sum(1)


def vectors() -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of contexts and candidates, float32; candidate i is right for context i."""
    draw = np.random.default_rng(SEED)
    candidates = draw.normal(size=(CANDIDATES, DIM))
    contexts = 0.6 * candidates[:N] + draw.normal(size=(N, DIM))
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (contexts, candidates))
    return one.astype(np.float32), other.astype(np.float32)


def mined(contexts: np.ndarray, candidates: np.ndarray, rules: dict) -> list[list[tuple[int, float]]]:
    """The library's negatives of each context, with their scores."""
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives

    names = {"n_negatives": "num_negatives"}
    found = mine_hard_negatives(
        Dataset.from_dict(
            {"anchor": [f"context {i}" for i in range(N)], "positive": [f"candidate {i}" for i in range(N)]}
        ),
        Vectors(contexts, candidates),
        corpus=[f"candidate {i}" for i in range(len(candidates))],
        range_max=DEPTH,
        output_scores=True,
        verbose=False,
        **{"num_negatives": 7} | {names.get(name, name): value for name, value in rules.items()},
    )
    rows: list[list[tuple[int, float]]] = [[] for _ in range(N)]
    for row in found:
        negative = int(row["negative"].split()[1])
        rows[int(row["anchor"].split()[1])].append((negative, round(row["scores"][1], 6)))
    return rows


if __name__ == "__main__":
    contexts, candidates = vectors()
    content = {
        "contexts": contexts.astype(float).round(9).tolist(),
        "candidates": candidates.astype(float).round(9).tolist(),
        "negatives": {name: mined(contexts, candidates, rules) for name, rules in RULES.items()},
    }
    (Path(__file__).parent / "mining.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
