"""Hard negatives: ``polyjax.mine`` and ``polyjax mine``."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from polyjax.data.candidates import fixed_candidates
from polyjax.data.identity import different
from polyjax.data.mining import MiningConfig
from polyjax.data.tasks import Task, TaskConfig
from polyjax.data.tasks.jsonl import parse
from polyjax.errors import InputError
from polyjax.inference.arguments import as_texts
from polyjax.nn.encoders import Dtype
from polyjax.ranker import Ranker
from polyjax.recipes.evaluate import opened, rows_of_run
from polyjax.recipes.mining import Miner, Skipped, candidates_of, check_fixed, check_miner, header_difference
from polyjax.recipes.models import load_ranker
from polyjax.recipes.rows_in_memory import as_jsonl, task_of
from polyjax.runs import read_json, write_json
from polyjax.runtime.files import exclusive_lock, write_bytes
from polyjax.runtime.progress import console, hushed
from polyjax.types import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class MineConfig(MiningConfig):
    """What to mine.

    Attributes:
        run_dir: of the bi- or poly-encoder that searches, or ``minilm``, which is used without training.
        out: file to write, JSON lines; ``polyjax train --task jsonl:FILE`` trains on it.
        task: whose rows; those of the run's task by default. ``--task NAME`` chooses it.
        candidates: a file of candidates, one a line; by default the labels and listed candidates of the rows.
        rescore: a run directory or a CrossEncoder's folder, whose model scores what the search finds once
            more; then the rules hold for its scores.
        step: a saved step of the run; the best one by default.
        dtype: of the arithmetic; as the model was made by default.
    """

    run_dir: Annotated[Path, tyro.conf.Positional]
    out: Path
    task: TaskConfig | Task | None = None
    candidates: Path | None = None
    rescore: Path | None = None
    step: int | None = None
    dtype: Dtype | None = None


@dataclasses.dataclass(frozen=True)
class Mined:
    """Rows with their hard negatives.

    Attributes:
        rows: all of them; those that are held out to be validated and tested on are as they were.
        skipped: counts of the candidates that were left out, by rule.
        file: where the rows were written; None where they are in memory only.
    """

    rows: list[Example]
    skipped: Skipped
    file: Path | None = None

    def __str__(self) -> str:
        """The table of what was left out."""
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
    """Hard negatives of rows: the best candidates, by exact search, that are wrong and that the rules leave.

    Of the rows of a file, or in memory, those that ``fit`` would train on are mined; the others are kept as
    they are, so that ``fit`` validates and tests on the same ones. A row keeps the negatives that it has,
    mined ones follow. It carries the scores of all of its candidates and negatives. Right answers of a
    context, those of its other rows among them, are no negatives.

    Args:
        model: the bi- or poly-encoder that searches: a Ranker, a Run, or the path of a run directory.
        data: the path of a .jsonl, .csv or .tsv file; rows in memory (dicts or Examples); the name of a data
            set, whose training rows are mined; or a task's settings.
        out: a JSONL file to write, whole or not at all. The same call resumes an interrupted mining, and
            reads the file where it is complete. In memory only where None.
        candidates: texts, or a file with one a line; by default the labels and listed candidates of the rows.
        rescore: a model, as a cross-encoder, that scores what the search finds once more; then the rules hold
            for its scores, as its ``rank`` shows them, and rows carry its logits.
        n_negatives: at most so many for each row.
        range_min: of the candidates that the other rules leave, the best so many are left out.
        range_max: candidates beyond this place are left out; 0 for ``range_min`` + 10 x ``n_negatives``.
        absolute_margin: a negative scores at least so much less than the context's lowest right answer; None
            for no such rule.
        relative_margin: likewise, as a share of the size of that answer's score.
        max_score: a negative scores at most so much.
        min_score: a negative scores at least so much.
        sampling: ``top`` takes the best, ``random`` draws among those that the rules leave.
        seed: of the draw.
        quiet: print nothing on standard output.

    Raises:
        InputError: an argument cannot work, a file is missing or bad, ``out`` is another file, or the model
            is a cross-encoder.
    """
    rules = MiningConfig(
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
    with hushed(quiet), contextlib.ExitStack() as closing:

        def folder() -> Path:
            return Path(closing.enter_context(tempfile.TemporaryDirectory()))

        task = task_of(data, folder, all_tested=False)
        ranker, rescorer = opened(model)[0], None if rescore is None else opened(rescore)[0]
        path = None if out is None else Path(out)
        return _mined(ranker, task, path, rules, candidates=candidates, rescore=rescorer)


def run(config: MineConfig) -> Mined:
    """Mine as the command line asks for, print the table, and say how to train on the file."""
    task = rows_of_run(config.run_dir)[0] if config.task is None else config.task
    ranker = load_ranker(config.run_dir, step=config.step, dtype=config.dtype)
    rescorer = None if config.rescore is None else Ranker.load(config.rescore, dtype=config.dtype)
    names = [field.name for field in dataclasses.fields(MiningConfig)]
    rules = MiningConfig(**{name: getattr(config, name) for name in names})
    mined = _mined(ranker, task, config.out, rules, candidates=config.candidates, rescore=rescorer)
    console.print(f"next: polyjax train --task jsonl:{config.out}")
    return mined


def rows_of(task: Task) -> tuple[list[Example], list[int]]:
    """The rows that a mined file holds, and the places of those that are trained on."""
    read = task.read("train").examples
    check_fixed(read, argument="data")
    train = list(read)
    read_all = getattr(task, "read_all", None)  # of a file that holds the rows of several splits
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
        texts = fixed_candidates(Path(candidates))
    else:
        texts = different(as_texts("candidates", candidates))
    miner = Miner(ranker=ranker, config=rules, candidates=texts, rescore=rescore)
    if out is None:
        return _shown(Mined(*_completed(rows, places, miner.mined(examples))))
    header = miner.header(examples) | {"held_out": _digest(as_jsonl("rows", rows))}
    if not out.absolute().parent.is_dir():
        raise InputError("out", expected="a file in a folder that is there", got=str(out))
    about, work = out.with_name(f"{out.name}.mined.json"), out.with_name(f"{out.name}.mining")
    if out.exists():
        return _shown(Mined(parse(out), _standing(out, about, header), out), "is there already")
    work.mkdir(exist_ok=True)
    with exclusive_lock(work / ".lock", "another process mines there"):
        mined = Mined(*_completed(rows, places, miner.mined(examples, work)), out)
        content = as_jsonl("rows", mined.rows)
        write_json(about, {"of": header, "sha256": _digest(content), **dataclasses.asdict(mined.skipped)})
        write_bytes(out, content)
        shutil.rmtree(work, ignore_errors=True)
    return _shown(mined)


def _completed(
    rows: Sequence[Example], places: Sequence[int], mined: tuple[list[Example], Skipped]
) -> tuple[list[Example], Skipped]:
    """All rows, with the mined ones at their places."""
    found = dict(zip(places, mined[0], strict=True))
    return [found.get(i, row) for i, row in enumerate(rows)], mined[1]


def _standing(out: Path, about: Path, header: dict[str, Any]) -> Skipped:
    """What was left out when a file was made that is there.

    Raises:
        InputError: it was made otherwise, or has changed since.
    """
    made = read_json(about) if about.is_file() else {}
    now = json.loads(json.dumps(header))
    if made.get("of") != now:
        other = header_difference(made.get("of") or {}, now) or "it is not known how"
        problem = f"{out} is there, and was made otherwise: {other}"
        raise InputError("out", problem=problem, fix="name another file, or remove it")
    if made.get("sha256") != _digest(out.read_bytes()):
        raise InputError("out", problem=f"{out} has changed since it was made", fix="name another file")
    return Skipped(**{field.name: made[field.name] for field in dataclasses.fields(Skipped)})


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _shown(mined: Mined, outcome: str = "is written") -> Mined:
    """The same, printed."""
    for line in mined.skipped.lines():
        console.print(line)
    if mined.file is not None:
        console.print(f"{mined.file} {outcome}")
    return mined
