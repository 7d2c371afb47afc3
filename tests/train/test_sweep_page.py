"""The page of a sweep needs nothing from outside, escapes every name, and shows every cell."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from icecore.train import Steps, SweepResult, sweep_models
from icecore.train.sweep_page import heat_table, render_sweep

from .conftest import features_for, image_ids, write_store

MODELS = ("ridge", "nearest_mean", "knn")


class Page(HTMLParser):
    """The tags of a page, with their attributes, and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    ids = image_ids(8, 4, ("<script>alert(1)</script>", "b&b", '"quoted"'))
    ids = [image.replace("</script>", "") for image in ids]
    layers = {"<img src=x onerror=alert(2)>": 4, "layer&2": 5, "layer3": 6}
    X = {name: features_for(ids, width, signal=1.0, seed=width) for name, width in layers.items()}
    path = write_store(tmp_path_factory.mktemp("page") / "features", ids, X)
    steps = (Steps(), Steps(l2_norm=True))
    return sweep_models(path, "photos", models=MODELS, steps=steps, folds=2, keep=2, report=False)


@pytest.fixture(scope="module")
def text(swept: SweepResult) -> str:
    return render_sweep(swept)


def test_names_are_shown_not_obeyed(text: str) -> None:
    page = Page(text)
    assert page.open == []
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert any("<img src=x onerror=alert(2)>:avg" in shown for shown in page.texts)
    assert any("layer&2:avg" in shown for shown in page.texts)


def test_nothing_is_fetched(text: str) -> None:
    assert not re.search(r"https?:|src=|@import|url\(", re.sub(r"&lt;.*?&gt;", "", text))
    assert not {tag for tag, _ in Page(text).tags} & {"link", "iframe", "object", "base", "form"}


def test_every_cell_and_every_layer_has_a_row(swept: SweepResult, text: str) -> None:
    boards = [part.partition("</table>")[0] for part in text.split('<table class="sortable">')[1:]]
    assert len(boards) == 2
    assert boards[0].count("<tr") == 1 + len(swept.cells)
    assert boards[1].count("<tr") == 1 + len(swept.quick)
    assert boards[1].count('class="left"') == 1
    shown = [float(value) for value in re.findall(r'data-value="([^"]+)">0\.\d{4}<', boards[0])]
    assert shown[::2] == [cell.best.mean for cell in swept.cells]


def test_the_heat_goes_from_the_worst_cell_to_the_best(swept: SweepResult) -> None:
    heat = heat_table(swept.cells, "accuracy")
    assert heat.models == MODELS
    assert len(heat.rows) == 5  # two layers with both preprocessings, and the one that the quick pass left
    entries = [entry for _, row in heat.rows for entry in row if entry is not None]
    assert all(any(cell is other for cell, _ in entries) for other in swept.cells)
    assert len(entries) == len(swept.cells)
    means = [cell.best.mean for cell in swept.cells]
    assert {warmth for cell, warmth in entries if cell.best.mean == max(means)} == {1.0}
    assert {warmth for cell, warmth in entries if cell.best.mean == min(means)} == {0.0}
    assert sum(entry is None for _, row in heat.rows for entry in row) == 1
    losses = [entry for _, row in heat_table(swept.cells, "log_loss").rows for entry in row if entry is not None]
    assert {warmth for cell, warmth in losses if cell.best.mean == max(means)} == {0.0}


def test_the_page_is_written_beside_the_tables(swept: SweepResult, tmp_path: Path) -> None:
    from icecore.train.sweep_board import write_board

    files = write_board(swept, tmp_path, page=True)
    assert [file.name for file in files] == ["leaderboard.csv", "leaderboard.json", "leaderboard.html"]
    assert files[2].read_text("utf-8").startswith("<!DOCTYPE html>")


def test_scores_are_those_of_the_winner_alone(swept: SweepResult, text: str) -> None:
    accuracy = swept.trained.winner.evaluation.accuracy
    assert f"<b>{100 * accuracy:.1f} %</b>" in text
    assert text.count("Accuracy of the winner, held out") == 1
