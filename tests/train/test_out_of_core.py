"""What trains out of core ends as it does in memory: the same choice, the same model, the same scores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.train import MemoryLimitError, Steps, TrainError, TrainResult, load_bundle, train_models
from icecore.train.block_task import BlockTask
from icecore.train.boosting_out_of_core import BoostingOutOfCore
from icecore.train.data import pin, read_rows
from icecore.train.folds import make_folds
from icecore.train.linear_out_of_core import LinearOutOfCore
from icecore.train.models import BuildOptions, ModelSpec, model_spec
from icecore.train.out_of_fold import fit_pipeline, score_folds
from icecore.train.selection import Selection
from numpy.typing import NDArray

CLASSES = ("ants", "bees", "wasps", "flies")
TRAINED = ("logistic_regression", "linear_svm", "xgboost")
WIDTH = 40
NO_LIMIT = 1 << 40


def features(ids: list[str], *, seed: int = 0, offset: float = 0.4) -> NDArray[np.float32]:
    """Non-negative features with a falling spectrum, as pooled maps after a ReLU have; one never changes."""
    rng = np.random.default_rng(seed)
    y = np.array([CLASSES.index(image.split("/")[1]) for image in ids])
    scales = np.arange(1, WIDTH + 1) ** -0.5
    latent = (rng.normal(size=(len(ids), WIDTH)) + 0.6 * rng.normal(size=(len(CLASSES), WIDTH))[y]) * scales
    X = np.maximum(latent @ rng.normal(size=(WIDTH, WIDTH)) + offset, 0)
    X[:, 5] = 0.3
    return X.astype(np.float16).astype(np.float32)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that three commits have written in turn, so that its rows lie across segments in no order."""
    from .conftest import write_store

    folder = tmp_path_factory.mktemp("blocks") / "features"
    ids = [f"{'val' if i % 4 == 0 else 'train'}/{CLASSES[i % 7 % 4]}/{i:04}.jpg" for i in range(2000)]
    ids.sort()
    X = features(ids)
    for turn in range(3):
        at = np.arange(turn, len(ids), 3)
        write_store(folder, [ids[i] for i in at], {"good": X[at]})
    return folder


@pytest.fixture
def task(path: Path, tmp_path: Path) -> Callable[..., tuple[BlockTask, NDArray[np.float32]]]:
    """Make a task of small blocks, and give the features of its training rows."""

    def make(**options: Any) -> tuple[BlockTask, NDArray[np.float32]]:
        with FeatureStore.open(path) as store:
            features = pin(store, "photos")
            rows = read_rows(features, ["good"])
            folds = make_folds(rows.y_train, classes=rows.classes, folds=3, seed=0)
            made = Selection(features, "good", rows, [folds], NO_LIMIT).tasks(BuildOptions(**options), tmp_path)[0]
            X = features.matrix("good").X[rows.train]
        plan = replace(made.blocks.plan, rows=70, workers=2)
        return replace(made, left=2 << 20, blocks=replace(made.blocks, plan=plan)), X

    return make


def exact(name: str) -> ModelSpec:
    """Give the model with a tolerance that leaves little room: as far down as float32 goes in few steps."""
    spec, tol = model_spec(name), {"logistic_regression": 1e-6, "linear_svm": 1e-5}[name]
    return replace(spec, build=lambda options: spec.build(options).set_params(tol=tol))


STEPS = {
    "standard": Steps(),
    "none": Steps(scale="none"),
    "norm": Steps(signed_sqrt=True, l2_norm=True),
    "pca": Steps(pca=12),
    "whitened": Steps(pca=12, whiten=True),
}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", ["logistic_regression", "linear_svm"])
def test_linear_models_are_those_that_are_fitted_in_memory(task: Any, name: str, steps: str) -> None:
    """Scores of every fold and value, and of the last model, within 1e-3 of the largest: float32 sums differ."""
    blocks, X = task(steps=STEPS[steps], class_weight="balanced")
    spec, values, y = exact(name), (1e-3, 1e-2), blocks.rows.y_train
    learner = LinearOutOfCore(blocks, spec, values)
    given = score_folds(spec, X, y, values=values, folds=blocks.folds, options=blocks.options)
    for found, wanted in zip(learner.scores(), given.scores, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-3 * np.abs(wanted).max())
    pipeline, _ = learner.fit(1)
    plain, _ = fit_pipeline(spec, X, y, value=values[1], options=blocks.options)
    wanted = plain.decision_function(X)
    np.testing.assert_allclose(
        pipeline.decision_function(blocks.options.steps.by_row(X)), wanted, atol=1e-3 * np.abs(wanted).max()
    )
    assert type(pipeline["model"]) is type(plain["model"])


def test_two_classes_are_one_column(lab: Any, tmp_path: Path) -> None:
    ids = [image for image in lab.ids(per_class=60, held_out=20) if "wasps" not in image]
    path = lab.store(ids, good=lab.features(ids, 12, signal=0.5))
    runs = [run(path, memory=memory, layers=["good"], models=TRAINED) for memory in (None, least(path))]
    for cell in runs[1].cells:
        same = next(other for other in runs[0].cells if other.model == cell.model)
        assert cell.best.mean == pytest.approx(same.best.mean, abs=0.02)


@pytest.mark.parametrize("steps", ["standard", "pca"])
def test_xgboost_is_as_good_as_in_memory(task: Any, steps: str) -> None:
    blocks, X = task(steps=STEPS[steps])
    spec, y = model_spec("xgboost"), blocks.rows.y_train
    values = [(3, 0.2, rounds) for rounds in (20, 40)]
    given = score_folds(spec, X, y, values=values, folds=blocks.folds, options=blocks.options)
    found = [scores.copy() for scores in BoostingOutOfCore(blocks, spec, values).scores()]
    for one, other in zip(found, given.scores, strict=True):
        assert (one.argmax(1) == y).mean() == pytest.approx((other.argmax(1) == y).mean(), abs=0.03)
    again = [scores.copy() for scores in BoostingOutOfCore(blocks, spec, values).scores()]
    np.testing.assert_array_equal(found, again)
    assert not list(blocks.folder.glob("gram-*"))
    assert not [folder for folder in blocks.folder.iterdir() if folder.is_dir()]


def run(path: Path, **options: Any) -> TrainResult:
    grids = {"xgboost": {"max_depth": [3], "n_estimators": [20]}}
    return train_models(path, "photos", **{"report": False, "folds": 3, "grids": grids, **options})


def least(path: Path) -> int:
    """Find the smallest limit, to a tenth, within which all three models train."""
    limit = 1 << 20
    while True:
        with FeatureStore.open(path) as store:
            features = pin(store, "photos")
            rows = read_rows(features, ["good"])
            folds = make_folds(rows.y_train, classes=rows.classes, folds=3, seed=0)
            chosen = Selection(features, "good", rows, [folds], limit)
            grids = {"xgboost": {"max_depth": [3], "n_estimators": [20]}}
            ways = [chosen.way(model_spec(name), Steps(), grids.get(name)) for name in TRAINED]
        if "skipped" not in ways:
            return limit
        limit = limit * 11 // 10


@pytest.fixture(scope="module")
def pair(path: Path) -> tuple[TrainResult, TrainResult]:
    """The same training without and with a limit that sends all models out of core."""
    options = {"layers": ["good"], "models": TRAINED, "save": "all"}
    return run(path, **options), run(path, **options, memory=least(path), report=True)


def test_a_limit_changes_neither_choice_nor_scores(pair: tuple[TrainResult, TrainResult]) -> None:
    free, limited = pair
    assert {cell.model for cell in limited.cells} == set(TRAINED)
    for cell in limited.cells:
        same = next(other for other in free.cells if other.model == cell.model)
        assert any("out of core" in note for note in cell.notes)
        assert not any("out of core" in note for note in same.notes)
        if cell.model != "xgboost":
            assert cell.params == same.params
            assert cell.best.mean == pytest.approx(same.best.mean, abs=0.005)
        room = 0.04 if cell.model == "xgboost" else 0.005  # its rows come in another order, so that it draws others
        assert cell.evaluation.accuracy == pytest.approx(same.evaluation.accuracy, abs=room)
        assert cell.evaluation.log_loss == pytest.approx(same.evaluation.log_loss, rel=0.1)
        assert cell.evaluation.accuracy > 0.7


def test_the_report_looks_at_a_sample_and_says_so(pair: tuple[TrainResult, TrainResult]) -> None:
    free, limited = pair
    sample = limited.evidence.sample
    assert sample is not None
    assert sample < len(limited.rows.ids)
    assert any(f"fits the memory limit: {sample:,}" in note for note in limited.notes)
    assert free.evidence.sample is None
    assert limited.report is not None
    assert "fits the memory limit" in limited.report.read_text("utf-8")
    assert limited.evidence.learning[-1].mean == limited.winner.best.mean


def test_bundles_of_both_predict_alike_and_no_temporary_file_stays(
    pair: tuple[TrainResult, TrainResult], path: Path
) -> None:
    free, limited = pair
    with FeatureStore.open(path) as store:
        X = store["photos"].matrix("good").X
    for cell, folder in zip(limited.cells, limited.bundles, strict=True):
        at = next(i for i, other in enumerate(free.cells) if other.model == cell.model)
        ours, theirs = (load_bundle(place).predict_proba(X) for place in (folder, free.bundles[at]))
        assert (ours.argmax(1) == theirs.argmax(1)).mean() > (0.95 if cell.model == "xgboost" else 0.995)
    assert not list((path / "models").rglob(".*"))


def test_models_that_need_all_rows_at_once_are_skipped_with_a_note(path: Path) -> None:
    found = run(path, layers=["good"], models=("logistic_regression", "knn"), memory=least(path))
    assert [cell.model for cell in found.cells] == ["logistic_regression"]
    [note] = [note for note in found.notes if note.startswith("skipped")]
    assert "knn" in note
    assert "good:avg" in note


@pytest.mark.parametrize("models", [("knn",), TRAINED])
def test_where_no_model_can_train_the_error_tells_what_they_need(path: Path, models: tuple[str, ...]) -> None:
    with pytest.raises(MemoryLimitError, match=rf"{models[0]} needs some \d+ MiB .* the limit is 0 MiB"):
        run(path, layers=["good"], models=models, memory=100_000)


@pytest.mark.parametrize("memory", [0, -5])
def test_a_limit_is_a_number_of_bytes(path: Path, memory: int) -> None:
    with pytest.raises(TrainError, match="memory: bytes"):
        run(path, layers=["good"], memory=memory)


def test_repeats_and_nested_folds_train_out_of_core_too(path: Path) -> None:
    options = {"layers": ["good"], "models": ["logistic_regression"], "repeats": 2, "outer_folds": 2}
    options["grids"] = {"logistic_regression": [1e-3, 1e-1]}
    free, limited = run(path, **options), run(path, **options, memory=least(path))
    assert limited.winner.params == free.winner.params
    assert limited.winner.best.mean == pytest.approx(free.winner.best.mean, abs=0.003)
    assert limited.nested is not None
    assert free.nested is not None
    assert limited.nested.mean == pytest.approx(free.nested.mean, abs=0.005)


def test_a_failure_leaves_no_temporary_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xgboost

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no disk")

    monkeypatch.setattr(xgboost, "train", fail)
    with pytest.raises(RuntimeError, match="no disk"):
        run(path, layers=["good"], models=["xgboost"], memory=least(path))
    assert not list((path / "models").rglob(".*"))


def test_blocks_give_every_row_once_and_reach_no_further_than_they_may(task: Any) -> None:
    blocks, X = task()
    rows = blocks.training
    found = np.empty_like(X)
    seen = []
    for chunk in blocks.blocks.chunks(rows):
        assert len(chunk) <= blocks.blocks.plan.rows
        assert np.ptp(blocks.blocks.rank[chunk]) < 4 * blocks.blocks.plan.rows
        found[blocks.place[chunk]] = blocks.blocks.read(chunk)
        seen += chunk.tolist()
    assert sorted(seen) == rows.tolist()
    np.testing.assert_array_equal(found, X)


def test_the_inputs_of_a_fold_are_those_of_scikit_learn(task: Any) -> None:
    """The whole training side: means, scales and components against StandardScaler and PCA."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    blocks, X = task()
    scaler = StandardScaler().fit(X.astype(np.float64))
    pca = PCA(6, svd_solver="full").fit(scaler.transform(X.astype(np.float64)))
    frame = blocks.frames(6)[-1]
    np.testing.assert_allclose(frame.mean + frame.shift, scaler.mean_, atol=1e-6)
    np.testing.assert_allclose(frame.scale, scaler.scale_, rtol=1e-6)
    assert frame.variance is not None
    np.testing.assert_allclose(frame.variance, pca.explained_variance_, rtol=1e-4)
    wanted = pca.transform(scaler.transform(X.astype(np.float64)))
    np.testing.assert_allclose(np.abs(frame.inputs(X - frame.shift)), np.abs(wanted), atol=2e-3)


def test_copies_across_the_split_are_found_block_by_block(path: Path, tmp_path: Path) -> None:
    from .conftest import write_store

    ids = [
        f"{side}/{label}/{i:03}.jpg" for side, n in (("train", 40), ("val", 10)) for label in CLASSES for i in range(n)
    ]
    X = features(ids)
    X[ids.index("val/bees/003.jpg")] = X[ids.index("train/ants/007.jpg")]
    folder = write_store(tmp_path / "features", ids, {"good": X})
    found = run(folder, layers=["good"], models=["logistic_regression"], memory=least(folder))
    assert any("very features of a training image" in note and "'val/bees/003.jpg'" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_a_matrix_four_times_the_limit_trains_within_it(name: str) -> None:
    """In a process of its own; accuracy within 0.2 points of that in memory."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "out_of_core.py"
    done = subprocess.run(
        [sys.executable, script, "--only", name, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
