"""Hard negatives: ``polyjax.mine`` and ``polyjax mine``."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from polyjax.data.candidates import read_candidates
from polyjax.data.identity import different
from polyjax.data.mining import MiningConfig
from polyjax.data.tasks import Task, TaskConfig
from polyjax.data.tasks.jsonl import parse
from polyjax.data.tasks.own_files import JSON_LINES
from polyjax.errors import InputError
from polyjax.inference.arguments import as_texts, check_folder
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker
from polyjax.recipes.evaluate import opened
from polyjax.recipes.mining import Miner, Skipped, candidates_of, check_fixed, check_miner, header_difference
from polyjax.recipes.models import ModelName, load_ranker
from polyjax.recipes.own_rows import task_of_model
from polyjax.recipes.rows_in_memory import as_jsonl, task_of
from polyjax.runs import read_json, write_json
from polyjax.runtime.fields import settings_of
from polyjax.runtime.files import exclusive_lock, write_bytes
from polyjax.runtime.progress import console, hushed
from polyjax.types import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineConfig(MiningConfig):
    """What to mine.

    Attributes:
        run_dir: the bi- or poly-encoder that searches: a run directory, a folder of sentence-transformers or
            transformers, ``organisation/model`` of the hub, or ``minilm``, which is not trained on the rows.
        out: JSONL file to write; ``polyjax train --task jsonl:FILE`` trains on it.
        task: the task whose rows are mined; the run's task by default. ``--task NAME`` chooses it.
        candidates: a file with one candidate per line; by default the labels and listed candidates of rows.
        rescore: a model, such as a CrossEncoder, that re-scores the candidates found; it is named like
            ``run_dir``. The rules then apply to its scores.
        step: a saved step of the run; the best one by default.
        dtype: dtype of the computation; that of the model by default.
    """

    run_dir: Annotated[ModelName, tyro.conf.Positional]
    out: Path
    task: TaskConfig | Task | None = None
    candidates: Path | None = None
    rescore: ModelName | None = None
    step: int | None = None
    dtype: Dtype | None = None


@dataclasses.dataclass(frozen=True)
class Mined:
    """Rows with their hard negatives.

    Attributes:
        rows: all rows; held-out rows for validation and test are unchanged.
        skipped: counts of the candidates that were skipped, by rule.
        file: the file with the rows; None if they are in memory only.
    """

    rows: list[Example]
    skipped: Skipped
    file: Path | None = None

    def __str__(self) -> str:
        """The table of skipped candidates."""
        return "\n".join(self.skipped.lines())


def mine(
    model: Any,
    data: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    candidates: str | os.PathLike[str] | Sequence[str] | None = None,
    rescore: Any = None,
    n_negatives: int = 7,
    range_min: int = 0,
    range_max: int = 0,
    absolute_margin: float | None = None,
    relative_margin: float | None = 0.05,
    max_score: float | None = None,
    min_score: float | None = None,
    sampling: Literal["top", "random"] = "top",
    seed: int = 0,
    quiet: bool = False,
) -> Mined:
    """Mine hard negatives: for each row, the best wrong candidates by exact search that the rules accept.

    From a file or rows in memory, the rows that ``fit`` would train on are mined. The others are kept
    unchanged, so that ``fit`` validates and tests on the same ones. Mined negatives are added after those
    that a row already has, and the row gets the scores of all its candidates and negatives. Right answers of
    the context, including those of its other rows, are never negatives.

    Args:
        model: the bi- or poly-encoder that searches: a Ranker, a Run, or what ``polyjax mine`` takes (the
            path of a run directory or of a folder with an encoder, ``organisation/model``, or ``minilm``).
        data: the path of a .jsonl, .csv or .tsv file; rows in memory (dicts or Examples); the name of a data
            set, whose training rows are mined; or the settings of a task.
        out: JSONL file to write, completely or not at all; None for rows in memory only. The same call
            resumes an interrupted mining, or reads the file if it is complete.
        candidates: texts, or a file with one per line; by default the labels and listed candidates of rows.
        rescore: a model, such as a cross-encoder, that re-scores the candidates found. The rules then apply
            to its scores, as its ``rank`` returns them; rows get its logits.
        n_negatives: maximum number of mined negatives for each row.
        range_min: skip this many of the best candidates that the other rules accept.
        range_max: skip candidates beyond this rank; 0 for ``range_min`` + 10 x ``n_negatives``.
        absolute_margin: a negative must score at least this much below the lowest right answer; None for no
            such rule.
        relative_margin: likewise, as a share of the absolute value of that answer's score.
        max_score: maximum score of a negative.
        min_score: minimum score of a negative.
        sampling: ``top`` takes the best candidates that the rules accept, ``random`` draws from them.
        seed: seed of the draw.
        quiet: print nothing on standard output.

    Raises:
        InputError: an argument is invalid, a file is missing or invalid, ``out`` exists and was made from
            other inputs, or the model is a cross-encoder.

    >>> rows = [{"context": f"question {i}", "label": f"answer {i}"} for i in range(40)]
    >>> mined = mine("my-encoder", rows, n_negatives=2, relative_margin=None, quiet=True)
    >>> max(len(row.negatives) for row in mined.rows)
    2
    """
    rules = settings_of(
        MiningConfig,
        n_negatives=n_negatives,
        range_min=range_min,
        range_max=range_max,
        absolute_margin=absolute_margin,
        relative_margin=relative_margin,
        max_score=max_score,
        min_score=min_score,
        sampling=sampling,
        seed=seed,
    )
    path = None if out is None else _as_file(out)
    with hushed(quiet), task_of(data, all_tested=False) as task:
        ranker = opened(model)[0]
        rescorer = None if rescore is None else opened(rescore, "rescore")[0]
        return _mined(ranker, task, path, rules, candidates=candidates, rescore=rescorer)


def run(config: MineConfig) -> Mined:
    """Mine as the command line asks, print the table and the command to train on the file."""
    out = _as_file(config.out)
    task = task_of_model(config.run_dir) if config.task is None else config.task
    ranker = load_ranker(config.run_dir, step=config.step, dtype=config.dtype)
    rescorer = None if config.rescore is None else load_ranker(config.rescore, dtype=config.dtype)
    names = [field.name for field in dataclasses.fields(MiningConfig)]
    rules = MiningConfig(**{name: getattr(config, name) for name in names})
    mined = _mined(ranker, task, out, rules, candidates=config.candidates, rescore=rescorer)
    console.print(f"next: polyjax train --task jsonl:{config.out}")
    return mined


def rows_of(task: Task) -> tuple[list[Example], list[int]]:
    """All rows of a task's file (for a data set, the training rows), and the indices of the training rows."""
    read = task.read("train").examples
    check_fixed(read, argument="data")
    train = list(read)
    read_all = getattr(task, "read_all", None)  # a file may hold the rows of several splits
    if read_all is None:
        return train, list(range(len(train)))
    ids = {example.id for example in train}
    rows = list(read_all())
    return rows, [i for i, row in enumerate(rows) if row.id in ids]


def _mined(
    ranker: Ranker,
    task: Task,
    out: Path | None,
    rules: MiningConfig,
    *,
    candidates: str | os.PathLike[str] | Sequence[str] | None,
    rescore: Ranker | None,
) -> Mined:
    check_miner(ranker, argument="model")
    rows, places = rows_of(task)
    examples = [rows[i] for i in places]
    if candidates is None:
        texts = candidates_of(examples)
    elif isinstance(candidates, str | os.PathLike):
        check_folder(candidates, "candidates")
        texts = read_candidates(Path(candidates))
    else:
        texts = different(as_texts("candidates", candidates))
    miner = Miner(ranker=ranker, config=rules, candidates=texts, rescore=rescore)
    if out is None:
        return _shown(Mined(*_completed(rows, places, miner.mined(examples))))
    header = miner.header(examples) | {"held_out": _digest(as_jsonl("rows", rows))}
    about, work = out.with_name(f"{out.name}.mined.json"), out.with_name(f"{out.name}.mining")
    if out.exists():
        return _shown(Mined(parse(out), _standing(out, about, header), out), "exists already")
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError("out", problem=f"{out} cannot be written: {error.strerror}") from None
    with exclusive_lock(work / ".lock", "another process is mining there"):
        mined = Mined(*_completed(rows, places, miner.mined(examples, work)), out)
        content = as_jsonl("rows", mined.rows)
        write_json(about, {"of": header, "sha256": _digest(content), **dataclasses.asdict(mined.skipped)})
        write_bytes(out, content)
        shutil.rmtree(work, ignore_errors=True)
    return _shown(mined)


def _as_file(out: str | os.PathLike[str]) -> Path:
    """The path of the file to write, checked before anything is read."""
    check_folder(out, "out")
    path = Path(out)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise InputError("out", expected="a file in an existing folder", got=str(out))
    if path.suffix.casefold() not in JSON_LINES:
        raise InputError("out", expected=f"a file that ends in {', '.join(JSON_LINES)}", got=str(out))
    return path


def _completed(
    rows: Sequence[Example], places: Sequence[int], mined: tuple[list[Example], Skipped]
) -> tuple[list[Example], Skipped]:
    """All rows, with the mined ones in place of the originals."""
    found = dict(zip(places, mined[0], strict=True))
    return [found.get(i, row) for i, row in enumerate(rows)], mined[1]


def _standing(out: Path, about: Path, header: dict[str, Any]) -> Skipped:
    """The counts of an existing output file.

    Raises:
        InputError: it was made from other inputs, or has changed since.
    """
    made = read_json(about) if about.is_file() else {}
    now = json.loads(json.dumps(header))
    if "of" not in made:
        raise InputError("out", problem=f"{out} exists, and no mining made it", fix="name another file")
    if made["of"] != now:
        other = header_difference(made.get("of") or {}, now) or "it is not known what differs"
        problem = f"{out} exists, and was made from other inputs: {other}"
        raise InputError("out", problem=problem, fix="name another file, or remove it")
    if made.get("sha256") != _digest(out.read_bytes()):
        raise InputError("out", problem=f"{out} has changed since it was made", fix="name another file")
    return Skipped(**{field.name: made[field.name] for field in dataclasses.fields(Skipped)})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shown(mined: Mined, outcome: str = "is written") -> Mined:
    """Print the table, and return ``mined``."""
    for line in mined.skipped.lines():
        console.print(line)
    if not mined.skipped.negatives:
        console.print("warning: no negatives were found; the table says which rule left all candidates out")
    if mined.file is not None:
        console.print(f"{mined.file} {outcome}")
    return mined
