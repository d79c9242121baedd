"""Scores -> probabilities: the fit, and what it promises."""

import numpy as np
import pytest

from polyjax import InputError
from polyjax.config import from_json, to_json
from polyjax.evaluation.calibration import fit_score_map
from polyjax.inference.score_map import SIGMOID, ScoreMap


def drawn(slope: float, offset: float, rows: int = 4000, columns: int = 5):
    """Scores of candidates that are right with the probability that a map says."""
    draw = np.random.default_rng(0)
    scores = draw.normal(1, 3, (rows, columns))
    right = draw.random(scores.shape) < ScoreMap(slope=slope, offset=offset)(scores)
    # A row a right candidate: the others of it are not there.
    place = np.array([draw.choice(np.flatnonzero(row)) if row.any() else 0 for row in right])
    where = ~right
    where[np.arange(rows), place] = right[np.arange(rows), place]
    return scores, place, where, right


def labels_only(label: np.ndarray, columns: int) -> np.ndarray:
    """Where a row's label is, bool [b, columns]."""
    return np.arange(columns) == label[:, None]


def test_every_right_candidate_counts_as_one():
    """Of three with one score, all right: their probability is not that of one among three."""
    scores = np.array([[4.0, 4.1, 3.9, 0.0, -0.1]] * 40)
    right = np.array([[True, True, True, False, False]] * 40)
    found = fit_score_map(scores, right)
    assert found is not None and found(np.array([4.0]))[0] > 0.9


def test_the_fit_agrees_with_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    scores, label, where, _ = drawn(0.8, -1.5)
    keep = where[np.arange(len(label)), label]
    right = labels_only(label, 5)[keep]
    found = fit_score_map(scores[keep], right, where[keep])
    assert found is not None
    model = linear_model.LogisticRegression(C=1e9, tol=1e-10)
    model.fit(scores[keep][where[keep]].reshape(-1, 1), right[where[keep]])
    # Targets are not quite 0 and 1, which counts for little among thousands.
    np.testing.assert_allclose(
        [found.slope, found.offset], [model.coef_[0, 0], model.intercept_[0]], rtol=0.01
    )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, -1e3])
def test_the_fit_does_not_depend_on_the_unit_of_scores(scale, shift):
    scores, label, where, _ = drawn(0.8, -1.5, rows=500)
    found, moved = (fit_score_map(s, labels_only(label, 5), where) for s in (scores, scale * scores + shift))
    assert found is not None and moved is not None
    np.testing.assert_allclose(moved(scale * scores + shift), found(scores), rtol=1e-4, atol=1e-6)


def test_scores_that_separate_right_from_wrong_stay_finite():
    found = fit_score_map(np.array([[9.0, 1.0, 2.0]] * 20), labels_only(np.zeros(20, int), 3))
    assert found is not None and 0 < found.slope < 100
    right, wrong = found(np.array([9.0, 2.0]))
    assert 0.9 < right < 1 and 0 < wrong < 0.1


def test_a_model_no_better_than_chance_has_no_map():
    right = labels_only(np.zeros(9, int), 2)
    assert fit_score_map(np.array([[0.0, 1.0]] * 9), right) is None
    assert fit_score_map(np.ones((9, 2)), right) is None


def test_missing_candidates_count_for_nothing():
    scores, label, where, _ = drawn(0.8, -1.5, rows=300)
    right = labels_only(label, 5)
    assert fit_score_map(np.where(where, scores, -np.inf), right) == fit_score_map(scores, right, where)


def test_scores_of_one_kind_only_are_refused():
    with pytest.raises(InputError) as error:
        fit_score_map(np.ones((3, 1)), np.ones((3, 1), bool))
    assert error.value.argument == "scores"


def test_probabilities_keep_the_order_in_float32():
    scores = np.linspace(-30, 14, 500)
    found = SIGMOID(scores)
    assert found.dtype == np.float32 and (np.diff(found) >= 0).all() and len(np.unique(found)) > 450
    assert SIGMOID(np.array([-1e30, 0, 1e30])).tolist() == [0, 0.5, 1]


def test_a_map_is_kept_in_json():
    found = ScoreMap(slope=0.5, offset=-2.25)
    assert from_json(ScoreMap, to_json(found), source="card") == found


@pytest.mark.parametrize(
    ("field", "value"), [("slope", 0.0), ("slope", float("nan")), ("offset", float("inf"))]
)
def test_numbers_that_are_no_map_are_refused(field, value):
    with pytest.raises(InputError) as error:
        ScoreMap(**{field: value})
    assert error.value.argument == field
