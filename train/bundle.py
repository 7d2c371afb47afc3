"""A trained model with all that it needs to be trusted: a folder that appears whole or not at all.

``<models>/<name>/<time>-<8 hex>/`` holds ``steps.skops`` (preprocessing), ``model.skops`` or ``model.json``
(XGBoost's own; of several labels ``model-0000.json`` and so on), perhaps ``calibration.skops`` and ``report.html``,
and ``card.json``, which names the sha256 of every other file and says what the model was trained on. Loading a bundle
runs no code from it; see ``serial``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
from icecore.store import Column, Contract, StoreError
from numpy.typing import ArrayLike, NDArray

from . import serial
from .bundle_format import (
    CARD,
    CURVES,
    FORMAT,
    FORMAT_VERSION,
    SKOPS_MODEL,
    STEPS,
    XGBOOST_MODEL,
    file_sha256,
    label_model,
    seal,
)
from .calibration_curves import Curves, scores_of
from .errors import BundleError, FeatureMismatchError
from .label_models import LabelModels
from .machine_check import check_machines
from .tasks import TASKS, TaskName, task_of

__all__ = ["Bundle", "load_bundle", "read_card"]

BLOCK = 64
"""Rows that a model scores at a time, always so many: a matrix product rounds by the number of its rows, so that a row
scored alone and among others would differ in its last digits. The last rows are filled up and cut off again."""


@dataclass(frozen=True)
class Bundle:
    """A loaded model. Made by ``load_bundle``."""

    path: Path
    """its folder"""
    card: Mapping[str, Any]
    """everything recorded of it"""
    classes: tuple[str, ...]
    """names of classes or labels, in the order of the probabilities; of a regression, of its one number"""
    columns: tuple[Column, ...]
    """blocks of features, in the order in which they are joined"""
    contract: Contract
    """how features must be computed"""
    steps: Any
    """fitted preprocessing"""
    model: Any
    """fitted model"""
    curves: Curves | None = None
    """what turns its scores into probabilities, where that is not the model"""

    @property
    def task(self) -> TaskName:
        """What it was trained for; bundles of before there were tasks are classifiers."""
        return cast("TaskName", self.card.get("task", "classification"))

    @property
    def width(self) -> int:
        """Numbers an image, D: the widths of the columns together."""
        return sum(column.width for column in self.columns)

    def predict_proba(self, features: Mapping[str, ArrayLike] | ArrayLike) -> NDArray[np.float64]:
        """Give the probability of each class, or of each label.

        Parameters
        ----------
        features : mapping of column name to (n, width) float, or (n, D) float
            Features by column name (other columns are ignored), or the columns side by side in the order of
            ``columns``. Converted to float32.

        Returns
        -------
        (n, k) float64
            One row an image, in the order given; one column a class or label, in the order of ``classes``. A row
            sums to 1 where there are classes. A new array.

        Raises
        ------
        FeatureMismatchError
            When a column is missing, has another width, or holds NaN or infinity.
        BundleError
            When it is a regression, which has none.
        """
        if not task_of(self.task).has_probabilities:
            raise BundleError(f"{self.path}: a {self.task} gives numbers and no probabilities; use predict")
        return self.outputs(features)

    def predict(self, features: Mapping[str, ArrayLike] | ArrayLike) -> list[Any]:
        """Give what each image is called.

        Parameters and errors but the last are those of ``predict_proba``.

        Returns
        -------
        list of str, of list of str, or of float
            The class of the largest probability, the first one on ties; the labels whose probability is above one
            half; or the number, in the unit of the targets.
        """
        return self.calls(self.outputs(features))

    def outputs(self, features: Mapping[str, ArrayLike] | ArrayLike) -> NDArray[np.float64]:
        """Give what ``calls`` reads: probabilities (n, k), or the numbers (n,) of a regression.

        The numbers of a row are the same bits whatever rows stand beside it, and however many.
        """
        X = self._join(features)
        if not len(X):
            return np.zeros((0, len(self.classes)) if task_of(self.task).has_probabilities else 0)
        return np.concatenate([self._outputs_of_block(X[top : top + BLOCK]) for top in range(0, len(X), BLOCK)])

    def _outputs_of_block(self, X: NDArray[np.float32]) -> NDArray[np.float64]:
        n = len(X)
        A = self.steps.transform(np.concatenate((X, np.repeat(X[:1], BLOCK - n, axis=0))))  # (BLOCK, D)
        if self.curves is not None:
            return self.curves.proba(scores_of(self.model, A))[:n]
        return task_of(self.task).outputs(self.model, A)[:n]

    def calls(self, outputs: NDArray[np.float64]) -> list[Any]:
        """Give what ``predict`` gives for outputs that are there."""
        return task_of(self.task).calls(outputs, self.classes)

    def _join(self, features: Mapping[str, ArrayLike] | ArrayLike) -> NDArray[np.float32]:
        X = self._join_columns(features) if isinstance(features, Mapping) else np.asarray(features, np.float32)
        if X.ndim != 2 or X.shape[1] != self.width:
            raise FeatureMismatchError(
                f"{self.path}: features have shape {X.shape}; expected (n, {self.width}), "
                f"the columns {self._listed()} side by side"
            )
        if not np.isfinite(X).all():
            row = int(np.argwhere(~np.isfinite(X))[0, 0])
            raise FeatureMismatchError(f"{self.path}: row {row} holds NaN or infinity; extract that image again")
        return X

    def _join_columns(self, features: Mapping[str, ArrayLike]) -> NDArray[np.float32]:
        absent = [column.name for column in self.columns if column.name not in features]
        if absent:
            raise FeatureMismatchError(
                f"{self.path}: no features of {', '.join(absent)}; found {', '.join(features) or 'none'}; "
                f"the model takes {self._listed()}"
            )
        blocks = [np.asarray(features[column.name], np.float32) for column in self.columns]
        for column, block in zip(self.columns, blocks, strict=True):
            if block.ndim != 2 or block.shape[1] != column.width or len(block) != len(blocks[0]):
                raise FeatureMismatchError(
                    f"{self.path}: {column.name} has shape {block.shape}; expected ({len(blocks[0])}, {column.width})"
                )
        return np.hstack(blocks)

    def _listed(self) -> str:
        return ", ".join(f"{column.name} ({column.width})" for column in self.columns)


def load_bundle(path: Path | str) -> Bundle:
    """Read a bundle, after checking every byte of it against its card.

    Nothing in the folder is run: the model is read by skops, from a short list of types, or by XGBoost.

    Raises
    ------
    BundleError
        When there is no bundle, it is incomplete, altered or damaged, or of a format version that is not known.
    UntrustedTypeError
        When the model names types or functions that ours do not.

    Examples
    --------
    >>> bundle = load_bundle("features/models/default/20300101T000000Z-0123abcd")  # doctest: +SKIP
    >>> bundle.predict({"layer4:avg": features})  # doctest: +SKIP
    ['ants', 'bees']
    """
    path = Path(path)
    card = read_card(path)
    _check_files(path, card)
    try:
        columns = tuple(Column.from_json(spec, spec["width"]) for spec in card["columns"])
        contract = Contract.from_json(card["contract"])
        classes = tuple(map(str, card["classes"]))
    except (KeyError, TypeError, ValueError, StoreError) as exc:
        raise BundleError(f"{path / CARD}: not a complete card ({exc!r})") from exc
    model = _load_model(path, card["files"])
    curves = serial.load_skops(path / CURVES) if CURVES in card["files"] else None
    bundle = Bundle(path, card, classes, columns, contract, serial.load_skops(path / STEPS), model, curves)
    _check_fit(bundle)
    return bundle


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of a bundle, after checking it against its checksum; its files are not looked at.

    Raises
    ------
    BundleError
        When there is no card, it is altered or damaged, or of a format version that is not known.
    """
    file = path / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BundleError(f"{path}: no bundle here ({CARD}: {exc.strerror or exc})") from exc
    except ValueError as exc:
        raise BundleError(f"{file}: not JSON ({exc})") from exc
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise BundleError(f"{file}: not the card of an icecore bundle")
    if card.get("format_version") not in range(1, FORMAT_VERSION + 1):
        raise BundleError(
            f"{file}: bundle format {card.get('format_version')!r}; this release reads 1 to {FORMAT_VERSION}. "
            "Upgrade icecore, or train the model again"
        )
    body = {key: value for key, value in card.items() if key != "card_sha256"}
    if card.get("card_sha256") != seal(body) or not isinstance(card.get("files"), dict):
        raise BundleError(f"{file}: altered since it was written (its checksum does not fit)")
    return card


def _load_model(path: Path, files: Mapping[str, str]) -> Any:
    if XGBOOST_MODEL in files:
        return serial.load_xgboost(path / XGBOOST_MODEL)
    if SKOPS_MODEL in files:
        return serial.load_skops(path / SKOPS_MODEL)
    return LabelModels(tuple(serial.load_xgboost(path / name) for name in _label_files(files)))


def _label_files(files: Mapping[str, str]) -> list[str]:
    """Give the files of XGBoost's models of labels, as many as follow each other from the first."""
    return list(takewhile(files.__contains__, map(label_model, count())))


def _check_files(path: Path, card: Mapping[str, Any]) -> None:
    files: Mapping[str, str] = card["files"]
    labels = _label_files(files)
    if STEPS not in files or len({SKOPS_MODEL, XGBOOST_MODEL} & set(files)) + bool(labels) != 1:
        raise BundleError(f"{path}: names {_names(files)}; a bundle holds {STEPS} and one model")
    for name, digest in files.items():
        if Path(name).name != name or not (path / name).is_file():
            raise BundleError(f"{path}: {name!r} is missing; copy the whole folder again")
        if file_sha256(path / name) != digest:
            raise BundleError(f"{path / name}: altered since it was written (its sha256 is not the card's)")


def _check_fit(bundle: Bundle) -> None:
    """Let the model score one row of zeros: it must take the card's columns and give its classes, or one number."""
    if bundle.task not in TASKS:
        raise BundleError(
            f"{bundle.path}: it was trained for {bundle.task!r}, and this release knows {', '.join(TASKS)}. "
            "Upgrade icecore, or train the model again"
        )
    try:
        check_machines(bundle.model)
        shape = bundle.outputs(np.zeros((1, bundle.width))).shape
    except Exception as exc:  # a model put together by hand may fail in any way
        raise BundleError(
            f"{bundle.path}: the model does not take the {bundle.width} features of the card ({exc})"
        ) from exc
    found = shape[1:] if task_of(bundle.task).has_probabilities else (shape[0],)
    if found != (len(bundle.classes),):
        raise BundleError(
            f"{bundle.path}: the model gives {shape[-1]} probabilities, the card names {len(bundle.classes)} classes"
        )


def _names(files: Mapping[str, str]) -> str:
    names: Sequence[str] = sorted(files)
    return ", ".join(names) or "no files"
