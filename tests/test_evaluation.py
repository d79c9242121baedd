"""What an evaluation writes agrees with an independent library, and can be read again."""

import json

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, Success

from polyjax.evaluation import Evaluation, ranking, write_examples
from polyjax.types import Example


@pytest.fixture
def written(tmp_path, rng):
    examples = [
        Example(
            f"row {i}", ("hi", f"turn {i}"), tuple(f"text {j} ☕" for j in range(20)), i % 20, str(i // 3)
        )
        for i in range(200)
    ]
    scores = rng.standard_normal((200, 20)).astype(np.float32)
    scores[np.arange(200), np.arange(200) % 20] += 1.5
    evaluation = Evaluation(ranking("a model", scores, examples), scores, 0.0)
    write_examples(tmp_path / "out", examples, evaluation)
    return tmp_path / "out", examples, evaluation


def test_figures_agree_with_ir_measures(written):
    folder, _, evaluation = written
    qrels = ir_measures.read_trec_qrels(str(folder / "qrels.trec"))
    run = ir_measures.read_trec_run(str(folder / "run.trec"))
    ks = (1, 2, 5, 10, 19)
    figures = ir_measures.calc_aggregate([RR, *(Success @ k for k in ks)], list(qrels), list(run))
    assert figures[RR] == pytest.approx(evaluation.ranking.mrr, abs=1e-6)
    for k in ks:
        assert figures[Success @ k] == pytest.approx(evaluation.ranking.recall(k), abs=1e-9)
    assert 0.2 < evaluation.ranking.recall(1) < 0.8


def test_rows_can_be_read_again(written):
    folder, examples, evaluation = written
    rows = [json.loads(line) for line in (folder / "examples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [e.id for e in examples]
    for row, example, rank, scores in zip(
        rows, examples, evaluation.ranking.ranks, evaluation.scores, strict=True
    ):
        assert (tuple(row["context"]), tuple(row["candidates"])) == (example.context, example.candidates)
        np.testing.assert_allclose(row["scores"], scores, rtol=1e-6)
        assert row["rank"] == rank and row["label"] == example.label
        assert row["best"][0] == example.candidates[int(np.argmax(scores))]
