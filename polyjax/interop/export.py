"""Exports a run directory's parameters as safetensors, with a README that describes each array."""

import shutil
from pathlib import Path

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from polyjax.interop.cards import load_scorer
from polyjax.runs import MODEL, TOKENIZER, flat_parameters
from polyjax.runtime.files import check_new, new_folder, write_text

KINDS = {
    "kernel": "matrix w [in, out] of y = x w + b",
    "bias": "vector b, or a layer norm's offset",
    "scale": "a layer norm's gain",
    "tokens": "token embeddings [vocabulary, d]",
    "positions": "position embeddings [n_positions, d]",
    "segments": "segment embeddings [n_segments, d]",
    "codes": "the poly-encoder's codes [m, d]",
}


def export_safetensors(run_dir: Path, out: Path, *, step: int | None = None) -> None:
    """Write model.safetensors (float32), model.json, the tokenizer, and a README.md with names and shapes.

    Args:
        run_dir: a run directory.
        out: a folder that does not exist yet; it is written completely or not at all.
        step: a saved step; None for the best one.

    Raises:
        InputError: the run directory is broken, or the folder exists or cannot be written.
    """
    check_new(out)
    scorer, text = load_scorer(run_dir, step=step)
    arrays = {name: np.asarray(value) for name, value in flat_parameters(nnx.state(scorer)).items()}
    with new_folder(out) as aside:
        (aside / TOKENIZER).mkdir()
        save_file(arrays, aside / "model.safetensors")
        shutil.copyfile(run_dir / MODEL, aside / MODEL)
        text.tokenizer.save(aside / TOKENIZER)
        write_text(aside / "README.md", _page(run_dir, arrays))


def _page(run_dir: Path, arrays: dict[str, np.ndarray]) -> str:
    rows = [
        f"| `{name}` | {list(array.shape)} | {KINDS.get(name.rpartition('.')[2], '')} |"
        for name, array in arrays.items()
    ]
    return "\n".join(
        [
            f"# {run_dir.name}",
            "",
            "`model.safetensors` holds the parameters in float32. `model.json` describes the model's shape",
            "and how texts become tokens. `tokenizer/` holds the tokenizer files that polyjax reads. Blocks",
            "are numbered from 0. `qkv` holds the projections of query, key and value side by side.",
            "",
            "| name | shape | what it is |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )
