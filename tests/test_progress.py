"""What is said about work that goes on."""

import io

import pytest
from rich.console import Console

from polyjax.runtime import progress
from polyjax.runtime.progress import MARK_EVERY_S, RATE_OVER_S, Screen, meter


@pytest.fixture
def clock(monkeypatch):
    """Seconds, moved by hand."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_told_without_the_first_piece(clock):
    """Which is mostly compilation: 100 s for 10 of 100 updates, and then 1 s for each 10."""
    shown = io.StringIO()
    with meter("training", 100, unit="steps", out=Console(file=shown)) as bar:
        clock[0] = 100
        bar.move_to(10, "loss 2")
        first = shown.getvalue()
        clock[0] = 130
        bar.move_to(40)
        clock[0] = 131
        bar.move_to(100)
    lines = shown.getvalue().splitlines()
    assert first.startswith("training: 10/100  0.1 steps/s  loss 2") and "left" not in first
    assert lines[1].endswith("60 s left") and "1 steps/s" in lines[1]
    assert lines[2].startswith("training: 100/100") and lines[2].endswith("0 s left")


def test_work_done_at_once_is_told_at_its_end(clock):
    shown = io.StringIO()
    with meter("encoding", 8, out=Console(file=shown)) as bar:
        clock[0] = 2
        bar.add(8)
    assert shown.getvalue().split() == "encoding: 8/8 4 examples/s 0 s left".split()


def test_what_the_first_piece_waits_for_is_told(clock):
    """Compilation takes minutes for a large model, and would pass for a process that hangs."""
    shown, seen = io.StringIO(), []
    with meter("training", 8, start=4, out=Console(file=shown), waiting_for="compiling"):
        assert shown.getvalue() == "training: 4/8  compiling\n"
    with progress.watched_by(lambda *state: seen.append(state)):
        with meter("training", 8, out=Console(file=shown), waiting_for="compiling") as bar:
            bar.add(8)
    assert seen[0] == ("training", 0, 8, "compiling") and seen[1][:3] == ("training", 8, 8)
    assert shown.getvalue().count("\n") == 1


def test_the_counts_that_are_kept_do_not_grow_with_the_work(clock):
    """100,000 pieces in 100 seconds; the rate is that of the last minute all the same."""
    with meter("reading", 10**6, out=Console(file=io.StringIO())) as bar:
        for i in range(100_000):
            clock[0] = i / 1000
            bar.add(1 if i < 50_000 else 2)
        assert len(bar._marks) <= RATE_OVER_S / MARK_EVERY_S + 3
        assert bar.rate == pytest.approx((10_000 + 2 * 50_000) / 60, rel=0.02)


def test_a_pipe_is_told_lines_where_colours_are_forced(monkeypatch):
    """As a notebook does for the commands that it starts."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = io.StringIO()
    with meter("training", 100, out=Screen(file=shown)) as bar:
        for _ in range(100):
            bar.add(1)
    assert shown.getvalue().startswith("training: 100/100") and shown.getvalue().count("\n") == 1
