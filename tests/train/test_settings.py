"""Grids of one setting and of several, given as values or by name, and the points that they span."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from icecore.train import TrainError
from icecore.train.folds import make_folds
from icecore.train.models import MODELS, BuildOptions, model_spec
from icecore.train.search import search_setting
from icecore.train.settings import check_grid, grid_points, params_of


def test_a_model_with_one_setting_is_searched_over_its_values() -> None:
    spec = model_spec("logistic_regression")
    assert grid_points(spec) == spec.grid
    assert grid_points(spec, [1, 2]) == (1.0, 2.0)
    assert grid_points(spec, {"C": [3]}) == (3.0,)


def test_a_model_with_two_settings_is_searched_over_all_pairs() -> None:
    spec = model_spec("rbf_svm")
    assert len(grid_points(spec)) == len(spec.grid) * len(spec.also[0].grid)
    assert grid_points(spec, [2]) == tuple((2.0, gamma) for gamma in spec.also[0].grid)
    assert grid_points(spec, {"gamma_scale": [1]}) == tuple((C, 1.0) for C in spec.grid)
    assert grid_points(spec, {"gamma_scale": [1, 2], "C": [3]}) == ((3.0, 1.0), (3.0, 2.0))


def test_a_lone_value_leaves_the_others_at_their_defaults() -> None:
    assert params_of(model_spec("rbf_svm"), 5) == {"C": 5.0, "gamma_scale": 1.0}
    assert params_of(model_spec("rbf_svm"), (5, 2)) == {"C": 5.0, "gamma_scale": 2.0}


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_accepts_its_own_grid(name: str) -> None:
    spec = model_spec(name)
    check_grid(spec, spec.grid)
    check_grid(spec, {spec.setting: spec.grid, **{setting.name: setting.grid for setting in spec.also}})
    assert all(setting.default in setting.grid for setting in spec.also)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"gama": [1]}, "'rbf_svm' does not search 'gama'; it searches C, gamma_scale"),
        ({"gamma_scale": []}, "gamma_scale of 'rbf_svm' has no values"),
        ({"gamma_scale": [0]}, "gamma_scale of 'rbf_svm' must be a number above 0, found 0"),
        ({}, "the grid of 'rbf_svm' is empty"),
    ],
)
def test_a_grid_that_cannot_be_searched_is_refused(grid: Any, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        check_grid(model_spec("rbf_svm"), grid)


def test_points_tell_every_setting_and_which_is_at_the_edge() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(90) % 3
    X = (1000 * y[:, None] + rng.normal(size=(90, 8))).astype(np.float32)  # so far apart that every point is perfect
    found = search_setting(
        model_spec("rbf_svm"),
        X,
        y,
        folds=make_folds(y, classes=list("abc"), folds=3, seed=0),
        metric="accuracy",
        options=BuildOptions(),
        grid={"C": [1.0, 2.0, 4.0], "gamma_scale": [0.5, 1.0]},
    )
    assert found.best.value == 1.0
    assert found.best.point == (1.0, 0.5)
    assert set(found.best.to_json()) == {"value", "gamma_scale", "mean", "std"}
    assert [note for note in found.notes if "edge" in note] == [
        "C=1 is at the edge of the grid: a wider one may do better"
    ]
    assert found.found.scores.shape == (1, 90, 3)
