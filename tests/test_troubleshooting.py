"""Every message of docs/howto/troubleshooting.md is what the library says, and every case is on the page."""

import dataclasses
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import polyjax
import test_docs
from polyjax.cli.flags import flag_of
from polyjax.cli.main import parse as parse_polyjax
from polyjax.data.identity import Digests
from polyjax.data.known import save_known
from polyjax.data.tasks.jsonl import parse as parse_rows
from polyjax.errors import InputError
from polyjax.interop.huggingface import minilm_folder
from polyjax.recipes.presets import PRESETS
from polyjax.runs import open_data, open_run, run_lock
from polyjax.train.faults import FiniteChecks, out_of_memory
from polyjax.train.optim import OptimConfig

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "troubleshooting.md"
models, workplace = test_docs.models, test_docs.workplace  # fixtures


def rows(text: bytes, name: str = "mine.jsonl") -> None:
    Path(name).write_bytes(text)
    parse_rows(Path(name))


def command(text: str) -> None:
    parse_polyjax(text.split()[1:])


RUN = Path("runs/mine-poly")


def trained() -> Path:
    """A run directory in which something was trained."""
    (RUN / "checkpoints" / "280").mkdir(parents=True)
    return RUN


def other_settings() -> None:
    config = PRESETS["demo"]("poly")
    open_run(RUN, config)
    trained()
    open_run(RUN, dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1)))


def other_rows() -> None:
    rows = np.arange(160, dtype=np.uint64)
    save_known(trained(), Digests(rows, rows, rows, ()))
    open_data(RUN, {"train": "160 rows, 4a97d0"}, trained_on=rows)
    open_data(RUN, {"train": "161 rows, e8b2c1"}, trained_on=np.append(rows[2:], rows[-3:] + 100))


def two_at_once() -> None:
    with run_lock(trained()), run_lock(RUN):
        pass


def folder(model_type: str = "bert") -> None:
    """A folder of transformers with a pickle for weights."""
    model = Path("model")
    model.mkdir()
    sizes = {"hidden_size": 4, "intermediate_size": 8, "vocab_size": 30522, "max_position_embeddings": 9}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 1}
    (model / "config.json").write_text(json.dumps({"model_type": model_type} | sizes | layers))
    (model / "pytorch_model.bin").write_bytes(b"a pickle")
    (model / "tokenizer.json").symlink_to(minilm_folder() / "tokenizer.json")
    polyjax.Ranker.load("model")


def no_weights() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        minilm_folder()


def memory() -> None:
    raise out_of_memory(
        "32 contexts per step", 140, "no batch was skipped", fix="resume with `batch.chunk` 16"
    )


def not_finite() -> None:
    checks = FiniteChecks(OptimConfig(learning_rate=0.1), own_optimizer=False, latest_step=lambda: 140)
    checks.check("loss", [2.0, math.nan], 151)


ROW = b'{"context": "my printer beeps", "label": "see page 1"}\n'
CASES: dict[str, Callable[[], object]] = {
    "key": lambda: rows(ROW + b'{"context": "my printer beeps", "labels": "see page 1"}\n'),
    "lines": lambda: rows(b'{"context": "a"}\n[1]\n{"context": "a"}\n'),
    "utf-8": lambda: rows(ROW + b'{"context": "caf\xe9", "label": "b"}\n'),
    "json": lambda: rows(ROW + b'{"context": "a", "label": "b"\n'),
    "column": lambda: rows(b"context,label,Candidates\n", "mine.csv"),
    "flag": lambda: command("polyjax train --train.step 10"),
    "architecture": lambda: command("polyjax train --arch bi --head.n-codes 16"),
    "epochs": lambda: command("polyjax train --train.epochs 2"),
    "choice": lambda: command("polyjax train --arch poli"),
    "value": lambda: command("polyjax train --text.max-turns 0"),
    "dict": lambda: polyjax.fit("mine.jsonl", optim={"learning_rat": 2e-5}),
    "no file": lambda: polyjax.fit("mien.jsonl"),
    "no run": lambda: polyjax.Ranker.load("runs/nothing"),
    "pickle": folder,
    "family": lambda: folder("t5"),
    "no weights": no_weights,
    "other settings": other_settings,
    "other rows": other_rows,
    "two at once": two_at_once,
    "memory": memory,
    "not finite": not_finite,
}
"""Calls that fail, one for each message of the page."""


def said(name: str) -> str:
    """The message, as a command prints it."""
    with pytest.raises(InputError) as caught:
        CASES[name]()
    return caught.value.worded(flag_of)


def shown() -> list[str]:
    """The messages of the page; its lines may be folded."""
    return [" ".join(text.split()) for text in test_docs.blocks(PAGE, "none")]


@pytest.mark.parametrize("name", CASES)
def test_a_message_is_on_the_page(name, workplace):
    assert " ".join(said(name).split()) in shown()


def test_every_message_of_the_page_has_its_case():
    assert len(shown()) == len(set(shown())) == len(CASES)
    assert re.search("A traceback is a bug", PAGE.read_text())
