"""Reads run directories, including those of converted ParlAI models."""

from pathlib import Path
from typing import Any

import polyjax.runs.card as runs
from polyjax.data.text import TextEncoder
from polyjax.interop.parlai.cards import PARLAI
from polyjax.nn.encoders import Dtype
from polyjax.nn.scorers import Scorer
from polyjax.runs import ModelCard


def read_card(run_dir: Path, *, head: Any = None, encoder: Any = None) -> ModelCard:
    """The model card of a run directory, see ``polyjax.runs.read_card``; ParlAI's parts are recognised.

    Args:
        run_dir: a run directory.
        head: your own head configuration (or its class), if the card records one.
        encoder: your own encoder configuration (or its class), if the card records one.

    Raises:
        InputError: model.json is missing or broken, or records a part that is neither known nor passed.
    """
    return runs.read_card(run_dir, head=head, encoder=encoder, foreign=PARLAI)


def load_scorer(
    run_dir: Path,
    *,
    step: int | None = None,
    dtype: Dtype | None = None,
    head: Any = None,
    encoder: Any = None,
) -> tuple[Scorer, TextEncoder]:
    """The scorer and text encoder of a run directory, see ``polyjax.runs.load_scorer``.

    Args:
        run_dir: a run directory.
        step: a saved step; None for the best one.
        dtype: of the computation; None for the one that the card records.
        head: as ``read_card``.
        encoder: as ``read_card``.

    Raises:
        InputError: a file is missing or broken, or model.json records a part that is neither known nor
            passed.
    """
    return runs.load_scorer(run_dir, step=step, dtype=dtype, head=head, encoder=encoder, foreign=PARLAI)
