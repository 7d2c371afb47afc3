"""A trained model with all that it needs to be trusted: a folder that appears whole or not at all.

``<models>/<name>/<time>-<8 hex>/`` holds ``steps.skops`` (preprocessing), ``model.skops`` or ``model.json``
(XGBoost's own), perhaps ``calibration.skops`` and ``report.html``, and ``card.json``, which names the sha256 of every
other file and says what the model was trained on. Loading a bundle runs no code from it; see ``serial``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from icecore.store import Column, Contract, StoreError
from numpy.typing import ArrayLike, NDArray

from . import serial
from .bundle_format import CARD, CURVES, FORMAT, FORMAT_VERSION, SKOPS_MODEL, STEPS, XGBOOST_MODEL, file_sha256, seal
from .calibration_curves import Curves, scores_of
from .errors import BundleError, FeatureMismatchError
from .metrics import as_probabilities

__all__ = ["Bundle", "load_bundle"]


@dataclass(frozen=True)
class Bundle:
    """A loaded model. Made by ``load_bundle``."""

    path: Path
    """its folder"""
    card: Mapping[str, Any]
    """everything recorded of it"""
    classes: tuple[str, ...]
    """class names, in the order of the probabilities"""
    columns: tuple[Column, ...]
    """blocks of features, in the order in which they are joined"""
    contract: Contract
    """how features must be computed"""
    steps: Any
    """fitted preprocessing"""
    model: Any
    """fitted classifier"""
    curves: Curves | None = None
    """what turns its scores into probabilities, where that is not the model"""

    @property
    def width(self) -> int:
        """Numbers an image, D: the widths of the columns together."""
        return sum(column.width for column in self.columns)

    def predict_proba(self, features: Mapping[str, ArrayLike] | ArrayLike) -> NDArray[np.float64]:
        """Give the probability of each class.

        Parameters
        ----------
        features : mapping of column name to (n, width) float, or (n, D) float
            Features by column name (other columns are ignored), or the columns side by side in the order of
            ``columns``. Converted to float32.

        Returns
        -------
        (n, k) float64
            One row an image, in the order given; one column a class, in the order of ``classes``. A new array.

        Raises
        ------
        FeatureMismatchError
            When a column is missing, has another width, or holds NaN or infinity.
        """
        X = self._join(features)
        if not len(X):
            return np.zeros((0, len(self.classes)))
        A = self.steps.transform(X)
        if self.curves is not None:
            return self.curves.proba(scores_of(self.model, A))
        return as_probabilities(self.model.predict_proba(A))

    def predict(self, features: Mapping[str, ArrayLike] | ArrayLike) -> list[str]:
        """Give the label of the largest probability for each image, the first class on ties.

        Parameters and errors are those of ``predict_proba``.
        """
        return [self.classes[i] for i in self.predict_proba(features).argmax(axis=1)]

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
    card = _read_card(path)
    _check_files(path, card)
    try:
        columns = tuple(Column.from_json(spec, spec["width"]) for spec in card["columns"])
        contract = Contract.from_json(card["contract"])
        classes = tuple(map(str, card["classes"]))
    except (KeyError, TypeError, ValueError, StoreError) as exc:
        raise BundleError(f"{path / CARD}: not a complete card ({exc!r})") from exc
    model = (
        serial.load_xgboost(path / XGBOOST_MODEL)
        if XGBOOST_MODEL in card["files"]
        else serial.load_skops(path / SKOPS_MODEL)
    )
    curves = serial.load_skops(path / CURVES) if CURVES in card["files"] else None
    bundle = Bundle(path, card, classes, columns, contract, serial.load_skops(path / STEPS), model, curves)
    _check_fit(bundle)
    return bundle


def _read_card(path: Path) -> dict[str, Any]:
    file = path / CARD
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise BundleError(f"{path}: no bundle here ({CARD}: {exc.strerror or exc})") from exc
    except ValueError as exc:
        raise BundleError(f"{file}: not JSON ({exc})") from exc
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise BundleError(f"{file}: not the card of an icecore bundle")
    if card.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{file}: bundle format {card.get('format_version')!r}; this release reads {FORMAT_VERSION}. "
            "Upgrade icecore, or train the model again"
        )
    body = {key: value for key, value in card.items() if key != "card_sha256"}
    if card.get("card_sha256") != seal(body) or not isinstance(card.get("files"), dict):
        raise BundleError(f"{file}: altered since it was written (its checksum does not fit)")
    return card


def _check_files(path: Path, card: Mapping[str, Any]) -> None:
    files: Mapping[str, str] = card["files"]
    models = {SKOPS_MODEL, XGBOOST_MODEL} & set(files)
    if STEPS not in files or len(models) != 1:
        raise BundleError(f"{path}: names {_names(files)}; a bundle holds {STEPS} and one model")
    for name, digest in files.items():
        if Path(name).name != name or not (path / name).is_file():
            raise BundleError(f"{path}: {name!r} is missing; copy the whole folder again")
        if file_sha256(path / name) != digest:
            raise BundleError(f"{path / name}: altered since it was written (its sha256 is not the card's)")


def _check_fit(bundle: Bundle) -> None:
    """Let the model score one row of zeros: it must take the card's columns and give its classes."""
    try:
        shape = bundle.predict_proba(np.zeros((1, bundle.width))).shape
    except Exception as exc:  # a model put together by hand may fail in any way
        raise BundleError(
            f"{bundle.path}: the model does not take the {bundle.width} features of the card ({exc})"
        ) from exc
    if shape != (1, len(bundle.classes)):
        raise BundleError(
            f"{bundle.path}: the model gives {shape[-1]} probabilities, the card names {len(bundle.classes)} classes"
        )


def _names(files: Mapping[str, str]) -> str:
    names: Sequence[str] = sorted(files)
    return ", ".join(names) or "no files"
