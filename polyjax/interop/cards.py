"""Run directories whose files may record parts of this package: ParlAI's."""

from pathlib import Path
from typing import Any

import polyjax.runs.card as runs
from polyjax.data.text import TextEncoder
from polyjax.interop.parlai.cards import PARLAI
from polyjax.nn.encoders import Dtype
from polyjax.nn.scorers import Scorer
from polyjax.runs import ModelCard


def read_card(run_dir: Path, *, head: Any = None, encoder: Any = None) -> ModelCard:
    """The card of a run directory's model, see ``polyjax.runs.read_card``.

    Raises:
        InputError: model.json is missing or broken, or records a part that is not given.
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

    Raises:
        InputError: a file is missing or broken, or model.json records a part that is not given.
    """
    return runs.load_scorer(run_dir, step=step, dtype=dtype, head=head, encoder=encoder, foreign=PARLAI)
