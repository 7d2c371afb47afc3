"""What a person writes without icecore: Pillow, torchvision and scikit-learn, one image at a time.

``plain_script.py features DATA WEIGHTS OUT.npz`` runs MobileNetV2 over ``DATA/{train,val}/{ants,bees}`` and keeps the
mean over height and width of three blocks. ``plain_script.py scores FEATURES.npz WANTED.json OUT.json`` fits
classifiers with given settings. It is a witness: it imports nothing of icecore and runs in a process of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

BLOCKS = (6, 13, 18)


def compute_features(data: Path, weights: Path, out: Path) -> None:
    import torch
    import torchvision
    from PIL import Image

    torch.set_num_threads(1)
    network = torchvision.models.mobilenet_v2()
    report = network.load_state_dict(torch.load(weights, weights_only=True), strict=False)
    assert all(key.startswith("classifier.") for key in report.missing_keys)
    assert not report.unexpected_keys
    network.eval()
    kept: dict[int, list[np.ndarray]] = {block: [] for block in BLOCKS}
    for block in BLOCKS:
        network.features[block].register_forward_hook(
            lambda module, inputs, output, block=block: kept[block].append(output.mean(dim=(2, 3)).numpy().copy())
        )
    transform = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    files = [file for file in data.rglob("*") if file.suffix in {".jpg", ".jpeg"}]
    names = sorted((str(file.relative_to(data)) for file in files), key=str.encode)
    with torch.no_grad():
        for name in names:
            network(transform(Image.open(data / name).convert("RGB"))[None])
    arrays: dict[str, Any] = {f"features.{block}": np.concatenate(kept[block]) for block in BLOCKS}
    np.savez(out, names=np.array(names), **arrays)


def make_shrunken_means(threshold: float) -> Any:
    """Nearest shrunken centroids (Tibshirani et al. 2002): the means are scikit-learn's, the distance the paper's."""
    from sklearn.neighbors import NearestCentroid

    class ShrunkenMeans(NearestCentroid):  # type: ignore[misc]
        def predict(self, X: np.ndarray) -> np.ndarray:
            deviation = self.within_class_std_dev_ + np.median(self.within_class_std_dev_)
            gaps = ((X[:, None] - self.centroids_) / deviation) ** 2
            return np.asarray(self.classes_[(gaps.sum(axis=2) - 2 * np.log(self.class_prior_)).argmin(axis=1)])

    return ShrunkenMeans(shrink_threshold=threshold, priors="empirical")


def make_network(params: dict[str, float], seed: int) -> Any:
    """A hidden layer, trained for some epochs whose order of rows goes on from one to the next."""
    from sklearn.neural_network import MLPClassifier

    class Network(MLPClassifier):  # type: ignore[misc]
        def fit(self, X: np.ndarray, y: np.ndarray) -> Network:
            self.set_params(random_state=np.random.RandomState(seed), batch_size=64)
            for _ in range(int(params["epochs"])):
                self.partial_fit(X, y, classes=np.unique(y))
            return self

    return Network((int(params["hidden"]),), alpha=params["alpha"])


def make_classifier(kind: str, params: dict[str, float], seed: int, X: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC, LinearSVC
    from xgboost import XGBClassifier

    value, *_ = params.values()
    steps: list[Any] = [StandardScaler()]
    if kind == "logistic_regression":
        model: Any = LogisticRegression(C=value, max_iter=5000)
    elif kind == "linear_svm":
        model = LinearSVC(C=value, max_iter=20000, random_state=seed)
    elif kind == "ridge":
        model = RidgeClassifier(alpha=value)
    elif kind == "rbf_svm":
        model = SVC(kernel="rbf", C=value, gamma=params["gamma_scale"] / X.shape[1])  # the variance is 1
    elif kind == "nearest_mean":
        model = make_shrunken_means(value)
    elif kind == "knn":
        model = KNeighborsClassifier(int(value), weights="distance", metric="cosine")
    elif kind == "mlp":
        model = make_network(params, seed)
    elif kind == "xgboost":
        tree = min(X.shape[1], 256)
        settings: dict[str, Any] = {"colsample_bytree": tree / X.shape[1], "colsample_bynode": min(tree, 32) / tree}
        settings |= {"subsample": 0.8, "max_bin": 32}
        settings |= {**params, "max_depth": int(value), "n_estimators": int(params["n_estimators"])}
        model = XGBClassifier(tree_method="hist", n_jobs=1, random_state=seed, **settings)
    else:
        raise SystemExit(f"no classifier {kind}")
    return make_pipeline(*steps, model)


def compute_scores(features: Path, wanted: Path, out: Path) -> None:
    """Cross-validate on the training images and score on the others, for each (layer, classifier, settings) wanted."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    arrays = np.load(features)
    names = [str(name) for name in arrays["names"]]
    y = np.array([name.split("/")[1] for name in names])
    classes = sorted(set(y))
    y = np.searchsorted(classes, y)
    training = np.array([name.startswith("train/") for name in names])
    task = json.loads(wanted.read_text())
    folds = StratifiedKFold(task["folds"], shuffle=True, random_state=task["seed"])
    results = []
    for layer, kind, params in task["cells"]:
        X = arrays[layer]
        classifier = make_classifier(kind, params, task["seed"], X)
        cross_validated = cross_val_score(classifier, X[training], y[training], cv=folds).mean()
        called = classifier.fit(X[training], y[training]).predict(X[~training])
        results.append(
            {
                "layer": layer,
                "model": kind,
                "cv": float(cross_validated),
                "accuracy": float((called == y[~training]).mean()),
                "called": [classes[i] for i in called],
            }
        )
    held_out = [name for name, train in zip(names, training, strict=True) if not train]
    out.write_text(json.dumps({"held_out": held_out, "results": results}))


if __name__ == "__main__":
    job, *paths = sys.argv[1:]
    {"features": compute_features, "scores": compute_scores}[job](*map(Path, paths))
