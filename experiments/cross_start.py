"""How good a cross-encoder is before training, by how far its gates are shut.

    python experiments/cross_start.py    # about a minute for each gate on two cores

Chitchat's validation rows, all-MiniLM-L6-v2, the demo's lengths and head. Writes results/cross_start.json.
"""

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tyro

from polyjax.data.tasks import read_to_rank
from polyjax.data.text import TextEncoder
from polyjax.evaluation.rankings import evaluate, some
from polyjax.inference.scorer import TextScorer
from polyjax.interop.pretrained import encoder_tokenizer
from polyjax.nn.heads.gated import GATE_RATE
from polyjax.recipes.presets import demo
from polyjax.recipes.start import encoder_config, initial_scorer, pretrained_folder
from polyjax.runtime.compilation import enable_compilation_cache
from polyjax.runtime.files import write_text

OUT = Path(__file__).resolve().parents[1] / "results" / "cross_start.json"


def main(
    gates: tuple[float, ...] = (float("-inf"), -4.0, -3.0, -2.0, 0.0),
    rows: int = 300,
    data_dir: Path | None = None,
    out: Path = OUT,
) -> None:
    """Measure and write.

    Args:
        gates: what is added to the logits of attention to the other text.
        rows: of the validation split, always the same ones.
        data_dir: where the task's data is; its own default where None.
        out: the file.
    """
    enable_compilation_cache()
    config = demo("cross")
    task = config.dataset if data_dir is None else dataclasses.replace(config.dataset, data_dir=data_dir)  # pyright: ignore
    examples = some(read_to_rank(task, "valid", config.rank).examples, rows)
    source = pretrained_folder(config)
    assert source is not None
    text = TextEncoder(encoder_tokenizer(source), config.text)
    shape = encoder_config(config, source, text.tokenizer.vocab_size)
    scorer = initial_scorer(config, shape, source)
    texts, found = TextScorer(scorer, text), []
    for gate in gates:  # as values of the learnt part, so that nothing is compiled again
        head: Any = scorer.head
        head.gate[...] = jnp.full_like(head.gate[...], (gate - head.config.gate) / GATE_RATE)
        texts.model.update(scorer)
        result = evaluate(f"gate {gate:g}", texts, examples)
        found.append({"gate": f"{gate:g}", "loss": result.loss, **result.ranking.summary((1,))})
        print(found[-1], flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=OUT.parents[1]
    )
    facts = {
        "command": f"python experiments/cross_start.py --rows {rows}",
        "commit": commit.stdout.strip(),
        "task": task.name,
        "split": "valid",
        "rows": len(examples),
        "encoder": config.encoder.name,
        "dtype": shape.dtype,
        "untrained": found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
