"""The example configs of numbers and of labels on real photos, against plain scikit-learn on the same folds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.cli.config import TrainConfig, load_config
from icecore.cli.train import train_from_config
from icecore.extract import extract_images
from icecore.store import FeatureStore
from icecore.train import Cell, TrainResult, load_bundle
from numpy.typing import NDArray
from PIL import Image
from sklearn.compose import TransformedTargetRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score, r2_score, root_mean_squared_error
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR, LinearSVR

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LAYERS = ("features.2", "features.5")
TAGS = ("red", "round", "ripe")  # as the example names them: warm colours, a daisy or sunflower, a bright picture


class Flowers:
    """160 photos with what Pillow says of their colours, and their features."""

    def __init__(self, folder: Path, assets: Path) -> None:
        self.folder, photos = folder, folder / "photos"
        for kind in sorted((assets / "data" / "flowers" / "train").iterdir()):
            (photos / kind.name).mkdir(parents=True)
            for path in sorted(kind.glob("*.jpg"))[:32]:
                (photos / kind.name / path.name).symlink_to(path)
        extract_images(
            folder / "features", "photos", photos, backbone_name="squeezenet1_1",
            weights=assets / "weights" / "squeezenet1_1.pth", layers=LAYERS, device="cpu", threads=1,
            preprocess_changes={"resize": 96, "crop": 96},
        )  # fmt: skip
        with FeatureStore.open(folder / "features") as store:
            self.ids = list(store["photos"].ids())
            self.X = {layer: store["photos"].matrix(layer)[1] for layer in LAYERS}
        colours = np.array([self.colour(photos / image) for image in self.ids])  # (n, 3)
        self.redness = (colours[:, 0] - colours[:, 1:].mean(axis=1)).round(3)
        bright, warm = colours.mean(axis=1), colours[:, 0] - colours[:, 2]
        is_round = [image.startswith(("daisy", "sunflowers")) for image in self.ids]
        self.tags = np.column_stack((warm > np.quantile(warm, 0.6), is_round, bright > np.quantile(bright, 0.7)))
        self.groups = [f"day {i // 4}" for i in range(len(self.ids))]

    @staticmethod
    def colour(path: Path) -> NDArray[np.float64]:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((32, 32)), np.float64).mean(axis=(0, 1))

    def train(self, example: str, columns: dict[str, NDArray[Any]], *overrides: str) -> TrainResult:
        lines = [",".join(["path", *columns, "group"])]
        for i, image in enumerate(self.ids):
            lines.append(",".join([image, *(str(column[i]) for column in columns.values()), self.groups[i]]))
        (self.folder / f"{example}.csv").write_text("\n".join(lines), "utf-8")
        given = {
            "store": str(self.folder / "features"),
            "labels.csv": str(self.folder / f"{example}.csv"),
            "labels.columns": list(columns),
            "split.by": "hash",
            "train.report": False,
            "train.layers": list(LAYERS),
        }
        told = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        return train_from_config(load_config(TrainConfig, CONFIGS / f"{example}.toml", [*told, *overrides]))

    def sides(self, result: TrainResult) -> tuple[NDArray[np.bool_], NDArray[Any]]:
        assert result.rows.ids == tuple(self.ids)
        return result.rows.train, np.array(self.groups)[result.rows.train]


@pytest.fixture(scope="module")
def flowers(tmp_path_factory: pytest.TempPathFactory, assets: Path) -> Flowers:
    return Flowers(tmp_path_factory.mktemp("flowers"), assets)


def plain_regressor(cell: Cell, n: int) -> Any:
    """The same model and setting, as a user of scikit-learn would write it."""
    point = cell.params
    if cell.model == "ridge":
        return make_pipeline(StandardScaler(), Ridge(point["alpha"]))
    if cell.model == "knn":
        return make_pipeline(
            StandardScaler(), KNeighborsRegressor(point["n_neighbors"], weights="distance", metric="cosine")
        )
    if cell.model == "linear_svr":
        dual = n < cell.n_features
        machine: Any = LinearSVR(
            C=point["C"],
            epsilon=point["epsilon"],
            loss="squared_epsilon_insensitive",
            dual=dual,
            tol=1e-6,
            max_iter=100_000,
        )
    else:
        machine = SVR(C=point["C"], epsilon=point["epsilon"], gamma=point["gamma_scale"] / cell.n_features)
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), machine), transformer=StandardScaler())


def test_a_number_of_real_photos_is_found_and_scored_as_scikit_learn_scores_it(flowers: Flowers) -> None:
    result = flowers.train("regression", {"age": flowers.redness})
    train, groups = flowers.sides(result)
    y = flowers.redness[train]
    assert {cell.model for cell in result.cells} == {"ridge", "linear_svr", "knn", "rbf_svr", "xgboost"}
    assert result.winner.evaluation.r2 > 0.7
    assert result.winner.evaluation.rmse < 0.6 * result.baseline.rmse
    ranks = np.argsort(np.argsort(y, kind="stable"), kind="stable")
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    folds = list(splitter.split(y, ranks * 10 // len(y), groups))
    for cell in result.cells:
        if cell.model == "xgboost":
            continue  # its components are random to the eye of single precision
        X = flowers.X[cell.columns[0].removesuffix(":avg")].astype(np.float64)
        model, errors = plain_regressor(cell, len(y)), []
        for fit, test in folds:
            model.fit(X[train][fit], y[fit])
            errors.append(root_mean_squared_error(y[test], model.predict(X[train][test])))
        assert cell.best.mean == pytest.approx(np.mean(errors), rel=5e-3), cell.model
        told = model.fit(X[train], y).predict(X[~train])
        assert cell.evaluation.rmse == pytest.approx(root_mean_squared_error(flowers.redness[~train], told), rel=5e-3)
        assert cell.evaluation.r2 == pytest.approx(r2_score(flowers.redness[~train], told), abs=5e-3)
    bundle = load_bundle(result.bundles[0])
    X = np.hstack([flowers.X[column.layer][~train] for column in bundle.columns])
    np.testing.assert_allclose(bundle.predict(X), result.predictions.outputs, rtol=1e-5)


def test_labels_of_real_photos_are_found_and_scored_as_scikit_learn_scores_them(flowers: Flowers) -> None:
    columns = {name: flowers.tags[:, i].astype(int) for i, name in enumerate(TAGS)}
    result = flowers.train("multilabel", columns, "train.models=['logistic_regression', 'linear_svm']")
    train, _ = flowers.sides(result)
    assert result.winner.evaluation.mean_average_precision > 0.8
    assert result.winner.evaluation.macro_f1 > result.baseline.macro_f1 + 0.2
    assert len(result.cells) == 4
    for cell in result.cells:
        if cell.model != "logistic_regression":
            continue
        X = flowers.X[cell.columns[0].removesuffix(":avg")].astype(np.float64)
        proba = []
        for name in TAGS:
            model = LogisticRegression(C=cell.best.value, class_weight="balanced", max_iter=5_000, tol=1e-6)
            plain = make_pipeline(StandardScaler(), model).fit(X[train], columns[name][train])
            proba.append(plain.predict_proba(X[~train])[:, 1])
        y, told = flowers.tags[~train], np.transpose(proba)
        assert cell.evaluation.macro_f1 == pytest.approx(f1_score(y, told > 0.5, average="macro"), abs=0.02)
        assert cell.evaluation.mean_average_precision == pytest.approx(
            average_precision_score(y, told, average="macro"), abs=0.01
        )
    bundle = load_bundle(result.bundles[0])
    X = np.hstack([flowers.X[column.layer][~train] for column in bundle.columns])
    np.testing.assert_allclose(bundle.predict_proba(X), result.predictions.outputs, atol=1e-6)
