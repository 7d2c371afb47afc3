"""Drift: what was moved on purpose is told, what was not is not, at any number of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import DriftError
from icecore.train.drift import FEWEST, NewRows, Reference, make_reference
from icecore.train.drift_kept import read_history, record_drift
from icecore.train.drift_page import drift_page, drift_table
from icecore.train.drift_tests import compare_counts, compare_rows, frechet

WIDTHS = {"layer3:avg": 48, "layer4:avg": 96}
MIX = {name: np.random.default_rng(width).normal(size=(12, width)) / 3 for name, width in WIDTHS.items()}


def draw(n: int, seed: int, **change: Any) -> dict[str, np.ndarray]:
    """Rows like pooled activations: correlated, of unequal spread, never negative."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 12)) * np.linspace(3, 0.5, 12)
    found = {name: np.maximum(0, hidden @ MIX[name] + 0.3 * rng.normal(size=(n, w))) for name, w in WIDTHS.items()}
    return {name: np.float32(change.get(name.split(":")[0], lambda X: X)(X)) for name, X in found.items()}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return make_reference(draw(1200, 0), {"ants": 300, "bees": 300})


def verdict(
    reference: Reference, rows: dict[str, np.ndarray], *, ants: float = 0.5, seed: int = 0, **options: Any
) -> Any:
    new = NewRows(reference, list(WIDTHS.values()), seed=seed)
    X = np.hstack(list(rows.values()))
    calls = np.where(np.random.default_rng(seed).random(len(X)) < ants, "ants", "bees").tolist()
    for top in range(0, len(X), 70):
        new.add(X[top : top + 70], calls[top : top + 70])
    return new.judge(**options)


# --- no shift ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [FEWEST, 150])
def test_rows_of_the_same_distribution_raise_no_alarm_even_without_a_limit(reference: Reference, n: int) -> None:
    """With any distance above zero counting, alarms are false in 5 % at most: 40 draws give 6 or fewer in 99 %."""
    alarms = [verdict(reference, draw(n, 100 + i), seed=i, max_drift=0.0).has_drifted for i in range(40)]
    assert sum(alarms) <= 6
    assert not any(verdict(reference, draw(n, 200 + i), seed=i).has_drifted for i in range(10))


def test_the_distance_has_no_bias_of_small_samples(reference: Reference) -> None:
    rows, d = draw(FEWEST, 5)["layer4:avg"], reference.layers["layer4:avg"].rows.shape[1]
    layer = reference.layers["layer4:avg"]
    seen = layer.see(rows)
    plain = frechet(*((x.mean(axis=0), np.cov(x.T)) for x in (layer.rows, seen)))
    corrected, _ = compare_rows(layer.rows, seen, np.random.default_rng(0))
    assert np.sqrt(plain / d) > 0.35  # would be called drift
    assert corrected < 0.15


def test_a_hundredth_of_the_rows_lies_beyond_the_range_of_99_percent(reference: Reference) -> None:
    found = verdict(reference, draw(4000, 9))
    assert found.rows == 4000
    assert all(0.004 < layer.beyond < 0.02 for layer in found.layers)


# --- shifts -----------------------------------------------------------------------------------------------------------

SHIFTS = {
    "mean": lambda X: X + X.std(axis=0),
    "scale": lambda X: 1.6 * X,
    "dead": lambda X: np.zeros_like(X),
    "one image for all": lambda X: np.repeat(X[:1], len(X), axis=0),
    "half of the features": lambda X: np.where(np.arange(X.shape[1]) % 2, X, 0),
}


@pytest.mark.parametrize("n", [FEWEST, 300])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_made_shift_is_told_in_its_layer_and_in_no_other(reference: Reference, shift: str, n: int) -> None:
    found = verdict(reference, draw(n, 7, layer4=SHIFTS[shift]))
    assert found.where == ("layer4:avg",)
    assert found.distance == found.layers[1].distance > 0.4


def test_the_distance_of_a_shift_is_measured_in_standard_deviations(reference: Reference) -> None:
    """A shift by one deviation in each feature, far from the floor at zero."""
    rng = np.random.default_rng(0)
    plain = {name: np.float32(rng.normal(size=(2000, w))) for name, w in WIDTHS.items()}
    flat = make_reference(plain)
    moved = {name: np.float32(rng.normal(size=(500, w)) + 1) for name, w in WIDTHS.items()}
    found = verdict(flat, moved)
    assert [layer.distance for layer in found.layers] == pytest.approx([1, 1], abs=0.35)


def test_a_class_that_vanishes_is_told(reference: Reference) -> None:
    found = verdict(reference, draw(100, 3), ants=0.02)
    assert found.where == ("classes",)
    assert found.classes.distance == pytest.approx(0.48, abs=0.06)
    assert found.classes.shares["ants"] < 0.06
    assert verdict(reference, draw(100, 3), ants=0.5).where == ()


def test_the_limit_decides(reference: Reference) -> None:
    rows = draw(300, 7, layer4=lambda X: 1.6 * X)
    distance = verdict(reference, rows).distance
    assert verdict(reference, rows, max_drift=distance * 1.01).where == ()
    assert verdict(reference, rows, max_drift=distance * 0.99).where == ("layer4:avg",)


# --- edges ------------------------------------------------------------------------------------------------------------


def test_too_few_new_rows_say_nothing_and_too_few_training_rows_are_refused(reference: Reference) -> None:
    assert verdict(reference, draw(FEWEST - 1, 1)) is None
    with pytest.raises(DriftError, match="39 training rows are too few to compare with; 40 are needed"):
        make_reference(draw(39, 0))


@pytest.mark.parametrize("width", [1, 3])
def test_narrow_and_constant_features_are_compared(width: int) -> None:
    rng = np.random.default_rng(0)
    X = np.float32(rng.normal(size=(200, width)))
    X[:, 0] = 2
    made = make_reference({"a": X})
    new = NewRows(made, [width])
    new.add(X[:50])
    assert not new.judge().has_drifted
    other = NewRows(made, [width])
    other.add(X[:50] + 3)
    assert other.judge().has_drifted


def test_only_a_part_of_many_rows_is_kept_and_it_is_one_of_all(reference: Reference) -> None:
    new = NewRows(reference, list(WIDTHS.values()))
    X = np.hstack(list(draw(3000, 4, layer4=lambda X: X + 2).values()))
    for top in range(0, 6000, 500):
        new.add(X[top % 3000 : top % 3000 + 500] if top < 3000 else X[:500] - np.float32(2), ["ants"] * 500)
    assert new.n == 6000
    assert all(len(rows) == 1024 for rows in new._kept.values())
    assert new.judge().layers[1].distance > 0.3


def test_a_reference_comes_back_from_its_file_and_a_damaged_one_is_told(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    path.write_bytes(reference.save())
    again = Reference.load(path)
    rows = draw(60, 2)
    assert verdict(again, rows).to_json() == verdict(reference, rows).to_json()
    path.write_bytes(reference.save()[:-200])
    with pytest.raises(DriftError, match=r"reference.npz: not readable .* remove it"):
        Reference.load(path)


def test_the_frechet_distance_is_that_of_the_formula() -> None:
    """Against the matrix square root of SciPy: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2)."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + rng.normal(size=6) for _ in range(2))
    (m1, c1), (m2, c2) = ((x.mean(axis=0), np.cov(x.T)) for x in (a, b))
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet((m1, c1), (m2, c2)) == pytest.approx(expected, rel=1e-9)


def test_counts_of_one_distribution_are_told_from_others() -> None:
    rng = np.random.default_rng(0)
    alike = [compare_counts(rng.multinomial(90, [0.2] * 5), rng.multinomial(40, [0.2] * 5), rng)[1] for _ in range(100)]
    assert np.mean(np.array(alike) <= 0.05) <= 0.12
    distance, p = compare_counts(np.array([50, 50]), np.array([0, 60]), rng)
    assert (distance == pytest.approx(0.5, abs=0.1), p) == (True, 1 / 200)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_verdicts_are_kept_a_line_each_and_a_line_cut_off_by_a_kill_costs_nothing_else(
    reference: Reference, tmp_path: Path
) -> None:
    found = verdict(reference, draw(60, 2))
    record_drift(tmp_path, "default", found, {"bundle": "A"})
    path = tmp_path / "drift" / "default.jsonl"
    path.write_bytes(path.read_bytes() + b'{"format": 1, "at"')
    record_drift(tmp_path, "default", found, {"bundle": "B"})
    assert [record["bundle"] for record in read_history(tmp_path, "default")] == ["A", "B"]
    with pytest.raises(DriftError, match="no history of drift; there is one of default"):
        read_history(tmp_path, "other")


def test_the_page_shows_every_layer_the_limit_and_the_alarms_and_escapes_names(
    reference: Reference, tmp_path: Path
) -> None:
    import xml.etree.ElementTree as ET

    for seed, change in ((1, lambda X: X), (2, lambda X: X + 3)):
        record_drift(tmp_path, "default", verdict(reference, draw(60, seed, layer4=change)), {"bundle": "<b>&"})
    records = read_history(tmp_path, "default")
    page = drift_page(records, "default").decode()
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page
    figures = [
        ET.fromstring(part.partition("</svg>")[0] + "</svg>")
        for part in page.split("<h2>")[1:]
        for part in ["<svg" + part.partition("<svg")[2]]
    ]
    assert [len(figure.findall("polyline")) for figure in figures] == [2, 2, 2]
    assert len(figures[0].findall("line[@class='limit']")) == 1
    assert page.count('<tr class="bad">') == 1
    assert [row[-1] for row in drift_table(records)] == ["no", "layer4:avg"]
    assert json.loads(json.dumps(records)) == records
