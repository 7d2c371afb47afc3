"""The reports of numbers and of labels are safe pages that say what was found."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import CsvLabels, TrainResult, train_models
from icecore.train.report_tasks import label_parts, number_parts

NAME = "<b>age</b>"


@pytest.fixture(scope="module")
def results(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrainResult]:
    from icecore.store import FeatureStore

    with FeatureStore.open(store_path) as store:
        ids, X = store["photos"].matrix("good")
    folder = tmp_path_factory.mktemp("labels")
    lines = [f"path,{NAME},<script>,late,split"]
    for image, row in zip(ids, X, strict=True):
        lines.append(f"{image},{row[:3].sum() * 10:.2f},{int(row[0] > 0.5)},{int(row[1] > 1.5)},{image.split('/')[0]}")
    (folder / "labels.csv").write_text("\n".join(lines), "utf-8")
    given: dict[str, Any] = {"layers": ["good", "poor"], "models": ["ridge", "knn"], "folds": 3, "images": "nowhere"}
    return {
        task: train_models(
            store_path,
            "photos",
            task=task,
            labels=CsvLabels(folder / "labels.csv", columns=columns),
            name=task,
            **given,
        )  # type: ignore[arg-type]
        for task, columns in (("regression", (NAME,)), ("multilabel", ("<script>", "late")))
    }


def page_of(result: TrainResult) -> str:
    assert result.report is not None
    return result.report.read_text("utf-8")


@pytest.mark.parametrize("task", ["regression", "multilabel"])
def test_the_page_needs_no_network_runs_no_script_and_escapes_names(results: dict[str, TrainResult], task: str) -> None:
    page = page_of(results[task])
    assert "<script" not in page
    assert "<b>age" not in page
    assert ("&lt;b&gt;age" if task == "regression" else "&lt;script&gt;") in page
    assert not re.search(r"(src|href)=\"(?!#|data:image/jpeg;base64,)", page)
    assert not re.search(r"url\((?!#)", page)
    assert "undefined" not in re.sub(r"<[^>]*>", "", page)


def test_the_page_of_numbers_shows_scores_figures_and_the_largest_errors(results: dict[str, TrainResult]) -> None:
    result, page = results["regression"], page_of(results["regression"])
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())
    scores = result.winner.evaluation
    low, high = result.intervals[0]["rmse"]  # type: ignore[misc]
    assert f"{scores.rmse:.3f} 95 % interval {low:.3f} to {high:.3f}" in text
    assert f"Training mean {result.baseline.rmse:.3f}" in text
    assert f"{NAME} from " in text
    assert page.count("<svg") == 5  # cells, predicted, residuals, learning curve, map
    assert "Confusion" not in text
    assert "McNemar" not in text
    apart = np.abs(result.predictions.y - result.predictions.outputs)
    first, last = (result.predictions.ids[i] for i in (apart.argmax(), apart.argmin()))
    shown = text.partition("Largest errors")[2]
    assert first in shown
    assert last not in shown or len(apart) <= 24
    mistakes = number_parts(result)["mistakes"]
    assert mistakes[0].id == first
    assert len(mistakes) == len(apart)


def test_the_page_of_labels_shows_a_row_a_label_and_what_was_missed(results: dict[str, TrainResult]) -> None:
    result, page = results["multilabel"], page_of(results["multilabel"])
    text = " ".join(unescape(re.sub(r"<[^>]*>", " ", page)).split())
    for row in result.winner.evaluation.per_label:
        told = (
            f"{row.label} {row.precision:.3f} {row.recall:.3f} {row.f1:.3f} {row.average_precision:.3f} {row.support}"
        )
        assert told in text
    assert page.count("<svg") == 3  # cells, curves, learning curve
    y, called = result.predictions.y == 1, result.predictions.outputs > 0.5
    mistakes = label_parts(result)["mistakes"]
    assert len(mistakes) == (y != called).any(axis=1).sum()
    for mistake in mistakes:
        i = result.predictions.ids.index(mistake.id)
        missed = {
            name for name, has, is_called in zip(result.rows.classes, y[i], called[i], strict=True) if has & ~is_called
        }
        assert {name for name, _ in mistake.missed} == missed
        assert all(p > 0.5 for _, p in mistake.wrong)
