"""What a model computed, before it is used: NaN has no place in a ranking and passes every comparison."""

import numpy as np

from polyjax.errors import InputError


def check_numbers(values: np.ndarray, what: str = "scores") -> np.ndarray:
    """The values of a model, [rows, ...], or InputError where some are NaN.

    Args:
        values: a row for each context or text.
        what: they are.
    """
    n = int(np.isnan(values).reshape(len(values), -1).any(axis=1).sum())
    if n:
        raise InputError(
            "model",
            problem=f"its {what} are not numbers (NaN) in {n:,} of {len(values):,} rows",
            fix="use float32, or an earlier step",
            is_argument=False,
        )
    return values
