"""Prepares the rows of a student: mines negatives, lets teachers score them, and normalises the scores.

Negatives and scores are kept in the folder ``teacher`` of the run directory, with digests of rows and models.
So a killed run resumes, and each teacher scores only once.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.data.mining import MiningConfig
from polyjax.data.tasks import NAMED
from polyjax.errors import InputError
from polyjax.mesh.processes import is_primary, primary_first
from polyjax.ranker import Ranker
from polyjax.recipes.mining import (
    Miner,
    candidates_of,
    check_fixed,
    check_miner,
    examples_digest,
    header_difference,
    model_digest,
    score,
)
from polyjax.recipes.models import load_ranker
from polyjax.recipes.run import Run
from polyjax.recipes.settings import SCRATCH, RunConfig, TeacherConfig
from polyjax.runs import read_json, saved_steps, write_json
from polyjax.runtime.journal import Journal
from polyjax.runtime.progress import errors, meter
from polyjax.train.losses import DistillationLoss, LossConfig
from polyjax.types import Example

FOLDER = "teacher"
"""The folder of a run directory with negatives and scores."""
ABOUT = "teacher.json"
"""The file in it with digests of rows, teachers and negatives."""
PAIRS_AT_ONCE = 4096
"""Number of context-candidate pairs scored at a time; scores are saved after each such chunk."""
SPREAD = 1.5
"""Standard deviation of teachers' scores within a context after normalisation, in nats.

A label two deviations above eight negatives then has a probability of .78, so that the order of the negatives
still matters.
"""
TAUGHT = DistillationLoss(label_weight=1.0)
"""The default loss with a teacher.

KL divergence compares distributions. Margin-MSE would force the teacher's scale on the student's margins,
but those of cosines are a hundredth of those of a cross-encoder's logits. The label's cross-entropy keeps the
signal of in-batch negatives.
"""


def as_teacher(given: Any) -> tuple[TeacherConfig | None, list[Ranker]]:
    """The settings for a Python caller's ``teacher``, and the teachers that are in memory.

    Args:
        given: None, a TeacherConfig, or one or several of: a Ranker, a Run, a path.

    Raises:
        InputError: ``given`` is something else.
    """
    if given is None or isinstance(given, TeacherConfig):
        return given, []
    several = list(given) if isinstance(given, list | tuple) else [given]
    models, rankers = [], []
    for one in several:
        if isinstance(one, Ranker):
            rankers.append(one)
        elif isinstance(one, Run):
            models.append(str(one.folder))
        elif isinstance(one, str | os.PathLike):
            models.append(os.fspath(one))
        else:
            raise InputError("teacher", expected="a Ranker, a Run, a path, or a list of these", got=one)
    return TeacherConfig(models=tuple(models), digests=tuple(map(model_digest, rankers))), rankers


def taught(
    config: RunConfig, examples: Sequence[Example], given: Sequence[Ranker]
) -> tuple[list[Example], str]:
    """Training rows with negatives and teachers' scores, and a line for the report.

    Args:
        config: settings of the run, whose directory this process has locked.
        examples: the training rows.
        given: teachers in memory, in addition to those of the settings.

    Raises:
        InputError: a model is missing or cannot search, there is neither a teacher nor scores in the rows, or
            the run was trained with other rows, teachers or negatives.
    """
    settings = config.teacher
    assert settings is not None
    check_fixed(examples, argument="teacher")
    n_rows = len(examples)
    examples = read_by_steps(config, examples)
    teachers = [*given, *map(load_ranker, settings.models)]
    folder = config.folder / FOLDER
    if not teachers:
        check_scored(examples)
        scores = [[np.array(example.scores) for example in examples]]
        return with_scores(examples, scores), "taught by the scores in the rows"
    miner = _miner(config, settings, teachers, examples)
    about = {
        "rows": examples_digest(examples),
        "teachers": [model_digest(teacher) for teacher in teachers],
        "negatives": None if miner is None else miner.header(examples),
    }
    with primary_first("teacher"):
        if is_primary():
            folder.mkdir(exist_ok=True)
            _open(folder / ABOUT, json.loads(json.dumps(about)), begun=bool(saved_steps(config.folder)))
        rows = list(examples) if miner is None else miner.mined(examples, folder)[0]
        learnt = learns_scores(config.loss)
        scores = [teacher_scores(teacher, rows, folder) for teacher in teachers if learnt]
    names = [
        *map(str, settings.models),
        *(f"a ranker in memory ({digest[:8]})" for digest in settings.digests),
    ]
    note = f"{settings.n_negatives} mined negatives per row"
    note = f"taught by {' and '.join(names)}, with {note}" if learnt else note
    if len(examples) < n_rows:
        note += f"; {len(examples):,} of {n_rows:,} training rows, as many as the steps read"
    return with_scores(rows, scores) if learnt else rows, note


def learns_scores(loss: object) -> bool:
    """Whether a loss may learn a teacher's scores; a built-in one says so, one of a user's own may."""
    return not isinstance(loss, LossConfig) or bool(getattr(loss, "needs_teacher", False))


def read_by_steps(config: RunConfig, examples: Sequence[Example]) -> Sequence[Example]:
    """As many rows as the steps of a run read, drawn by its seed; all where they read an epoch or more.

    Mining and scoring rows that no step reads could take longer than the run itself.

    Args:
        config: settings of the run. Where they count epochs and not steps, all rows are kept.
        examples: the training rows.
    """
    train, size = config.train, config.batch.batch_size
    if not train.steps or not train.validate_every_steps or train.steps * size >= len(examples):
        return examples
    draw = np.random.default_rng(train.seed)
    return [examples[i] for i in np.sort(draw.permutation(len(examples))[: train.steps * size])]


def check_scored(examples: Sequence[Example]) -> None:
    """Raise InputError for the first row without a teacher's scores."""
    for example in examples:
        if example.scores is None:
            raise InputError(
                "teacher",
                expected="a model, or `scores` in every training row",
                got=f"row {example.id} without scores",
                fix="name a run directory as the teacher",
            )


def check_teachers(config: RunConfig, given: Sequence[Ranker]) -> None:
    """Raise InputError if a data set that has no scores is to be learnt without a teacher."""
    settings = config.teacher
    if settings is None or settings.models or given or config.dataset.name not in NAMED:
        return
    problem = f"the rows of {config.dataset.name} have no teacher's scores"
    raise InputError("teacher", problem=problem, fix="name a run directory as the teacher")


def _other(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    said = [f"other {name}" for name in ("rows", "teachers") if before.get(name) != now.get(name)]
    if before.get("negatives") != now.get("negatives"):
        found = header_difference(before.get("negatives") or {}, now.get("negatives") or {})
        said.append(f"other negatives ({found})")
    return ", ".join(said)


def _open(path: Path, about: Mapping[str, Any], *, begun: bool) -> None:
    """Record what a student learns from, or check that it is the same as before."""
    before = read_json(path) if path.exists() else None
    if before == about:
        return
    if begun:
        raise InputError(
            "teacher",
            problem=f"{path.parent.parent} was taught otherwise: {_other(before or {}, about)}",
            fix="choose another `run_dir`, or remove that directory to start again",
        )
    write_json(path, about)


def _miner(
    config: RunConfig, settings: TeacherConfig, teachers: Sequence[Ranker], examples: Sequence[Example]
) -> Miner | None:
    """The miner of negatives; None if none are to be mined."""
    if not settings.n_negatives:
        return None
    if settings.miner is not None:
        ranker = load_ranker(settings.miner)
        check_miner(ranker, argument="teacher.miner")
    else:
        ranker = next((one for one in teachers if one.scorer.is_dual), None) or _starting_point(config)
    rules = MiningConfig(
        n_negatives=settings.n_negatives,
        range_max=settings.range_max,
        relative_margin=None,  # the teacher says how wrong a negative is
        sampling="random",
        seed=config.train.seed,
    )
    return Miner(ranker=ranker, config=rules, candidates=candidates_of(examples))


def _starting_point(config: RunConfig) -> Ranker:
    """The model that the student starts from, as a miner.

    Raises:
        InputError: it cannot search.
    """
    if config.init is not None:
        ranker = Ranker.load(config.init)
        if ranker.scorer.is_dual:
            return ranker
    elif config.own_encoder is None and config.encoder.name not in SCRATCH:
        return Ranker.from_encoder(config.encoder.name)
    raise InputError(
        "teacher.miner",
        problem="neither a teacher nor the model that the student starts from can search for negatives",
        fix="name the run directory of a bi- or poly-encoder, or set `teacher.n_negatives` to 0",
    )


def teacher_scores(teacher: Ranker, rows: Sequence[Example], folder: Path) -> list[np.ndarray]:
    """A teacher's scores of the candidates and then the negatives of each row, computed only once.

    Args:
        teacher: the teacher.
        rows: rows with their negatives.
        folder: folder in which scores are saved, so that a killed run resumes.
    """
    digest = model_digest(teacher)
    header = {"model": digest, "rows": examples_digest(rows)}
    journal = Journal(folder / f"scores-{digest[:16]}.jsonl", header)
    texts = [[*row.candidates, *row.negatives] for row in rows]
    with meter("scoring", len(rows), unit="rows", start=len(journal.done), out=errors) as bar:
        start = len(journal.done)
        while start < len(rows):
            sizes = np.cumsum([len(some) for some in texts[start : start + PAIRS_AT_ONCE]])
            n = max(int(np.searchsorted(sizes, PAIRS_AT_ONCE, side="right")), 1)
            found = score(teacher.scorer, rows[start : start + n], texts[start : start + n])
            journal.add([[float(f"{one:.9g}") for one in row] for row in found])
            start += n
            bar.add(n)
    return [np.array(row) for row in journal.done]


def with_scores(rows: Sequence[Example], teachers: Sequence[Sequence[np.ndarray]]) -> list[Example]:
    """Rows with the mean of the teachers' normalised scores.

    The mean of each context is subtracted from its scores, and a teacher's scores are divided by their
    standard deviation within contexts (and multiplied by ``SPREAD``). Neither the shift nor the scale affects
    the order, so neither should affect the weight of a teacher or the confidence of the student.

    Args:
        rows: rows with their negatives.
        teachers: for each teacher, the scores of each row's candidates and then of its negatives.

    Raises:
        InputError: a teacher gives all candidates of each context the same score.

    >>> row = Example("1", ("hi",), ("hello",), 0, "", negatives=("bye",))
    >>> with_scores([row], [[np.array([3.0, 1.0])], [np.array([0.2, 0.1])]])[0].scores
    (1.5, -1.5)
    """
    total = [np.zeros(len(row.candidates) + len(row.negatives)) for row in rows]
    for scores in teachers:
        centred = [np.asarray(row, np.float64) - np.mean(row) for row in scores]
        spread = np.sqrt(np.mean(np.concatenate(centred) ** 2))
        if not spread > 0:
            raise InputError("teacher", problem="it gives all candidates of a context the same score")
        total = [a + SPREAD / (spread * len(teachers)) * b for a, b in zip(total, centred, strict=True)]
    return [
        dataclasses.replace(row, scores=tuple(float(f"{one:.9g}") for one in scores))
        for row, scores in zip(rows, total, strict=True)
    ]
