"""``icecore predict --out``: only what is new is scored, whatever stops it, and the file is what scoring all gives."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.cli import predicting, score_book
from icecore.store import FeatureStore, promote
from icecore.store.lock import writer_lock

Icecore = Callable[..., Any]


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8", "surrogateescape"), newline="")))


def age(folder: Path) -> None:
    """Make files older than what the file system's clock may hide: but for ctime, which nobody can set."""
    time.sleep(0.01)
    for path in folder.rglob("*.png"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.fixture
def settled(trained: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A trained project whose images are taken for old ones."""
    age(trained.photos)
    monkeypatch.setattr(score_book, "RACY_NS", 0)
    return trained


@pytest.fixture
def scores(settled: Any, icecore: Icecore) -> Callable[..., Any]:
    """Predict the validation photos into ``scores.csv``; features that the store has need no network."""

    def run(*options: object, images: object = None) -> Any:
        images = settled.photos / "val" if images is None else images
        out = settled.folder / "scores.csv"
        words = ("--images", images, "--out", out, "--store", settled.store, "--json")
        return icecore("predict", settled.bundle, *words, *options)

    return run


def counts(done: Any) -> dict[str, int]:
    return {
        name: done.outcome[name]
        for name in ("images", "extracted", "stored", "recalled", "unchanged", "removed", "failed")
        if done.outcome[name]
    }


def test_a_second_run_reads_nothing_and_leaves_the_file_alone(scores: Any, settled: Any) -> None:
    first = scores()
    assert counts(first) == {"images": 6, "stored": 6}
    out = settled.folder / "scores.csv"
    before, stat = out.read_bytes(), out.stat()
    done = scores()
    assert counts(done) == {"images": 6, "unchanged": 6}
    assert done.outcome["written"] is False
    assert (out.read_bytes(), out.stat()) == (before, stat)


def test_new_changed_touched_and_moved_images_end_as_if_all_had_been_scored(
    scores: Any, settled: Any, icecore: Icecore, noisy: Any
) -> None:
    val = settled.photos / "val"
    scores()
    noisy(900, (220, 30, 30)).save(val / "red" / "new.png")
    noisy(901, (30, 30, 220)).save(val / "red" / "0.png")
    os.utime(val / "red" / "1.png")
    (val / "blue" / "2.png").rename(val / "blue" / "9.png")
    done = scores()
    assert counts(done) == {"images": 7, "extracted": 2, "recalled": 2, "unchanged": 3, "removed": 1}
    again = settled.folder / "again.csv"
    assert icecore("predict", settled.bundle, val, "--out", again).code == 0
    assert (settled.folder / "scores.csv").read_bytes() == again.read_bytes()
    assert next(r["label"] for r in rows(again) if r["path"].endswith("red/0.png")) == "blue"


def test_an_edited_or_deleted_file_is_written_again_without_scoring(scores: Any, settled: Any) -> None:
    scores()
    out = settled.folder / "scores.csv"
    before = out.read_bytes()
    out.write_text("opened in a spreadsheet, and saved")
    assert (counts(scores()), out.read_bytes()) == ({"images": 6, "unchanged": 6}, before)
    out.unlink()
    assert (counts(scores()), out.read_bytes()) == ({"images": 6, "unchanged": 6}, before)
    assert scores("--top", "2").outcome["written"] is True
    assert "label_2" in rows(out)[0]


def test_all_scores_all_again(scores: Any) -> None:
    scores()
    done = scores("--all")
    assert (counts(done), done.outcome["anew"]) == ({"images": 6, "stored": 6}, "as asked")


def test_images_that_are_no_longer_named_leave_unless_they_are_kept(scores: Any, settled: Any) -> None:
    scores()
    red = settled.photos / "val" / "red"
    kept = scores("--keep", images=red)
    assert counts(kept) == {"images": 6, "unchanged": 3}
    table = rows(settled.folder / "scores.csv")
    assert [Path(row["path"]).parent.name for row in table] == ["red"] * 3 + ["blue"] * 3
    gone = scores(images=red)
    assert counts(gone) == {"images": 3, "unchanged": 3, "removed": 3}
    assert len(rows(settled.folder / "scores.csv")) == 3


def test_times_that_prove_nothing_are_not_trusted(trained: Any, icecore: Icecore, noisy: Any) -> None:
    """Files as fresh as these may have changed within a tick of the clock: they are read, and known by content."""
    out, val = trained.folder / "scores.csv", trained.photos / "val"
    changed = val / "red" / "0.png"
    os.utime(changed)
    words = ("predict", trained.bundle, val, "--out", out, "--store", trained.store, "--json")
    assert counts(icecore(*words)) == {"images": 6, "stored": 6}
    done = counts(icecore(*words))
    assert done["recalled"] + done.get("unchanged", 0) == 6
    assert done["recalled"] >= 1


def test_a_failure_of_the_disk_is_tried_again_and_one_of_the_image_is_not(scores: Any, settled: Any) -> None:
    val = settled.photos / "val"
    (val / "red" / "text.png").write_bytes(b"hello")
    (val / "red" / "link.png").symlink_to("nowhere.png")
    first = scores()
    assert (first.code, counts(first)) == (5, {"images": 8, "stored": 6, "failed": 2})
    (val / "red" / "nowhere.png").write_bytes((val / "red" / "0.png").read_bytes())
    second = scores()
    assert (second.code, counts(second)) == (5, {"images": 9, "recalled": 2, "unchanged": 7, "failed": 1})
    assert {row["error"] for row in rows(settled.folder / "scores.csv")} == {
        "",
        "not an image: first bytes b'hello' (decode)",
    }
    (val / "red" / "text.png").unlink()
    assert scores().code == 0


KILLED = """
import os, signal, sys
from icecore.cli import predicting, score_book
score_book.SECONDS, score_book.RACY_NS = 0.0, 0
add, seen = score_book.ScoreBook.add, []
def killed(self, scored):
    seen.append(scored)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, scored)
score_book.ScoreBook.add = killed
from icecore.cli import main
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_and_the_old_file_stays_until_the_new_one_is_whole(
    scores: Any, settled: Any, icecore: Icecore
) -> None:
    out = settled.folder / "scores.csv"
    out.write_text("yesterday's")
    words = [str(w) for w in ("predict", settled.bundle, settled.photos / "val", "--out", out, "--threads", 1)]
    words += ["--store", str(settled.store)]
    died = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, text=True, check=False)
    assert died.returncode == -9, died.stderr
    assert out.read_text() == "yesterday's"
    done = scores()
    assert counts(done) == {"images": 6, "stored": 2, "unchanged": 4}
    whole = settled.folder / "whole.csv"
    icecore("predict", settled.bundle, settled.photos / "val", "--out", whole, "--store", settled.store)
    assert out.read_bytes() == whole.read_bytes()


def test_a_run_killed_before_its_file_is_written_leaves_no_stale_scores_in_it(
    scores: Any, settled: Any, icecore: Icecore, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores()
    out = settled.folder / "scores.csv"
    first, *_, last = sorted((settled.photos / "val").rglob("*.png"))
    first.write_bytes(last.read_bytes())  # now of the other class
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(predicting, "write_table", killed)
        assert scores().code == 130
    before = out.read_bytes()
    done = scores()
    assert (counts(done), done.outcome["written"]) == ({"images": 6, "unchanged": 6}, True)
    assert out.read_bytes() != before
    whole = settled.folder / "whole.csv"
    icecore("predict", settled.bundle, settled.photos / "val", "--out", whole, "--store", settled.store)
    assert out.read_bytes() == whole.read_bytes()


def test_an_interrupted_run_keeps_what_it_scored(scores: Any, settled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        add, seen = score_book.ScoreBook.add, []

        def stopped(book: Any, scored: Any) -> None:
            add(book, scored)
            seen.append(scored)
            if len(seen) == 4:
                raise KeyboardInterrupt

        patch.setattr(score_book.ScoreBook, "add", stopped)
        assert scores().code == 130
    assert not (settled.folder / "scores.csv").exists()
    assert counts(scores()) == {"images": 6, "stored": 2, "unchanged": 4}


def test_two_runs_on_one_file_are_refused_and_name_the_holder(scores: Any, settled: Any) -> None:
    scores()
    with writer_lock(settled.folder / "scores.csv.state", command="icecore predict of yesterday"):
        done = scores()
    assert (done.code, done.outcome["retryable"]) == (7, True)
    assert f"pid {os.getpid()}" in done.told
    assert "icecore predict of yesterday" in done.told


def test_a_damaged_record_is_told_and_all_cures_it(scores: Any, settled: Any) -> None:
    scores()
    record = settled.folder / "scores.csv.state" / "rows.sqlite"
    record.write_bytes(b"not a database" * 1000)
    done = scores()
    assert done.code == 1
    assert "scores.csv.state: the record of what was scored is damaged" in done.told
    assert "--all" in done.told
    assert counts(scores("--all")) == {"images": 6, "stored": 6}


def test_a_record_of_a_later_release_is_refused(scores: Any, settled: Any) -> None:
    import sqlite3

    scores()
    with sqlite3.connect(settled.folder / "scores.csv.state" / "rows.sqlite") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    done = scores()
    assert (done.code, "of format 99, and this release knows 1" in done.told) == (1, True)


# --- which images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "end"), [((), b"\n"), (("-0",), b"\0")])
def test_paths_on_stdin(
    settled: Any, icecore: Icecore, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], end: bytes
) -> None:
    paths = sorted((settled.photos / "val").rglob("*.png"), reverse=True)
    listed = io.BytesIO(end.join(os.fsencode(path) for path in paths) + end)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
    done = icecore("predict", settled.bundle, "--images", "-", *options, "--store", settled.store)
    assert done.code == 0
    assert [row["path"] for row in csv.DictReader(io.StringIO(done.text))] == [str(path) for path in paths]


def test_stdin_that_names_nothing_is_told(settled: Any, icecore: Icecore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    done = icecore("predict", settled.bundle, "--images", "-")
    assert (done.code, "stdin: names no images" in done.told) == (1, True)


def test_a_manifest_names_its_images(settled: Any, icecore: Icecore) -> None:
    manifest = settled.folder / "images.csv"
    manifest.write_text("id,path\nB,photos/val/red/0.png\nA,photos/val/blue/0.png\n")
    out = settled.folder / "scores.csv"
    assert icecore("predict", settled.bundle, "--images", manifest, "--out", out, "--store", settled.store).code == 0
    assert [(row["id"], row["label"], Path(row["path"]).parent.name) for row in rows(out)] == [
        ("A", "blue", "blue"),
        ("B", "red", "red"),
    ]


def test_no_images_is_a_fault_of_the_command_line(settled: Any, icecore: Icecore) -> None:
    assert icecore("predict", settled.bundle).code == 2
    done = icecore("predict", settled.bundle, settled.photos, "--all")
    assert (done.code, "--all: it speaks of the rows of a file" in done.told) == (2, True)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_ranks_abstentions_and_fewer_columns(settled: Any, icecore: Icecore) -> None:
    out = settled.folder / "scores.csv"
    words = ("predict", settled.bundle, settled.photos / "val", "--store", settled.store)
    options = ("--top", 5, "--threshold", 0.999, "--no-probabilities")
    done = icecore(*words, "--out", out, *options, "--json")
    table = rows(out)
    assert list(table[0]) == [
        "path", "label", "probability", "label_1", "probability_1", "label_2", "probability_2", "abstained", "error",
        "bundle",
    ]  # fmt: skip
    plain = json.loads(
        icecore("predict", settled.bundle, settled.photos / "val", "--format", "jsonl").out.splitlines()[0]
    )
    first = table[0]
    chances = plain["probabilities"]
    ranked = sorted(chances, key=chances.__getitem__, reverse=True)
    assert [first["label_1"], first["label_2"]] == ranked
    assert float(first["probability_2"]) == pytest.approx(chances[ranked[1]], rel=1e-5)
    unsure = [row for row in table if float(row["probability"]) < 0.999]
    assert [row["abstained"] for row in table] == ["true" if row in unsure else "false" for row in table]
    assert all(row["label"] == "" for row in unsure)
    assert done.outcome["abstained"] == len(unsure) > 0


def test_parquet_holds_the_bits_and_its_types(settled: Any, icecore: Icecore) -> None:
    import pyarrow.parquet as pq

    (settled.photos / "val" / "red" / "text.png").write_bytes(b"hello")
    out, lines = settled.folder / "scores.parquet", settled.folder / "scores.jsonl"
    for file in (out, lines):
        words = ("predict", settled.bundle, settled.photos / "val", "--store", settled.store, "--out", file)
        assert icecore(*words, "--threshold", 0.5).code == 5
    table = pq.read_table(out)
    assert {field.name: str(field.type) for field in table.schema} == {
        "path": "string", "label": "string", "probability": "double", "p:blue": "double", "p:red": "double",
        "abstained": "bool", "error": "string", "bundle": "string",
    }  # fmt: skip
    told = [json.loads(line) for line in lines.read_text().splitlines()]
    for row, line in zip(table.to_pylist(), told, strict=True):
        assert (row["path"], row["bundle"]) == (line["path"], line["bundle"])
        assert row["error"] == line.get("error")
        assert row["p:red"] == line.get("probabilities", {}).get("red")  # the same bits


def test_parquet_takes_any_file_name(settled: Any, icecore: Icecore) -> None:
    import pyarrow.parquet as pq

    path = Path(os.fsdecode(os.fsencode(settled.folder) + b"/caf\xe9.png"))
    try:
        path.write_bytes((settled.photos / "val" / "red" / "0.png").read_bytes())
    except OSError as exc:
        pytest.skip(f"this file system refuses the name: {exc}")
    out = settled.folder / "scores.parquet"
    assert icecore("predict", settled.bundle, path, "--out", out, "--store", settled.store).code == 0
    assert pq.read_table(out)["path"].to_pylist() == [os.fsencode(path)]


# --- champion, and stored features ------------------------------------------------------------------------------------


def test_the_champion_is_named_by_store_or_config_and_another_one_scores_all_anew(
    settled: Any, icecore: Icecore
) -> None:
    out, val = settled.folder / "scores.csv", settled.photos / "val"
    words = ("predict", "champion", "--images", val, "--out", out, "--json")
    assert icecore(*words).code == 2
    none = icecore(*words, "--store", settled.store)
    assert (none.code, "no bundle of 'default' was promoted" in none.told) == (1, True)
    first = settled.bundle
    promote(settled.store, "default", first.name, why="the first")
    assert icecore(*words, "--config", settled.config).outcome["bundle"].endswith(first.name)
    assert icecore("train", settled.config, "--set", "train.seed=7").code == 0
    (second,) = (path for path in first.parent.iterdir() if path != first and path.is_dir())
    promote(settled.store, "default", second.name, why="better")
    done = icecore(*words, "--store", settled.store)
    assert done.outcome["anew"] == f"the bundle is {second.name}, and was {first.name}"
    assert {row["bundle"] for row in rows(out)} == {second.name}
    by_name = icecore("predict", f"default/{first.name}", val, "--store", settled.store)
    assert (by_name.code, {row["bundle"] for row in csv.DictReader(io.StringIO(by_name.text))}) == (0, {first.name})


WITHOUT_TORCH = """
import sys
from icecore.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules, "torch was loaded"
"""


@pytest.mark.parametrize("copied", [False, True], ids=["same files", "copies elsewhere"])
def test_stored_features_give_the_same_bits_as_files_and_need_no_torch(
    trained: Any, icecore: Icecore, copied: bool
) -> None:
    images = trained.photos / "val"
    if copied:
        images = images.rename(trained.folder / "elsewhere")
    files, stored = trained.folder / "files.jsonl", trained.folder / "stored.jsonl"
    done = icecore(
        "predict", trained.bundle, images, "--out", files, "--store", trained.store, "--no-reuse", "--json",
        "--batch-size", 5,
    )  # fmt: skip
    assert (done.outcome["extracted"], done.outcome["stored"]) == (6, 0)
    words = [str(w) for w in ("predict", trained.bundle, images, "--out", stored, "--store", trained.store, "--json")]
    found = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    outcome = json.loads(found.stdout.splitlines()[-1])
    assert (outcome["extracted"], outcome["stored"]) == (0, 6)
    assert files.read_bytes() == stored.read_bytes()


def test_an_image_that_the_store_lacks_is_extracted_beside_those_it_has(
    trained: Any, icecore: Icecore, noisy: Any
) -> None:
    val = trained.photos / "val"
    noisy(77).save(val / "blue" / "1-new.png")
    mixed = icecore("predict", trained.bundle, val, "--store", trained.store, "--format", "jsonl")
    assert (mixed.code, "1 extracted, 6 by features of the store" in mixed.told) == (0, True)
    assert mixed.out == icecore("predict", trained.bundle, val, "--format", "jsonl").out


def test_features_of_another_contract_are_not_reused(trained: Any, icecore: Icecore) -> None:
    other = ("--set", "preprocess.resize=70", "--set", "set=other")
    store = trained.folder / "other-store"
    assert icecore("extract", trained.config, *other, "--set", f'store="{store}"').code == 0
    done = icecore("predict", trained.bundle, trained.photos / "val", "--store", store)
    assert (done.code, "6 extracted" in done.told) == (0, True)


def test_a_row_scores_the_same_bits_alone_and_among_others(trained: Any) -> None:
    from icecore.train import load_bundle

    bundle = load_bundle(trained.bundle)
    with FeatureStore.open(trained.store) as store:
        X = store["photos"].matrix("features.3").X
    rng = np.random.default_rng(0)
    many = np.vstack([X, rng.normal(size=(150, X.shape[1])).astype(np.float32)])
    whole = bundle.outputs(many)
    order = rng.permutation(len(many))
    np.testing.assert_array_equal(bundle.outputs(many[order]), whole[order])
    np.testing.assert_array_equal(np.vstack([bundle.outputs(row[None]) for row in many[:20]]), whole[:20])
