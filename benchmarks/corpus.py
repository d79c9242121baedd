"""Preparing a corpus to pre-train on: time and memory from ten thousand to two million pairs.

    python benchmarks/corpus.py                 # JSON lines of conversations; 2 GB of disk for a while
    python benchmarks/corpus.py --kind reddit   # a dump of comments, compressed

Synthetic conversations of five turns of words that are drawn as in a language (Zipf). A process of its own
makes the vocabulary and the tokens as experiments/pretrain.py does, plans two epochs, takes batches
at the end of one and the beginning of the next ("learn"), and reports the most memory of each stage.
Prints a table, writes results/corpus_KIND/HOST.json.
"""

import dataclasses
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from common import print_table
from record import RESULTS, Record

from polyjax.evaluation.report import hardware

MEASURES = ("polyjax/data/corpora", "polyjax/data/tokenizers.py", "polyjax/data/text.py")
TURNS = 5
AT_ONCE = 10_000
WORDS = 20_000

PROGRAM = """
import json, sys, time
from pathlib import Path
from polyjax.data.corpora.corpus import Pairs
from polyjax.data.corpora.masking import MaskingCollator
from polyjax.data.corpora.packing import PairPlan, PretrainBatchConfig
from polyjax.data.corpora.prepare import CorpusConfig, prepare_pieces, sampled_turns
from polyjax.data.corpora.store import tokens_of
from polyjax.data.text import TextConfig
from polyjax.data.tokenizers import train_sentencepiece
import apache_beam, tensorflow_datasets
source, folder = sys.argv[1], Path(sys.argv[2])
config = CorpusConfig(files=(source,), dir=folder / "data", piece_mb=float(sys.argv[3]))
def peak():
    # Not getrusage, whose peak is that of the process that started this one where that was larger.
    found = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
    Path("/proc/self/clear_refs").write_text("5")  # from now on
    return int(found) * 1024 / 1e6
figures = {"start_mb": peak()}
began = time.perf_counter()
pieces = prepare_pieces(config)
figures |= {"pieces": len(pieces), "prepare_s": time.perf_counter() - began, "prepare_mb": peak()}
began = time.perf_counter()
(folder / "tokenizer").mkdir()
model = folder / "tokenizer" / "sentencepiece.model"
tokenizer = train_sentencepiece(sampled_turns(pieces, 100_000), model, vocab_size=2000)
figures |= {"vocabulary_s": time.perf_counter() - began, "vocabulary_mb": peak()}
began = time.perf_counter()
found = tokens_of(config, tokenizer, folder / "tokenizer")
figures |= {"tokenise_s": time.perf_counter() - began, "tokenise_mb": peak()}
counts = [tokens.conversations[1:] - tokens.conversations[:-1] - tokens.first_labels
          for tokens in (found.train, found.valid)]
figures |= {"pairs": int(sum(part.sum() for part in counts)), "tokens": len(found.train.ids)}
del counts
began = time.perf_counter()
text = TextConfig(max_turns=4, context_tokens=96, candidate_tokens=33)
pairs, batch = Pairs(found.train, text, tokenizer), PretrainBatchConfig(tokens=8192)
plan = PairPlan(pairs, batch, seed=0, n_batches=10**9)
begin = time.perf_counter()
collator = MaskingCollator(pairs, batch, seed=0, most=plan.most)
# Twenty batches on either side of the end of an epoch.
for number in range(plan.batches_in(0) - 20, plan.batches_in(0) + 20):
    collator.map(plan[number])
figures |= {"plan_s": begin - began, "learn_mb": peak()}
print(json.dumps(figures))
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured.

    Attributes:
        pairs: how many, one row of the table each.
        kind: of the corpus.
        piece_mb: megabytes of a piece.
        out: folder of the results.
    """

    pairs: tuple[int, ...] = (10_000, 100_000, 1_000_000, 2_000_000)
    kind: Literal["pairs", "reddit"] = "pairs"
    piece_mb: float = 16.0
    out: Path = RESULTS


def conversations(n_pairs: int) -> Iterator[list[str]]:
    """Conversations of TURNS turns, so many that they hold so many pairs."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(WORDS)])
    words[: len(FREQUENT)] = FREQUENT
    n = n_pairs // (TURNS - 1)
    for start in range(0, n, AT_ONCE):
        lengths = draw.integers(5, 25, (min(AT_ONCE, n - start), TURNS))
        drawn = words[np.minimum(draw.zipf(1.3, int(lengths.sum())), WORDS) - 1].tolist()
        ends = np.cumsum(lengths).tolist()
        turns = [" ".join(drawn[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        yield from (turns[i : i + TURNS] for i in range(0, len(turns), TURNS))


FREQUENT = ["the", "and", "to", "of", "that", "it", "you", "for"]
"""So that the text passes for English."""


def write(path: Path, config: BenchmarkConfig, n_pairs: int) -> None:
    """A corpus as a file."""
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for number, turns in enumerate(conversations(n_pairs)):
            if config.kind == "pairs":
                file.write(json.dumps({"id": f"c{number}", "turns": turns}) + "\n")
                continue
            above = f"t3_{number}"
            for place, turn in enumerate(turns):
                id_ = f"{number}x{place}"
                row = {"id": id_, "parent_id": above, "link_id": f"t3_{number}", "author": "a", "body": turn}
                # Fields of the dumps that are of no use here.
                row |= {"subreddit": "any", "score": 1, "created_utc": 1_500_000_000, "permalink": "x" * 200}
                file.write(json.dumps(row) + "\n")
                above = f"t1_{id_}"


def measure(config: BenchmarkConfig, n_pairs: int) -> dict[str, float | int]:
    """Prepare a corpus of so many pairs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("corpus.jsonl" if config.kind == "pairs" else "RC.gz")
        write(path, config, n_pairs)
        command = [sys.executable, "-c", PROGRAM, f"{config.kind}:{path}", folder, str(config.piece_mb)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        figures = json.loads(done.stdout.splitlines()[-1]) | {"file_mb": path.stat().st_size / 1e6}
    # A few comments have too few of the frequent words for English.
    assert figures["pairs"] == n_pairs or config.kind == "reddit" and figures["pairs"] > 0.99 * n_pairs, (
        figures
    )
    figures["prepared_per_s"] = n_pairs / figures["prepare_s"]
    figures["per_s"] = n_pairs / sum(figures[f"{stage}_s"] for stage in STAGES)
    return figures


STAGES = ("prepare", "vocabulary", "tokenise")


def main(config: BenchmarkConfig) -> None:
    """Measure, print, write."""
    record = Record(f"corpus_{config.kind}", measures=MEASURES, settings=config)
    rows = [measure(config, n) for n in config.pairs]
    for n, row in zip(config.pairs, rows, strict=True):
        seconds = {stage: [row[f"{stage}_s"]] for stage in (*STAGES, "plan")}
        record.add({"pairs": n}, "s", seconds)
        record.add({"pairs": n}, "MB", {stage: [row[f"{stage}_mb"]] for stage in ("start", *STAGES, "learn")})
        record.add({"pairs": n}, "pairs/s", {"prepared": [row["prepared_per_s"]], "all": [row["per_s"]]})
    columns = {
        "pairs": "{pairs:,}",
        "MB": "{file_mb:.0f}",
        "pieces": "{pieces}",
        "prepare s": "{prepare_s:.1f}",
        "pairs/s": "{prepared_per_s:,.0f}",
        "MB ": "{prepare_mb:,.0f}",
        "vocab. s": "{vocabulary_s:.1f}",
        "MB  ": "{vocabulary_mb:,.0f}",
        "tokens s": "{tokenise_s:.1f}",
        "MB   ": "{tokenise_mb:,.0f}",
        "all pairs/s": "{per_s:,.0f}",
        "plan s": "{plan_s:.1f}",
        "learn MB": "{learn_mb:,.0f}",
    }
    print_table(
        f"{config.kind}, pieces of {config.piece_mb:g} MB; seconds and peak memory of each stage",
        columns,
        rows,
    )
    record.write(config.out, {"hardware": hardware(), "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig))
