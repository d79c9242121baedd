"""Run directories: everything that is needed to resume, evaluate or use a model.

    config.json           settings of the run, as given and resolved
    data.json             which rows each split had
    model.json            shapes of the model and how texts become tokens (pretraining.json of an encoder)
    tokenizer/            tokenizer.json or sentencepiece.model
    checkpoints/STEP/     orbax: ``model`` (parameters), ``training`` (the rest of the state), ``progress``
    checksums/STEP.txt    sha256 of its files
    metrics.jsonl         one line per log, validation or test
    report.md, results.json, figures/

Small files are written aside and renamed; orbax does the same with a checkpoint's folder.
"""

import json
from pathlib import Path
from typing import Any

from polyjax.config import to_json
from polyjax.errors import InputError
from polyjax.runtime.files import write_text

CONFIG = "config.json"
"""The file of a run's settings."""
DATA = "data.json"
"""The file with the digests of a run's rows."""
MODEL = "model.json"
"""The file of a run's model card."""
PRETRAINING = "pretraining.json"
"""The file of a pre-training run's card."""
TOKENIZER = "tokenizer"
"""The folder of a run's tokenizer."""
LOCK, CHECKPOINTS, CHECKSUMS, METRICS = ".lock", "checkpoints", "checksums", "metrics.jsonl"
DAMAGED = "damaged"
"""The folder for steps that cannot be read."""


def write_json(path: Path, value: Any) -> None:
    """Write a configuration or plain data as indented JSON, complete or not at all."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Plain data of a JSON file of a run directory.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        there = path.parent.is_dir()
        raise InputError.in_file(
            path if there else path.parent,
            problem="missing" if there else "not a directory",
            fix="name the directory of a run that has begun to train",
        ) from None
    except json.JSONDecodeError as error:
        raise InputError.in_file(path, error.lineno, problem=f"not JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise InputError.in_file(path, problem=f"not valid UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError.in_file(path, problem=f"cannot be read: {error}") from None


def saved_steps(run_dir: Path) -> list[int]:
    """The steps whose checkpoints a run directory holds, intact or not, in order."""
    folder = run_dir / CHECKPOINTS
    return (
        sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())
        if folder.is_dir()
        else []
    )
