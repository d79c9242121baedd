"""The model card of a run: the sections of report.md besides the metrics, for users of the model."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from polyjax.interop.pretrained import is_pretraining_run
from polyjax.nn.encoders import EncoderSettings
from polyjax.recipes.settings import SCRATCH, RunConfig

MODULES = (("polyjax", "__main__.py"), ("cli", "__main__.py"))
"""Files that run where Python is given ``-m polyjax``."""


def weights_licence(config: RunConfig, source: Path | None) -> str:
    """The origin and licence of the weights that training started from, as a text."""
    if config.init is not None:
        return f"the model of {config.init}; see its report"
    if config.encoder.name in SCRATCH:
        return "random values"
    if config.encoder.name == "minilm":
        return "all-MiniLM-L6-v2, Apache 2.0"
    if source is not None and is_pretraining_run(source):
        return f"the pre-training run {source}; its report names its corpora"
    return f"{source}; see where it comes from"


def command(arguments: Sequence[str]) -> str:
    """The command that trains a run, as a report shows it.

    Args:
        arguments: of the process, its program first.

    >>> command(["bin/polyjax", "train", "--arch", "bi"])
    '`polyjax train --arch bi`'
    >>> command(["notebook.py"])
    '`polyjax.fit` from Python; config.json has its settings'
    """
    program = Path(arguments[0])
    if program.parts[-2:] == ("experiments", "run.py"):
        return f"`{shlex.join(['python', 'experiments/run.py', *arguments[1:]])}`"
    if program.stem == "polyjax" or program.parts[-2:] in MODULES:
        return f"`{shlex.join(['polyjax', *arguments[1:]])}`"
    return "`polyjax.fit` from Python; config.json has its settings"


def model_card(
    config: RunConfig, shape: EncoderSettings, source: Path | None, *, rows: Sequence[int]
) -> dict[str, list[str]]:
    """Sections of the report by title, each a list of lines.

    Args:
        config: settings of the run.
        shape: settings of the encoder.
        source: folder of the initial weights; None for none.
        rows: numbers of rows for training, validation and test.
    """
    head, text, optim = config.scoring, config.text, config.optim
    candidates = "read with each context" if head.inputs == "pairs" else "encoded once"
    return {
        "Model": [
            f"{config.arch}-encoder; candidates are {candidates}; {head}",
            f"transformer: {shape.n_layers} layers x {shape.dim}, {shape.dtype}; initial weights: "
            f"{weights_licence(config, source)}",
            f"reads the last {text.max_turns} turns, {text.context_tokens} tokens of a context (the oldest "
            f"are truncated) and {text.candidate_tokens} of a candidate",
        ],
        "Data": [
            f"{config.dataset.name}: {' / '.join(f'{n:,}' for n in rows)} rows in train / valid / test",
            f"licence of the data: {config.dataset.licence}",
        ],
        "Recipe": [
            f"command: {command(sys.argv)}",
            f"{config.recipe or config.preset} settings: {optim.optimizer}, learning rate "
            f"{optim.learning_rate:g}, decay {optim.decay}, batches of {config.batch.batch_size} contexts, "
            f"seed {config.train.seed}; all of them: config.json",
        ],
        "Use": [
            "meant for: ordering given candidates for a context, on texts like those it was trained on",
            "not meant for: judging whether a text is true, safe or polite: it picks the best of the given "
            "candidates. Scores are not probabilities, and are comparable only within one context",
            "known limits: the metrics hold for the number of candidates in the table's header and for the "
            "language of the data; with more candidates they are lower. Intervals are for the sample of test "
            "rows, not for the seed",
        ],
    }
