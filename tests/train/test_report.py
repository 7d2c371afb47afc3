"""The report is one safe page that says what was found."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.train import CsvLabels, ReportError, TrainResult, load_bundle, train_models
from icecore.train.report import render_report, worst_mistakes
from icecore.train.svg import printable
from icecore.train.thumbnails import Thumbnail, make_thumbnail
from PIL import Image

VOID = {"meta", "img", "br", "link", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects tags and addresses, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def jpeg_of(thumbnail: Thumbnail) -> bytes:
    assert thumbnail.reason == ""
    return base64.b64decode(thumbnail.uri.removeprefix("data:image/jpeg;base64,"))


def page_of(result: TrainResult) -> Page:
    assert result.report is not None
    return Page(result.report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def result(store_path: Path) -> TrainResult:
    return train_models(
        store_path, "photos", layers=["poor", ["poor", "good"]], name="report", folds=3, images="nowhere",
        models=["logistic_regression", "xgboost"],
    )  # fmt: skip


def test_the_report_stands_beside_the_winner_and_is_in_its_card(result: TrainResult) -> None:
    assert result.report == result.bundles[0] / "report.html"
    assert '"report.html"' in (result.bundles[0] / "card.json").read_text()


def test_the_page_needs_no_network_and_runs_no_script(result: TrainResult) -> None:
    page = page_of(result)
    assert "script" not in page.tags
    assert [a for a in page.addresses if not a.startswith(("#", "data:image/jpeg;base64,"))] == []
    assert result.report is not None
    assert not re.search(r"url\((?!#)", result.report.read_text())
    assert "@import" not in result.report.read_text()


def test_the_page_shows_the_numbers(result: TrainResult) -> None:
    text = " ".join(" ".join(page_of(result).text).split())
    scores = result.winner.evaluation
    assert f"{100 * scores.accuracy:.1f} %" in text
    assert f"{100 * scores.accuracy_interval[0]:.1f} to {100 * scores.accuracy_interval[1]:.1f} %" in text
    for cell in result.cells:
        assert cell.layers in text
        assert f"{cell.evaluation.log_loss:.3f}" in text
        assert f"{cell.best.mean:.3f} ± {cell.best.std:.3f}" in text
    assert f"{result.baseline.log_loss:.3f}" in text
    assert result.provenance.contract.hash in text
    assert result.rows.split.digest in text
    assert f"icecore predict {result.bundles[0]}" in text


def test_a_leaderboard_breaks_between_the_names_of_layers_only(result: TrainResult) -> None:
    assert result.report is not None
    assert '<span class="whole">poor:avg +</span> <span class="whole">good:avg</span></td>' in result.report.read_text()


def test_the_page_has_every_figure_and_no_clashing_ids(result: TrainResult) -> None:
    assert result.report is not None
    html = result.report.read_text()
    assert page_of(result).tags.count("svg") == 7
    assert "#010203" not in html
    assert 'id="m' in html
    marks = re.findall(r' id="(m[0-9a-f]+|C[0-9a-f_]+|p[0-9a-f]+)"', html)
    assert len(marks) == len(set(marks))


def test_two_renderings_differ_in_their_date_alone(result: TrainResult) -> None:
    def render() -> str:
        return re.sub("Made by icecore on [^<]*", "", render_report(result, store=Path("s"), bundle=Path("b")))

    assert render() == render()


def test_mistakes_are_the_called_wrong_ones_surest_first(result: TrainResult) -> None:
    mistakes = worst_mistakes(result)
    seen = result.predictions
    wrong = {image for image, y, p in zip(seen.ids, seen.y, seen.proba, strict=True) if p.argmax() != y}
    assert {mistake.id for mistake in mistakes} == wrong
    assert [m.p_true for m in mistakes] == sorted(m.p_true for m in mistakes)
    assert all(m.true == m.id.split("/")[1] != m.called for m in mistakes)


def test_hostile_names_are_escaped_and_stray_bytes_shown(lab: Any, tmp_path: Path) -> None:
    nasty = ['<script>alert("x")</script>', "o'bee\"&amp;", "\udcffwasp$x$\n\x07", "蜂"]
    ids = sorted(
        (f"{side}/{i}/{name.replace('/', '')}{n}.jpg" for side in ("train", "val") for i, name in enumerate(nasty)
         for n in range(6)),
        key=lambda image: image.encode("utf-8", "surrogateescape"),
    )  # fmt: skip
    path = tmp_path / "labels.csv"
    for_csv = [name.replace('"', '""') for name in nasty]
    quoted = ['"{}","{}",{}'.format(i.replace('"', '""'), for_csv[int(i.split("/")[1])], i.split("/")[0]) for i in ids]
    path.write_text("\n".join(["path,label,split", *quoted]) + "\n", encoding="utf-8", errors="surrogateescape")
    X = np.random.default_rng(0).normal(size=(len(ids), 4)).astype(np.float32)  # noise, so that there are mistakes
    found = train_models(
        lab.store(ids, layer=X), "photos", layers=["layer"], models=["logistic_regression"], folds=2,
        labels=CsvLabels(path), images=tmp_path / "<images>",
    )  # fmt: skip
    page = page_of(found)
    assert "script" not in page.tags
    text = "".join(page.text)
    assert '<script>alert("x")</script>' in text
    assert r"\xffwasp$x$" in text
    assert "蜂" in text


def test_many_classes_and_a_loss_still_draw(lab: Any) -> None:
    ids = lab.ids(3, 2, tuple(f"class {i:02}" for i in range(30)))
    found = train_models(
        lab.store(ids, layer=lab.features(ids, 5, signal=2)), "photos", layers=["layer"],
        models=["logistic_regression"], folds=2, metric="log_loss", grids={"logistic_regression": [0.1]},
    )  # fmt: skip
    assert page_of(found).tags.count("svg") == 7


def test_a_perfect_winner_has_no_mistakes_to_show(lab: Any) -> None:
    ids = lab.ids(6, 3, ("ants", "bees"))
    found = train_models(
        lab.store(ids, layer=lab.features(ids, 5, signal=40)), "photos", layers=["layer"],
        models=["linear_svm"], folds=2,
    )  # fmt: skip
    assert "None: every held-out image is called right." in "".join(page_of(found).text)


def test_thumbnails_stand_upright_as_exif_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (400, 200), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    thumbnail = make_thumbnail(tmp_path / "turned.jpg")
    data = jpeg_of(thumbnail)
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (96, 192)
        assert len(data) < 10_000


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "L", "I;16", "CMYK", "1"])
def test_thumbnails_show_every_kind_of_image(tmp_path: Path, mode: str) -> None:
    """A ramp from black to white: a picture whose values were cut off would be white (or black) all over."""
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    ramp = np.tile(np.linspace(0, 255, 300).astype(np.uint8), (300, 1))
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    assert image.mode == mode
    image.save(path)
    with Image.open(io.BytesIO(jpeg_of(make_thumbnail(path)))) as small:
        columns = np.asarray(small.convert("L"), np.float64).mean(axis=0)
    assert columns[:20].mean() < 40
    assert columns[-20:].mean() > 215
    assert 90 < columns.mean() < 165


def test_unreadable_pictures_say_so(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("RGB", (50, 50)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for name in ("text.jpg", "cut.png", "absent.jpg"):
        thumbnail = make_thumbnail(tmp_path / name)
        assert thumbnail.uri == ""
        assert thumbnail.reason.startswith("cannot be read: ")


def test_a_picture_with_odd_exif_costs_neither_report_nor_models(lab: Any) -> None:
    """One that Pillow decodes, and cannot turn: its horizontal resolution says that it is a place in the file."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    ids = lab.ids(6, 4, ("ants", "bees"))
    for image in ids:
        path = lab.folder / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "red").save(path, exif=exif)
        path.write_bytes(path.read_bytes().replace(b"\x01\x1a\x00\x05", b"\x01\x4a\x00\x05"))
    found = train_models(
        lab.store(ids, layer=lab.features(ids, 4, signal=0)), "photos", layers=["layer"],
        models=["logistic_regression"], folds=2, images=lab.folder / "images",
    )  # fmt: skip
    assert "cannot be read: required argument is not an integer" in "".join(page_of(found).text)


def test_a_report_that_fails_costs_no_model_and_is_told(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise MemoryError("no room for the figure")

    monkeypatch.setattr("icecore.train.report.plot_cells", fail)
    with pytest.raises(ReportError, match=r"MemoryError: no room for the figure.*the models are in") as caught:
        train_models(
            store_path, "photos", layers=["poor", "good"], models=["linear_svm"], folds=2, save="all", name="torn"
        )
    found = caught.value.result
    assert found.report is None
    assert len(found.bundles) == 2
    for path in found.bundles:
        notes = load_bundle(path).card["notes"]
        assert any("the report could not be made (MemoryError: no room for the figure)" in note for note in notes)
        assert str(path) in str(caught.value)


def test_printable_text_can_always_be_written() -> None:
    assert printable("a\udcff\ud800\n\tb é 蜂") == r"a\xff\ud800\n\tb é 蜂"


def test_the_python_lines_of_the_page_run_as_they_are(store_path: Path, result: TrainResult) -> None:
    assert result.report is not None
    html = result.report.read_text()
    lines = unescape(html[html.index("from icecore.store") : html.index("labels = bundle.predict(X)</pre>")])
    names: dict[str, Any] = {}
    exec(lines + "labels = bundle.predict(X)", names)
    assert len(names["labels"]) == 84


def test_a_strange_path_cannot_leave_its_place_in_the_page(result: TrainResult) -> None:
    html = render_report(result, store=Path("<i>"), bundle=Path("it's here/<b>"))
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert "<i>" not in html


def test_the_page_says_how_sure_the_scores_are(result: TrainResult) -> None:
    words = " ".join(" ".join(page_of(result).text).split())
    low, high = result.intervals[0]["macro_f1"] or (0, 0)
    assert f"{low:.3f} to {high:.3f}" in words
    assert result.runner_up is not None
    assert result.runner_up.verdict() in words
    alone = replace(result, runner_up=None, cells=result.cells[:1])
    assert "Gap to the next best" not in render_report(alone, store=Path("s"), bundle=Path("b"))
