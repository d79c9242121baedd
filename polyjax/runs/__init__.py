"""Run directories: their files, checkpoints, log and lock.

Importing this package does not import orbax; opening checkpoints does.
"""

from polyjax.runs.card import (
    LeftOut,
    ModelCard,
    PretrainingCard,
    load_scorer,
    read_card,
    write_card,
    write_model,
    write_score_map,
)
from polyjax.runs.checkpoints import Checkpoints, Saved
from polyjax.runs.layout import (
    CONFIG,
    DATA,
    MODEL,
    PRETRAINING,
    TOKENIZER,
    read_json,
    saved_steps,
    write_json,
)
from polyjax.runs.lock import open_data, open_run, owned_run, run_lock
from polyjax.runs.log import MetricsLog
from polyjax.runs.parameters import fill_parameters, flat_parameters

__all__ = [
    "CONFIG",
    "DATA",
    "MODEL",
    "PRETRAINING",
    "TOKENIZER",
    "Checkpoints",
    "LeftOut",
    "MetricsLog",
    "ModelCard",
    "PretrainingCard",
    "Saved",
    "fill_parameters",
    "flat_parameters",
    "load_scorer",
    "open_data",
    "open_run",
    "owned_run",
    "read_card",
    "read_json",
    "run_lock",
    "saved_steps",
    "write_card",
    "write_json",
    "write_model",
    "write_score_map",
]
