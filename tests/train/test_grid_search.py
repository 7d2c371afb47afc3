"""Large grids are halved fold by fold, and what is chosen was tried on every fold."""

from __future__ import annotations

import numpy as np
import pytest
from icecore.train.folds import make_folds
from icecore.train.grid_search import FEW, MANY, score_grid
from icecore.train.models import BuildOptions, model_spec
from icecore.train.out_of_fold import score_folds
from icecore.train.search import search_setting

from .test_linear_search import pooled

X, Y = pooled(3, 240, 12, signal=0.35)
CLASSES = ["a", "b", "c"]
FOLDS = make_folds(Y, classes=CLASSES, folds=5, seed=0)
SPEC, OPTIONS = model_spec("rbf_svm"), BuildOptions()
GRID = {"C": list(np.geomspace(0.01, 100, 8)), "gamma_scale": list(np.geomspace(0.03, 10, 5))}


def test_halving_chooses_as_the_whole_grid_does_or_nearly() -> None:
    whole = search_setting(SPEC, X, Y, folds=FOLDS, metric="accuracy", options=OPTIONS, grid=GRID, halving="never")
    halved = search_setting(SPEC, X, Y, folds=FOLDS, metric="accuracy", options=OPTIONS, grid=GRID)
    assert len(whole.grid) == 40 > MANY
    assert halved.best.mean >= whole.best.mean - 0.01
    assert [point.folds for point in whole.grid] == [None] * 40
    tried = [point.folds for point in halved.grid]
    assert tried.count(2) == 20
    assert tried.count(3) == 10
    assert tried.count(4) == 5
    assert tried.count(None) == 5
    assert halved.best.folds is None


def test_a_value_tried_on_all_folds_has_the_scores_of_the_whole_search() -> None:
    values = [(float(C), 1.0) for C in np.geomspace(0.01, 100, 30)]
    scored = score_grid(SPEC, X, Y, values=values, divisions=[FOLDS], metric="accuracy", options=OPTIONS)
    which = int(scored.finished[0])
    plain = score_folds(SPEC, X, Y, values=[values[which]], folds=FOLDS, options=OPTIONS)
    np.testing.assert_allclose(scored.out_of_fold(which).scores, plain.scores, atol=1e-4)
    assert len(scored.finished) >= FEW


@pytest.mark.parametrize(("halving", "finished"), [("always", 3), ("auto", 12), ("never", 12)])
def test_a_small_grid_is_halved_on_request_only(halving: str, finished: int) -> None:
    values = [(float(C), 1.0) for C in np.geomspace(0.01, 100, 12)]
    scored = score_grid(
        SPEC, X, Y, values=values, divisions=[FOLDS], metric="accuracy", options=OPTIONS, halving=halving
    )  # type: ignore[arg-type]
    assert len(scored.finished) == finished


def test_log_loss_and_curves_never_drop_any() -> None:
    values = [(float(C), 1.0) for C in np.geomspace(0.1, 10, 6)]
    for metric, options in (("log_loss", OPTIONS), ("accuracy", BuildOptions(calibration="sigmoid"))):
        scored = score_grid(
            SPEC, X, Y, values=values, divisions=[FOLDS], metric=metric, options=options, halving="always"
        )  # type: ignore[arg-type]
        assert len(scored.finished) == 6


def test_repeats_are_means_over_all_divisions() -> None:
    spec, values = model_spec("ridge"), [1e3, 10.0]
    divisions = [make_folds(Y, classes=CLASSES, folds=3, seed=seed) for seed in range(3)]
    scored = score_grid(spec, X, Y, values=values, divisions=divisions, metric="accuracy", options=OPTIONS)
    assert scored.table.shape == (2, 9)
    for i, folds in enumerate(divisions):
        alone = score_grid(spec, X, Y, values=values, divisions=[folds], metric="accuracy", options=OPTIONS)
        np.testing.assert_array_equal(scored.table[:, 3 * i : 3 * i + 3], alone.table)
    found = search_setting(
        spec, X, Y, folds=divisions[0], repeats=divisions[1:], metric="accuracy", options=OPTIONS, grid=values
    )
    assert found.best.mean == pytest.approx(scored.table.mean(axis=1).max())
