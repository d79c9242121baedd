"""What happens at a step, as a table: no model, no files, no clock."""

import dataclasses
import math

import pytest

from polyjax.train import TrainConfig
from polyjax.train.events import Due, Events, Progress, why_ended

EVENTS = Events(steps=100, validate_every=40, save_every=15, time_limit=60.0)
NOTHING = Due(log=False, validate=False, save=False, last=False)
LOG = dataclasses.replace(NOTHING, log=True)
SAVE = dataclasses.replace(LOG, save=True)
VALIDATE = dataclasses.replace(SAVE, validate=True)
LAST = dataclasses.replace(VALIDATE, last=True)


@pytest.mark.parametrize(
    ("step", "seconds", "preempted", "due"),
    [
        (1, 0.0, False, NOTHING),
        (9, 0.0, False, NOTHING),
        (10, 0.0, False, LOG),
        (15, 0.0, False, SAVE),
        (30, 0.0, False, SAVE),
        (40, 0.0, False, VALIDATE),
        (80, 0.0, False, VALIDATE),
        (99, 0.0, False, NOTHING),
        (100, 0.0, False, LAST),
        (1, 60.0, False, NOTHING),
        (1, 60.1, False, dataclasses.replace(LAST, timed_out=True)),
        (100, 60.1, False, dataclasses.replace(LAST, timed_out=True)),
        (1, 0.0, True, SAVE),
        (40, 0.0, True, VALIDATE),
        (100, 0.0, True, LAST),
        (1, 60.1, True, dataclasses.replace(LAST, timed_out=True)),
    ],
)
def test_what_is_due(step, seconds, preempted, due):
    assert EVENTS.at(step, seconds, preempted=preempted) == due


def test_what_is_due_is_ordered():
    """What is saved was logged, what is validated is saved, and the last step is validated."""
    for step in range(1, 101):
        for seconds in (0.0, 61.0):
            for preempted in (False, True):
                due = EVENTS.at(step, seconds, preempted=preempted)
                assert due.log >= due.save >= due.validate >= due.last >= due.timed_out
    assert Due.ending() == LAST


def test_without_limits_nothing_ends_a_run_before_its_last_step():
    events = Events(steps=50, validate_every=1000)
    assert [step for step in range(1, 51) if events.at(step, 1e9).save] == [50]
    assert [step for step in range(1, 51) if events.at(step, 1e9).log] == [10, 20, 30, 40, 50]


@pytest.mark.parametrize(
    ("time_limit", "step", "processes", "reads"),
    [(0.0, 10, 1, False), (60.0, 3, 1, True), (60.0, 3, 2, False), (60.0, 10, 2, True)],
)
def test_several_processes_read_the_clock_where_they_log(time_limit, step, processes, reads):
    events = dataclasses.replace(EVENTS, time_limit=time_limit)
    assert events.reads_clock(step, processes=processes) is reads


@pytest.mark.parametrize(
    ("step", "config", "progress", "ended"),
    [
        (100, {}, {}, "all steps made"),
        (100, {"steps": 280, "most_epochs": 2.5}, {}, "2.5 epochs made"),
        (40, {"early_stopping": 2}, {"bad_validations": 2}, "2 validations without a better mrr"),
        (40, {"early_stopping": 3}, {"bad_validations": 2}, ""),
        (40, {}, {"bad_validations": 9}, ""),
        (15, {"early_stopping": 1}, {"bad_validations": 1}, ""),  # saved, not validated: resumed there
    ],
)
def test_why_a_run_ends(step, config, progress, ended):
    config = TrainConfig(**({"steps": 100, "best_by": "mrr"} | config))
    assert why_ended(config, EVENTS, step, EVENTS.at(step, 0.0), Progress(**progress)) == ended


def test_a_time_limit_is_named():
    due = EVENTS.at(3, 61.0)
    assert why_ended(TrainConfig(), EVENTS, 3, due, Progress()) == "time limit of 60 s"


def test_validations_without_a_better_one_are_counted():
    progress = Progress()
    counts = []
    for best_by in (0.5, 0.5, 0.4, 0.6, -math.inf):
        progress = progress.validated(best_by)
        counts.append((progress.best, progress.bad_validations))
    assert counts == [(0.5, 0), (0.5, 1), (0.5, 2), (0.6, 0), (0.6, 1)]


def test_progress_of_an_earlier_version_is_read():
    saved = dataclasses.asdict(Progress(best=0.5, seconds=3.0)) | {"batches": {"n": 4}}
    assert Progress.of_saved(saved) == Progress(best=0.5, seconds=3.0)
