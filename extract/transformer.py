"""A frozen backbone as a step of a scikit-learn pipeline: image paths in, features out, each image computed once."""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from icecore.store import ContractMismatchError, FeatureStore
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from .errors import ImageError, ImageErrorKind
from .job import extract_images

__all__ = ["FrozenBackbone"]


class FrozenBackbone(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Turns paths of images into features of a frozen network, through a feature store.

    What the store has is read; what it lacks is computed, all layers in one pass, and kept, as by ``extract_images``:
    fitting, predicting and the next notebook compute no image twice, and a changed file is computed anew.

    Parameters
    ----------
    store
        Folder of the feature store; made where there is none.
    backbone, weights, layers, poolings, device, precision
        As ``extract_images`` takes ``backbone_name`` and the rest; several columns are joined side by side.
    set_name
        Feature set. Default: one for these settings, named after them.
    options
        More keyword arguments of ``extract_images``, such as ``{"batch_size": 16}``.

    Attributes
    ----------
    n_features_out_ : int
        Width of the joined columns.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> frozen = FrozenBackbone("features", backbone="resnet18", weights="DEFAULT", layers=["layer4"])
    >>> model = make_pipeline(frozen, LogisticRegression())  # then model.fit(paths, labels)
    """

    def __init__(
        self,
        store: Path | str,
        *,
        backbone: str = "resnet18",
        weights: str | Path | None = "DEFAULT",
        layers: Sequence[str] = ("layer4",),
        poolings: Sequence[str] = ("avg",),
        device: str | Sequence[str] = "auto",
        precision: str = "fp32",
        set_name: str | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.poolings = poolings
        self.device = device
        self.precision = precision
        self.set_name = set_name
        self.options = options

    def fit(self, X: ArrayLike | Sequence[Path | str], y: Any = None) -> Self:
        """Compute the images that the store lacks; nothing is learnt from them.

        Parameters
        ----------
        X : (n,) or (n, 1)
            Paths of image files.
        y
            Not looked at.

        Raises
        ------
        ImageError, ExtractError, icecore.store.StoreError
            As ``transform``.
        """
        self.n_features_out_ = self.transform(X).shape[1]
        return self

    def fit_transform(self, X: ArrayLike | Sequence[Path | str], y: Any = None, **_: Any) -> NDArray[np.float32]:
        """Give the features of images, as ``transform`` does; the network is loaded once."""
        features = self.transform(X)
        self.n_features_out_ = features.shape[1]
        return features

    def transform(self, X: ArrayLike | Sequence[Path | str]) -> NDArray[np.float32]:
        """Give the features of images, (n, D) float32, in the order of their paths.

        Raises
        ------
        ImageError
            When images cannot be used; it names the first of them. What could be computed is kept.
        ExtractError, icecore.store.StoreError
            As ``extract_images``.
        """
        paths = [str(Path(path).absolute()) for path in _flat(X)]
        with tempfile.TemporaryDirectory(prefix="icecore-") as folder:
            report = extract_images(
                self.store,
                self._set_name(),
                _manifest(Path(folder), paths),
                backbone_name=self.backbone,
                weights=self.weights,
                layers=list(self.layers),
                poolings=list(self.poolings),
                device=self.device,
                precision=self.precision,
                prune="keep",
                command="FrozenBackbone.transform",
                **(self.options or {}),
            )
        columns = [column.name for column in report.columns]
        with FeatureStore.open(self.store) as store:
            features = store[report.set_name]
            if features.contract.hash != report.contract_hash:
                raise ContractMismatchError(
                    f"set {report.set_name!r} holds features of another backbone, preprocessing or precision",
                    report.plan.differences,
                    "give another set_name",
                )
            failures = {failure.id: failure for failure in features.failures()}
            for path in paths:
                if path in failures:
                    kind = cast("ImageErrorKind", failures[path].kind)
                    raise ImageError(kind, f"{path}: {failures[path].reason}")
            with features.array(columns, missing="drop") as array:
                return array.take(paths).astype(np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Give a name for each feature: ``frozenbackbone0`` and so on, as scikit-learn's own transformers do.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before ``fit``, which counts them.
        """
        check_is_fitted(self, "n_features_out_")
        return np.array([f"frozenbackbone{i}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True  # nothing is learnt

    def _set_name(self) -> str:
        if self.set_name is not None:
            return self.set_name
        settings = {
            **self.get_params(deep=False),
            **dict.fromkeys(("store", "device", "set_name", "layers", "poolings")),
        }
        text = json.dumps(settings, sort_keys=True, default=str)
        return f"{self.backbone.rpartition(':')[2]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _flat(X: Any) -> Iterable[Any]:
    found = np.asarray(X, dtype=object)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or not len(found):
        raise ValueError(f"expected paths of images, (n,) or (n, 1) with n of 1 or more; found {found.shape}")
    return list(found)


def _manifest(folder: Path, paths: Sequence[str]) -> Path:
    """Write the list of images that ``extract_images`` takes; each is named by its whole path."""
    file = folder / "images.csv"
    with file.open("w", encoding="utf-8", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(("path", "id"))
        rows.writerows((path, path) for path in dict.fromkeys(paths))
    return file
