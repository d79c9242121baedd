"""What accuracy costs: recall@1 against the time to score 1,000 candidates for one context.

    python benchmarks/tradeoff.py                      # the rows of results/ladder.json
    python benchmarks/tradeoff.py --rows "poly demo"

Bi- and poly-encoders score candidates that were encoded before, as they are served; a cross-encoder reads
each candidate with the context. Recall is the ladder's, a mean over its seeds. The time does not depend on
the values of the weights, so each row's model is built as it is before its training, and no trained run is
needed. Each context is timed when its program is compiled. Prints a table, writes
results/tradeoff/HOST.json, of which `make results` draws recall against time.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from common import print_table
from record import RESULTS, Record

from polyjax import Ranker
from polyjax.data.tasks import read_to_rank
from polyjax.data.text import TextEncoder
from polyjax.evaluation.report import hardware
from polyjax.inference.scorer import TextScorer
from polyjax.interop.pretrained import encoder_tokenizer
from polyjax.recipes.presets import PRESETS
from polyjax.recipes.settings import RunConfig
from polyjax.recipes.start import encoder_config, initial_scorer, pretrained_folder
from polyjax.runtime.compilation import enable_compilation_cache

MEASURES = ("polyjax/inference", "polyjax/retrieval", "polyjax/nn", "results/ladder.json")
FIGURE = "recall@1/20"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        rows: names of rows of the ladder; all where empty.
        candidates: that a bi- or poly-encoder scores for a context.
        pairs: that a cross-encoder scores for a context; its time grows with their number alone.
        contexts: test contexts that are timed.
        data_dir: the prepared chitchat task.
        out: folder of the results.
    """

    rows: tuple[str, ...] = ()
    candidates: int = 1000
    pairs: int = 100
    contexts: int = 12
    data_dir: Path = Path("data")
    out: Path = RESULTS


def untrained(config: RunConfig) -> Ranker:
    """The model of a run before its training."""
    source = pretrained_folder(config)
    assert source is not None
    text = TextEncoder(encoder_tokenizer(source), config.text)
    shape = encoder_config(config, source, text.tokenizer.vocab_size)
    return Ranker(TextScorer(initial_scorer(config, shape, source), text))


def times(ranker: Ranker, contexts: Sequence[Sequence[str]], texts: Sequence[str]) -> list[float]:
    """Milliseconds for each context, scaled to 1,000 candidates."""
    index = ranker.index(list(texts), quiet=True) if ranker.scorer.is_dual else None
    found = []
    for context in contexts:
        took = 0.0
        for _ in range(2):  # the first may compile
            began = time.perf_counter()
            if index is None:
                ranker.rank(context, texts, top_k=10)
            else:
                index.search(context, method="scan")
            took = 1e3 * (time.perf_counter() - began)
        found.append(took * 1000 / len(texts))
    return found


def measure(row: Mapping[str, Any], config: BenchmarkConfig, record: Record) -> dict[str, Any]:
    """Recall of a row of the ladder, and its median time for a context."""
    run = PRESETS[row["preset"]](row["arch"])
    task: Any = run.dataset
    rows = read_to_rank(dataclasses.replace(task, data_dir=config.data_dir), "test", run.rank).examples
    n = config.pairs if row["arch"] == "cross" else config.candidates
    texts = list(dict.fromkeys(example.label_text for example in rows))[:n]
    contexts = [example.context for example in rows[:: len(rows) // config.contexts]][: config.contexts]
    took = times(untrained(run), contexts, texts)
    case = {"row": row["name"], "candidates": n}
    record.add(case, "ms for 1,000 candidates", {"time": took})
    recall = {"recall": row["recall_at_1"], "low": row["low"], "high": row["high"]}
    record.add(case, FIGURE, {name: [value] for name, value in recall.items()})
    return {"run": row["name"], "ms": statistics.median(took), "figure": FIGURE, **recall}


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    enable_compilation_cache()
    ladder = json.loads((RESULTS / "ladder.json").read_text(encoding="utf-8"))
    wanted = [row for row in ladder if not config.rows or row["name"] in config.rows]
    record = Record("tradeoff", measures=MEASURES, settings=config)
    rows = [measure(row, config, record) for row in wanted]
    columns = {
        "row of the ladder": "{run}",
        FIGURE: "{recall:.3f} [{low:.3f}, {high:.3f}]",
        "ms for 1,000 candidates": "{ms:,.1f}",
    }
    print_table("chitchat test, one context at a time", columns, rows)
    record.write(config.out, {"hardware": hardware(), "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
