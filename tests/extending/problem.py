"""The problem that parts of one's own are tried on through ``polyjax.fit``."""

import jax
import numpy as np

import polyjax

THINGS = "printer lamp phone screen router keyboard mouse fan heater camera".split()
FAULTS = "hums blinks smokes freezes beeps stalls leaks rattles".split()
PAIRS = [(thing, fault) for thing in THINGS for fault in FAULTS]
ROWS = [{"context": f"my {thing} {fault}", "label": f"fix the {fault} {thing}"} for thing, fault in PAIRS]
SETTINGS = {
    "arch": "bi",
    "encoder": "tiny",
    "steps": 40,
    "text": {"context_tokens": 16, "candidate_tokens": 16, "buckets": (16,)},
    "batch": {"batch_size": 16},
    "optim": {"learning_rate": 1e-2, "decay": "none", "warmup": 0.0, "head_rate": 1.0},
    "train": {"validate_every_steps": 20, "save_every_steps": 10},
    "rank": {"candidates": "sampled", "n": 4},
    "quiet": True,
}
CHANCE = 0.25


def fitted(run_dir, data=ROWS, **given) -> polyjax.Run:
    """A run of 40 steps, or of what is given."""
    return polyjax.fit(data, run_dir=run_dir, **(SETTINGS | given))


def assert_same(one: polyjax.Ranker, other: polyjax.Ranker) -> None:
    """Their parameters are the same bits."""
    pairs = zip(*(jax.tree.leaves(ranker.scorer.parameters()) for ranker in (one, other)), strict=True)
    for first, second in pairs:
        np.testing.assert_array_equal(first, second)
