"""Whether new images look like those that a model was trained on: Frechet distance by layer, and shares of classes.

A layer's features are seen through few numbers a row: coordinates along the main directions of the training rows, along
some random ones, and what these leave over. The directions come from one half of the training rows and the rows to
compare with from the other, so that a new row and a training row are treated alike.

The Frechet distance (Heusel et al. 2017) between two samples is biased: of equal distributions it is not zero, and
larger the fewer rows there are. So it is held against its own values when both samples are thrown together and divided
at random: their mean is taken off, and their share that is as large is the p value of a permutation test, which is
exact for any number of rows.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .drift_tests import compare_counts, compare_rows
from .errors import DriftError

__all__ = [
    "FEWEST",
    "MAX_DRIFT",
    "ClassDrift",
    "Drift",
    "LayerDrift",
    "LayerReference",
    "NewRows",
    "Reference",
    "make_reference",
]

Floats = NDArray[np.float64]

FORMAT = 1
FEWEST = 20
"""New rows below which nothing is said."""
LEVEL = 0.05
"""Most probability that anything at all is called drift where there is none."""
MAX_DRIFT = 0.3
"""Distance from which drift is told, in standard deviations of the training rows."""
MAIN, RANDOM = 24, 8
"""Directions of a layer, at most."""
BASIS_ROWS, COMPARED_ROWS = 1024, 1024
"""Training rows that directions are found from, and that new rows are held against; also most new rows kept."""
BEYOND = 0.99
"""Share of the training rows that the training range holds."""


@dataclass(frozen=True, eq=False)
class LayerReference:
    """The training rows of one layer."""

    mean: NDArray[np.float32]
    """(D,) of the features"""
    scale: NDArray[np.float32]
    """(D,) standard deviations, those of nearly constant features raised"""
    directions: NDArray[np.float32]
    """(D, d - 1), orthonormal"""
    shift: Floats
    """(d,) mean of a row's d numbers"""
    spread: Floats
    """(d,) their standard deviation"""
    rows: Floats
    """(m, d) of the rows to compare with"""
    limit: float
    """squared length, over d numbers, that 99 % of them stay below"""

    def see(self, X: NDArray[np.float32]) -> Floats:
        """Give the d numbers of each row, (n, d), in standard deviations."""
        return (_seen(X, self.mean, self.scale, self.directions) - self.shift) / self.spread

    def beyond(self, rows: Floats) -> int:
        """Count the rows outside of the training range."""
        return int((np.square(rows).sum(axis=1) > self.limit).sum())


@dataclass(frozen=True, eq=False)
class Reference:
    """What new images are held against."""

    layers: Mapping[str, LayerReference]
    """by column, in the order of the model"""
    classes: Mapping[str, int]
    """images that the model called so among its held-out rows; empty where it has no classes"""

    def save(self) -> bytes:
        """Give it as the bytes of an ``.npz`` file."""
        buffer = io.BytesIO()
        header = {"format": FORMAT, "layers": list(self.layers), "classes": dict(self.classes)}
        arrays = {
            f"{i}.{name}": value for i, layer in enumerate(self.layers.values()) for name, value in vars(layer).items()
        }
        np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what ``save`` gave. Raises DriftError where it is damaged, or of a later release."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                header = json.loads(found["header"].tobytes())
                layers = {
                    name: LayerReference(
                        **{key: found[f"{i}.{key}"] for key in _ARRAYS}, limit=float(found[f"{i}.limit"])
                    )
                    for i, name in enumerate(header["layers"] if header["format"] == FORMAT else ())
                }
        except Exception as exc:  # a damaged archive makes NumPy raise anything
            raise DriftError(f"{path}: not readable ({exc}); remove it, and it is made anew") from exc
        if header["format"] != FORMAT:
            raise DriftError(f"{path}: of format {header['format']}, this release reads {FORMAT}; remove it")
        return cls(layers, header["classes"])


_ARRAYS = ("mean", "scale", "directions", "shift", "spread", "rows")


def make_reference(
    layers: Mapping[str, NDArray[np.float32]], classes: Mapping[str, int] | None = None, *, seed: int = 0
) -> Reference:
    """Describe training rows.

    Parameters
    ----------
    layers
        Features by column, (n, D) each, rows in any order; 40 or more. Of more than 2,048 a random part counts.
    classes
        How many held-out images the model called each class.
    seed
        Of the halves and the random directions.

    Raises
    ------
    DriftError
        When there are fewer rows.
    """
    n = len(next(iter(layers.values())))
    if n < 2 * FEWEST:
        raise DriftError(f"drift: {n:,} training rows are too few to compare with; {2 * FEWEST} are needed")
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    basis = order[: min(n // 2, BASIS_ROWS)]
    compared = order[len(basis) :][:COMPARED_ROWS]
    found = {
        name: _layer(X[basis].astype(np.float32), X[compared].astype(np.float32), rng) for name, X in layers.items()
    }
    return Reference(found, dict(classes or {}))


class NewRows:
    """New rows as they come, in the memory of 1,024."""

    def __init__(self, reference: Reference, widths: Sequence[int], *, seed: int = 0) -> None:
        self._reference, self._starts = reference, np.cumsum(widths)[:-1]
        self._rng = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self._kept = {name: np.empty((0, layer.rows.shape[1])) for name, layer in reference.layers.items()}
        self._beyond = dict.fromkeys(reference.layers, 0)
        self._calls = dict.fromkeys(reference.classes, 0)
        self.n = 0
        """rows seen"""

    def add(self, X: NDArray[np.float32], calls: Sequence[str] = ()) -> None:
        """Take in rows, (n, D) with all columns side by side, and what the model calls them."""
        keys = np.concatenate([self._keys, self._rng.random(len(X))])
        chosen = np.argsort(keys, kind="stable")[:COMPARED_ROWS]  # a random part of all rows so far
        self._keys = keys[chosen]
        for (name, layer), part in zip(self._reference.layers.items(), np.split(X, self._starts, axis=1), strict=True):
            rows = layer.see(part)
            self._beyond[name] += layer.beyond(rows)
            self._kept[name] = np.concatenate([self._kept[name], rows])[chosen]
        for call in calls if self._calls else ():
            self._calls[call] += 1
        self.n += len(X)

    def judge(self, *, max_drift: float = MAX_DRIFT, seed: int = 0) -> Drift | None:
        """Compare with the training rows; None where there are fewer than 20 new ones."""
        if self.n < FEWEST:
            return None
        rng = np.random.default_rng(seed)
        tests = len(self._kept) + bool(self._calls)
        draws = max(199, 40 * tests)
        layers = []
        for name, layer in self._reference.layers.items():
            distance, p = compare_rows(layer.rows, self._kept[name], rng, draws=draws)
            layers.append(LayerDrift(name, distance, p, self._beyond[name] / self.n))
        classes = None
        if self._calls:
            before = np.array([self._reference.classes[name] for name in self._calls])
            distance, p = compare_counts(before, np.array(list(self._calls.values())), rng, draws=draws)
            classes = ClassDrift(distance, p, {name: count / self.n for name, count in self._calls.items()})
        return Drift(self.n, tuple(layers), classes, max_drift, LEVEL / tests)


@dataclass(frozen=True)
class LayerDrift:
    """How far the new rows of a layer are from the training rows."""

    layer: str
    """column"""
    distance: float
    """root of the Frechet distance over d, without its bias: 0.5 is a shift of half a standard deviation in all d"""
    p_value: float
    """how often rows of one distribution are as far apart"""
    beyond: float
    """share of the rows outside of the range of 99 % of the training rows"""


@dataclass(frozen=True)
class ClassDrift:
    """How far the classes that new images are called are from those of the held-out rows."""

    distance: float
    """total variation, without its bias, 0 to 1: the share of the images that would have to be called otherwise"""
    p_value: float
    """how often shares of one distribution are as far apart"""
    shares: Mapping[str, float]
    """of the new images, by class"""


@dataclass(frozen=True)
class Drift:
    """A verdict on new images."""

    rows: int
    """new images"""
    layers: tuple[LayerDrift, ...]
    """by layer, in the order of the model"""
    classes: ClassDrift | None
    """of predictions; None where there are no classes"""
    max_drift: float
    """distance above which drift is told"""
    level: float
    """p value below which a distance counts"""

    @property
    def where(self) -> tuple[str, ...]:
        """Layers that have drifted, and ``classes``."""
        found = [each.layer for each in self.layers if self._counts(each)]
        return (*found, *(["classes"] if self.classes and self._counts(self.classes) else []))

    @property
    def has_drifted(self) -> bool:
        """Whether anything has."""
        return bool(self.where)

    @property
    def distance(self) -> float:
        """The largest distance of a layer."""
        return max(each.distance for each in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Give it as plain JSON values."""
        told: dict[str, Any] = {
            "rows": self.rows,
            "drifted": self.has_drifted,
            "where": list(self.where),
            "max_drift": self.max_drift,
            "layers": [{name: _short(value) for name, value in vars(each).items()} for each in self.layers],
        }
        if self.classes is not None:
            shares = {name: _short(share) for name, share in self.classes.shares.items()}
            told["classes"] = {
                "distance": _short(self.classes.distance), "p_value": _short(self.classes.p_value), "shares": shares
            }  # fmt: skip
        return told

    def _counts(self, each: LayerDrift | ClassDrift) -> bool:
        return each.distance > self.max_drift and each.p_value <= self.level


def _layer(basis: NDArray[np.float32], compared: NDArray[np.float32], rng: np.random.Generator) -> LayerReference:
    mean, deviation = basis.mean(axis=0), basis.std(axis=0)
    alive = deviation[deviation > 0]
    floor = 0.05 * float(np.median(alive)) if alive.size else 1.0  # a feature that wakes up must not drown the others
    scale = np.maximum(deviation, floor).astype(np.float32)
    directions = _directions((basis - mean) / scale, rng)
    seen = _seen(basis, mean, scale, directions)
    shift, spread = seen.mean(axis=0), np.maximum(seen.std(axis=0), 1e-6)
    rows = (_seen(compared, mean, scale, directions) - shift) / spread
    limit = float(np.quantile(np.square(rows).sum(axis=1), BEYOND))
    return LayerReference(mean, scale, directions, shift, spread, rows, limit)


def _directions(Z: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Give main directions of standardised rows (n, D), and random ones across them: orthonormal, (D, d - 1)."""
    n, width = Z.shape
    main = min(MAIN, width, n // 8)
    gram = Z @ Z.T if n < width else Z.T @ Z
    _, vectors = np.linalg.eigh(gram.astype(np.float64))
    top = vectors[:, ::-1][:, :main]
    found = Z.T @ top if n < width else top  # (D, main)
    others = rng.normal(size=(width, min(RANDOM, width - main)))
    return np.linalg.qr(np.hstack([found, others]))[0].astype(np.float32)


def _seen(
    X: NDArray[np.float32], mean: NDArray[np.float32], scale: NDArray[np.float32], directions: NDArray[np.float32]
) -> Floats:
    Z = (X - mean) / scale  # (n, D)
    along = (Z @ directions).astype(np.float64)  # (n, d - 1)
    rest = np.square(Z, dtype=np.float64).sum(axis=1) - np.square(along).sum(axis=1)
    return np.column_stack([along, np.sqrt(rest.clip(0) / Z.shape[1])])


def _short(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
