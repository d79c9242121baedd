"""A student's rows: negatives are found, teachers score them, and what they say is put on one scale.

Negatives and scores are kept in the run directory's ``teacher`` folder beside digests of rows and models: a
killed run resumes, and each teacher scores once.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyjax.data.mining import MiningConfig
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
from polyjax.recipes.run import Run
from polyjax.recipes.settings import SCRATCH, RunConfig, TeacherConfig
from polyjax.runs import read_json, saved_steps, write_json
from polyjax.runtime.journal import Journal
from polyjax.runtime.progress import errors, meter
from polyjax.train.losses import DistillationLoss
from polyjax.types import Example

FOLDER = "teacher"
"""The folder of a run directory with negatives and scores."""
ABOUT = "teacher.json"
"""The file in it that says which rows, models and negatives they are of."""
PAIRS_AT_ONCE = 4096
"""Context-candidate pairs that are scored together, in batches of like lengths, and then kept."""
SPREAD = 1.5
"""Standard deviation within a context, in nats, that teachers' scores are given.

A label two deviations ahead of eight negatives then has a probability of .78: the order of the others still
counts.
"""
TAUGHT = DistillationLoss(label_weight=1.0)
"""The loss where none is chosen.

KL divergence, as it compares distributions: margin-MSE would force the student's margins to the teacher's
scale, and a cosine's are a hundredth of a cross-encoder's logits. The label's cross-entropy keeps what
in-batch negatives teach.
"""


def as_teacher(given: Any) -> tuple[TeacherConfig | None, list[Ranker]]:
    """The settings of what a Python caller named as teacher, and the teachers that are in memory.

    Args:
        given: None, a TeacherConfig, or one or several of: a Ranker, a Run, a path.

    Raises:
        InputError: it is something else.
    """
    if given is None or isinstance(given, TeacherConfig):
        return given, []
    several = list(given) if isinstance(given, list | tuple) else [given]
    models, rankers = [], []
    for one in several:
        if isinstance(one, Ranker):
            rankers.append(one)
        elif isinstance(one, Run):
            models.append(one.folder)
        elif isinstance(one, str | os.PathLike):
            models.append(Path(one))
        else:
            raise InputError("teacher", expected="a Ranker, a Run, a path, or a list of these", got=one)
    return TeacherConfig(models=tuple(models), digests=tuple(map(model_digest, rankers))), rankers


def taught(
    config: RunConfig, examples: Sequence[Example], given: Sequence[Ranker]
) -> tuple[list[Example], str]:
    """Training rows with negatives and teachers' scores, and a line for the report.

    Args:
        config: of the run, whose directory is this process's own.
        examples: the rows.
        given: teachers that are in memory already, besides those of the settings.

    Raises:
        InputError: a model is missing or cannot search, the rows carry no scores where there is no teacher,
            or the run has made steps with other ones.
    """
    settings = config.teacher
    assert settings is not None
    check_fixed(examples, argument="teacher")
    teachers = [*given, *map(Ranker.load, settings.models)]
    folder = config.folder / FOLDER
    if not teachers:
        check_scored(examples)
        scores = [[np.array(example.scores) for example in examples]]
        return with_scores(examples, scores), "taught by the scores that the rows carry"
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
        scores = [teacher_scores(teacher, rows, folder) for teacher in teachers]
    names = [
        *map(str, settings.models),
        *(f"a ranker in memory ({digest[:8]})" for digest in settings.digests),
    ]
    note = f"taught by {' and '.join(names)}, with {settings.n_negatives} negatives found for a row"
    return with_scores(rows, scores), note


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


def _other(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    said = [f"other {name}" for name in ("rows", "teachers") if before.get(name) != now.get(name)]
    if before.get("negatives") != now.get("negatives"):
        found = header_difference(before.get("negatives") or {}, now.get("negatives") or {})
        said.append(f"other negatives ({found})")
    return ", ".join(said)


def _open(path: Path, about: Mapping[str, Any], *, begun: bool) -> None:
    """Note what a student learns from, or check that it is the same as before."""
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
    """What finds negatives."""
    if not settings.n_negatives:
        return None
    if settings.miner is not None:
        ranker = Ranker.load(settings.miner)
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
    """The model that the student starts from, where it can search."""
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
    """A teacher's scores of each row's candidates and then its negatives, computed once.

    Args:
        teacher: scores.
        rows: with their negatives.
        folder: where scores are kept as they come.
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
    """Rows with the mean of teachers' scores, each brought to one scale first.

    A context's scores are taken from their mean, and a teacher's divided by their standard deviation within
    contexts: shifts between contexts and the scale of a teacher say nothing of the order, and neither is to
    decide how much a teacher counts, or how sure the student becomes.

    Args:
        rows: with their negatives.
        teachers: scores of each, for each row those of its candidates and then of its negatives.

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
