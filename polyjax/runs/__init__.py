"""Run directories: their files, checkpoints, log, and who may write to them.

Importing this brings no orbax: that comes when checkpoints are opened.
"""

from polyjax.runs.card import ModelCard, load_scorer, read_card, write_model, write_score_map
from polyjax.runs.checkpoints import Checkpoints, Saved
from polyjax.runs.layout import CONFIG, DATA, MODEL, TOKENIZER, read_json, saved_steps, write_json
from polyjax.runs.lock import open_data, open_run, owned_run, run_lock
from polyjax.runs.log import MetricsLog
from polyjax.runs.parameters import fill_parameters, flat_parameters

__all__ = [
    "CONFIG",
    "DATA",
    "MODEL",
    "TOKENIZER",
    "Checkpoints",
    "MetricsLog",
    "ModelCard",
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
    "write_json",
    "write_model",
    "write_score_map",
]
