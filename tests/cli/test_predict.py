"""``icecore predict``: rows, formats, files, and the refusals that keep features and model together."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Icecore = Callable[..., Any]
Noisy = Callable[..., Image.Image]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_has_one_row_an_image_in_the_order_given(icecore: Icecore, trained: Any) -> None:
    single = trained.photos / "train" / "red" / "5.png"
    done = icecore("predict", trained.bundle, single, trained.photos / "val", single)
    assert done.code == 0
    assert done.told.startswith("8 images, 0 failed\n  8 extracted; ")
    assert done.text.splitlines()[0] == "path,label,probability,p:blue,p:red,error,bundle"
    found = rows(done.text)
    below = [trained.photos / "val" / label / f"{n}.png" for label in ("blue", "red") for n in range(3)]
    assert [row["path"] for row in found] == [str(path) for path in (single, *below, single)]
    for row in found:
        blue, red = float(row["p:blue"]), float(row["p:red"])
        assert blue + red == pytest.approx(1, abs=1e-5)  # six digits are printed
        assert row["label"] == ("blue" if blue > red else "red") == Path(row["path"]).parent.name
        assert row["error"] == ""
    assert found[0] == found[-1]


def test_columns_follow_the_classes_of_the_card(icecore: Icecore, trained: Any) -> None:
    classes = json.loads((trained.bundle / "card.json").read_text())["classes"]
    header = icecore("predict", trained.bundle, trained.photos / "val").text.splitlines()[0]
    assert header.split(",") == ["path", "label", "probability", *(f"p:{name}" for name in classes), "error", "bundle"]


def test_json_lines_say_the_same_as_csv(icecore: Icecore, trained: Any) -> None:
    val = trained.photos / "val"
    lines = icecore("predict", trained.bundle, val, "--format", "jsonl").text.splitlines()
    table = rows(icecore("predict", trained.bundle, val).text)
    for line, row in zip(map(json.loads, lines), table, strict=True):
        assert (line["path"], line["label"]) == (row["path"], row["label"])
        assert line.keys() == {"path", "label", "probability", "probabilities", "bundle"}
        assert line["probability"] == line["probabilities"][line["label"]] == max(line["probabilities"].values())
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-6)  # single precision
        for name, p in line["probabilities"].items():
            assert float(row[f"p:{name}"]) == pytest.approx(p, rel=1e-5)


@pytest.mark.parametrize(("name", "form"), [("s.csv", "csv"), ("s.jsonl", "jsonl"), ("s.ndjson", "jsonl")])
def test_out_takes_its_format_from_the_ending(icecore: Icecore, trained: Any, name: str, form: str) -> None:
    out = trained.folder / name
    out.write_text("an older file")
    done = icecore("predict", trained.bundle, trained.photos / "val", "--out", out, "--json")
    assert done.code == 0
    assert len(done.out.splitlines()) == 1
    assert (done.outcome["images"], done.outcome["failed"], done.outcome["out"]) == (6, 0, str(out))
    assert out.read_text().startswith("path,label," if form == "csv" else '{"path": ')
    asked = icecore("predict", trained.bundle, trained.photos / "val", "--format", form).out
    assert out.read_bytes() == asked


def test_an_unreadable_image_is_a_row_with_its_reason_and_the_others_keep_theirs(
    icecore: Icecore, trained: Any
) -> None:
    val = trained.photos / "val"
    good = {row["path"]: row for row in rows(icecore("predict", trained.bundle, val).text)}
    (val / "blue" / "00-text.png").write_bytes(b"hello")
    (val / "red" / "1b.png").write_bytes(b"")
    (val / "red" / "9.png").symlink_to("nowhere.png")
    done = icecore("predict", trained.bundle, val, trained.folder / "missing.png")
    assert done.code == 5
    assert done.told.startswith("10 images, 4 failed\n")
    found = {row["path"]: row for row in rows(done.text)}
    reasons = {path: row["error"] for path, row in found.items() if row["error"]}
    assert reasons == {
        str(val / "blue" / "00-text.png"): "not an image: first bytes b'hello' (decode)",
        str(val / "red" / "1b.png"): "empty file (decode)",
        str(val / "red" / "9.png"): "No such file or directory (read)",
        str(trained.folder / "missing.png"): "No such file or directory (read)",
    }
    assert all(found[path]["label"] == found[path]["p:red"] == "" for path in reasons)
    for path, row in good.items():
        assert found[path]["label"] == row["label"]
        assert float(found[path]["p:red"]) == pytest.approx(float(row["p:red"]), abs=1e-4)
    lines = icecore("predict", trained.bundle, val / "red" / "1b.png", "--format", "jsonl")
    assert lines.code == 5
    assert json.loads(lines.out) == {
        "path": str(val / "red" / "1b.png"),
        "error": "empty file (decode)",
        "bundle": trained.bundle.name,
    }


def test_any_file_name_survives_byte_for_byte(icecore: Icecore, trained: Any, noisy: Noisy) -> None:
    folder = trained.folder / "odd"
    folder.mkdir()
    names = [b'two\nlines, "quoted".png', b"return\r.png", b"caf\xe9.png", "東京 🐜.png".encode()]
    paths = []
    for number, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        try:
            noisy(number).save(path, "PNG")
        except OSError as exc:
            pytest.skip(f"this file system refuses the name {name!r}: {exc}")
        paths.append(path)
    done = icecore("predict", trained.bundle, *paths)
    assert done.code == 0
    assert os.fsencode(paths[2]) + b"," in done.out
    assert [row["path"] for row in rows(done.text)] == [str(path) for path in paths]
    lines = icecore("predict", trained.bundle, *paths, "--format", "jsonl").out.splitlines()
    assert [json.loads(line)["path"] for line in lines] == [str(path) for path in paths]


@pytest.mark.parametrize(
    "options",
    [("--weights", "missing.pth"), ("--device", "cuda:99"), ("--device", "gpu")],
    ids=["weights", "device", "no such device"],
)
def test_a_prediction_that_fails_leaves_the_old_file_and_nothing_else(
    icecore: Icecore, trained: Any, options: tuple[str, ...]
) -> None:
    out = trained.folder / "scores.csv"
    out.write_text("yesterday's")
    before = sorted(trained.folder.iterdir())
    done = icecore("predict", trained.bundle, trained.photos / "val", "--out", out, *options)
    assert done.code in (1, 4)
    assert done.out == b""
    assert out.read_text() == "yesterday's"
    assert sorted(trained.folder.iterdir()) == before
    assert icecore("predict", trained.bundle, trained.photos / "val", *options).out == b""


@pytest.mark.parametrize("option", ["--out", "--result-file"])
def test_a_file_to_write_in_a_missing_folder_is_refused_before_any_work(
    icecore: Icecore, trained: Any, option: str
) -> None:
    done = icecore("predict", trained.bundle, trained.photos / "val", option, trained.folder / "nosuch" / "file")
    assert (done.code, done.out) == (2, b"")
    assert f"there is no folder '{trained.folder / 'nosuch'}'; make it first" in done.told


def test_a_folder_without_images_is_told(icecore: Icecore, trained: Any) -> None:
    (trained.folder / "empty").mkdir()
    done = icecore("predict", trained.bundle, trained.folder / "empty")
    assert (done.code, done.out) == (1, b"")
    assert f"{trained.folder / 'empty'}: no images" in done.told


# --- weights ----------------------------------------------------------------------------------------------------


def test_other_weights_than_the_bundles_are_refused_with_a_diff_of_the_fields(
    icecore: Icecore, trained: Any, save_weights: Callable[..., None]
) -> None:
    other = trained.folder / "other.safetensors"
    save_weights(other, seed=1)
    out = trained.folder / "scores.csv"
    done = icecore("predict", trained.bundle, trained.photos / "val", "--weights", other, "--out", out, "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["retryable"]) == (3, "store invalid", False)
    card = json.loads((trained.bundle / "card.json").read_text())
    assert f"{other}: not the backbone asked for: the contracts differ\n  weights: '" in done.told
    assert f"'{card['contract']['weights']}' there" in done.told
    assert "give the weights that the features were extracted with" in done.told
    assert done.told.count(" here, ") == 1
    assert not out.exists()


def test_weights_that_moved_are_named_by_an_option(icecore: Icecore, trained: Any) -> None:
    """A project that was moved as a whole: the bundle remembers the old place of its weights."""
    (trained.store / "models").rename(trained.folder / "old-models")
    folder = trained.folder.rename(trained.folder.with_name("moved"))
    for name in ("extract", "train"):
        assert icecore(name, folder / "job.toml", "--set", "set=moved").code == 0
    (bundle,) = (folder / "features" / "models" / "default").iterdir()
    weights = (folder / "squeezenet.safetensors").rename(folder / "elsewhere.safetensors")
    done = icecore("predict", bundle, folder / "photos" / "val")
    assert (done.code, done.out) == (4, b"")
    assert f"{folder / 'squeezenet.safetensors'}: no such weights file\n" in done.told
    assert "if they moved, name the place with --weights" in done.told
    assert icecore("predict", bundle, folder / "photos" / "val", "--weights", weights).code == 0


def test_the_format_of_the_weights_file_does_not_matter_only_its_tensors(icecore: Icecore, trained: Any) -> None:
    import torch
    from safetensors.torch import load_file

    pth = trained.folder / "same.pth"
    torch.save({"state_dict": load_file(trained.weights)}, pth)
    plain = icecore("predict", trained.bundle, trained.photos / "val")
    again = icecore("predict", trained.bundle, trained.photos / "val", "--weights", pth)
    assert (again.code, again.out) == (0, plain.out)


# --- bundles ----------------------------------------------------------------------------------------------------


def test_a_bundle_copied_elsewhere_works_and_its_old_place_is_told(icecore: Icecore, trained: Any) -> None:
    old = trained.bundle
    plain = icecore("predict", old, trained.photos / "val")
    shutil.move(old, trained.folder / "my-model")
    moved = icecore("predict", trained.folder / "my-model", trained.photos / "val")
    assert (moved.code, moved.out) == (0, plain.out)
    gone = icecore("predict", old, trained.photos / "val")
    assert (gone.code, gone.out) == (1, b"")
    assert f"{old}: no bundle here (card.json: No such file or directory)" in gone.told


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_card(bundle: Path) -> None:
    card = (bundle / "card.json").read_text()
    assert '"red"' in card
    (bundle / "card.json").write_text(card.replace('"red"', '"rod"'))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda bundle: flip(bundle / "model.skops"), "model.skops: altered since it was written"),
        (lambda bundle: flip(bundle / "steps.skops"), "steps.skops: altered since it was written"),
        (edit_card, "card.json: altered since it was written (its checksum does not fit)"),
        (lambda bundle: (bundle / "model.skops").unlink(), "'model.skops' is missing; copy the whole folder again"),
        (lambda bundle: (bundle / "card.json").write_text("{}"), "card.json: not the card of an icecore bundle"),
        (lambda bundle: (bundle / "card.json").write_text("{"), "card.json: not JSON"),
    ],
    ids=["model", "steps", "card", "missing file", "other json", "no json"],
)
def test_a_bundle_that_was_touched_is_refused(
    icecore: Icecore, trained: Any, tamper: Callable[[Path], object], message: str
) -> None:
    tamper(trained.bundle)
    done = icecore("predict", trained.bundle, trained.photos / "val")
    assert (done.code, done.out) == (1, b"")
    assert message in done.told


def test_a_reader_that_leaves_early_is_no_traceback(
    icecore: Icecore, trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``icecore predict ... | head -1``: a pipe whose other end is closed."""
    there, ours = os.pipe()
    os.close(there)
    with os.fdopen(ours, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        done = icecore("predict", trained.bundle, trained.photos / "val")
    assert done.code == 1
    assert done.told == "icecore predict: the reader of the output closed it\n"
