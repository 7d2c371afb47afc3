"""``icecore store status | errors | du | export``: how a store stands, for people and schedulers; and its way out."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet
import pytest
from icecore.store import FeatureStore

Icecore = Callable[..., Any]


def walked(folder: Path) -> int:
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(folder) for name in names)


@pytest.fixture
def broken(icecore: Icecore, trained: Any) -> Any:
    """Two images that are none: one of them of a name that is no UTF-8 and has a line end and a comma."""
    os.write(fd := os.open(bytes(trained.photos) + b"/val/red/a,\xff\n.png", os.O_CREAT | os.O_WRONLY), b"text")
    os.close(fd)
    (trained.photos / "val" / "red" / "empty.png").write_bytes(b"")
    assert icecore("extract", trained.config).code == 5
    return trained


def test_status_of_a_store_tells_how_each_set_stands(icecore: Icecore, broken: Any) -> None:
    done = icecore("store", "status", broken.store)
    assert (done.code, done.told) == (0, "")
    facts = icecore("store", "status", broken.store, "--json").outcome
    assert f"{broken.store}: digest {facts['digest'][:16]}, catalog format 2\n" in done.text
    assert "photos: failed 2 decode; `icecore store errors` lists them" in done.text
    (photos,) = facts["sets"]
    assert (photos["set"], photos["images"], photos["failed"], photos["version"]) == ("photos", 18, {"decode": 2}, 2)
    assert photos["columns"] == {"features.3:avg": 18}
    assert (facts["locked"], facts["writer"], facts["leftovers"], photos["pending"]) == (False, None, 0, None)


def test_status_tells_a_scheduler_whether_anything_has_changed(icecore: Icecore, trained: Any) -> None:
    def digest() -> str:
        return str(icecore("store", "status", trained.store, "photos", "--json").outcome["digest"])

    first = digest()
    assert icecore("extract", trained.config).code == 0
    assert digest() == first
    next(trained.photos.rglob("*.png")).unlink()
    assert icecore("extract", trained.config).code == 0
    assert digest() != first


def test_status_tells_who_writes(icecore: Icecore, trained: Any) -> None:
    with FeatureStore.open(trained.store) as store:
        photos = store["photos"]
        with store.writer("photos", photos.contract, photos.columns, command="nightly"):
            done = icecore("store", "status", trained.store)
            facts = icecore("store", "status", trained.store, "--json").outcome
    assert f"being written by pid {os.getpid()} on " in done.text
    assert (facts["locked"], facts["writer"]["command"]) == (True, "nightly")


def test_errors_lists_failures_by_kind_and_as_csv(icecore: Icecore, broken: Any, tmp_path: Path) -> None:
    done = icecore("store", "errors", broken.store, "photos", "--csv", tmp_path / "errors.csv")
    assert (done.code, done.told) == (0, "")
    assert done.out.startswith(b"2 images failed: 2 decode\n\nset     image")
    assert rb"val/red/a,\xff\n.png" not in done.out, "bytes of names are given as they are"
    assert b"val/red/a,\xff\\n.png  decode" in done.out
    with (tmp_path / "errors.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["id"], row["kind"]) for row in rows] == [
        ("photos", "val/red/a,\udcff\n.png", "decode"),
        ("photos", "val/red/empty.png", "decode"),
    ]
    facts = icecore("store", "errors", broken.store, "--json").outcome
    assert (facts["counts"], [row["id"] for row in facts["failures"]]) == ({"decode": 2}, [row["id"] for row in rows])
    assert {"reason", "attempts", "first_at", "last_at"} <= facts["failures"][0].keys()


def test_errors_of_one_kind_are_listed_alone(icecore: Icecore, broken: Any) -> None:
    done = icecore("store", "errors", broken.store, "--kind", "read")
    assert (done.code, done.text) == (0, f"{broken.store}: no failures\n")
    done = icecore("store", "errors", broken.store, "--kind", "decoding")
    assert done.code == 2
    assert "'decode'" in done.told


def test_du_adds_up_to_what_is_on_disk(icecore: Icecore, trained: Any) -> None:
    facts = icecore("store", "du", trained.store, "--json").outcome
    assert facts["total"] == walked(trained.store)
    (photos,) = facts["generations"]
    assert (photos["set"], photos["state"], photos["segments"], photos["old"]) == ("photos", "read", 1, 0)
    assert photos["columns"] == {"features.3:avg": 18 * 128 * 2}
    assert facts["models"] > 1000
    assert facts["gc_frees"] == 0
    done = icecore("store", "du", trained.store)
    assert (done.code, done.told) == (0, "")
    assert [line.split()[0] for line in done.text.splitlines()[2:]] == [
        "photos", "features.3:avg", "(ids,", "catalog", "canaries", "models", "runs", "total",
    ]  # fmt: skip


def test_du_tells_what_gc_frees_or_why_it_refuses(icecore: Icecore, trained: Any) -> None:
    (card,) = trained.store.glob("models/*/*/card.json")
    next(trained.photos.rglob("*.png")).unlink()
    assert icecore("extract", trained.config).code == 0
    assert icecore("store", "du", trained.store, "--json").outcome["gc_frees"] == 0, (
        "the bundle keeps the first version"
    )
    told = card.read_bytes()
    card.write_bytes(b"{")
    done = icecore("store", "du", trained.store)
    assert (done.code, "card.json" in done.text) == (0, True)
    assert icecore("store", "du", trained.store, "--json").outcome["gc_frees"] is None
    card.write_bytes(told)
    shutil.rmtree(trained.store / "models")
    du = icecore("store", "du", trained.store, "--json").outcome
    gc = icecore("store", "gc", trained.store, "--dry-run", "--json").outcome
    assert du["gc_frees"] == sum(one["bytes"] for one in gc["sets"]) > 0


@pytest.mark.parametrize("command", ["status", "errors"])
def test_a_set_that_is_not_there_is_a_wrong_argument(icecore: Icecore, trained: Any, command: str) -> None:
    done = icecore("store", command, trained.store, "phtos")
    assert done.code == 2
    assert "no feature set 'phtos'; it has photos; did you mean 'photos'?" in done.told


@pytest.mark.parametrize("command", ["status", "errors", "du"])
def test_a_folder_without_a_store_ends_with_3(icecore: Icecore, tmp_path: Path, command: str) -> None:
    done = icecore("store", command, tmp_path)
    assert (done.code, done.out) == (3, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.npy", "out.parquet", "out.h5", "out.vds"])
def test_export_writes_a_file_for_other_tools(icecore: Icecore, trained: Any, name: str) -> None:
    out = trained.folder / name
    done = icecore("store", "export", trained.store, "photos", "--layer", "features.3", "--to", out)
    assert (done.code, done.told) == (0, "")
    assert done.text.startswith(f"{out}: 18 rows of features.3:avg, version 1, ")
    with FeatureStore.open(trained.store) as store:
        ids, X = store["photos"].matrix("features.3")
    if name == "out.npy":
        np.testing.assert_array_equal(np.load(out), X)
        assert json.loads((trained.folder / "out.ids.json").read_bytes())["ids"] == ids
    elif name == "out.parquet":
        table = pyarrow.parquet.read_table(out)
        assert table["id"].to_pylist() == ids
        np.testing.assert_array_equal(table["features.3:avg"].to_pylist(), X)
    else:
        with h5py.File(out) as file:
            np.testing.assert_array_equal(file["columns/features.3:avg"], X)
            assert file["ids"].asstr()[()].tolist() == ids


def test_export_takes_version_dtype_and_format(icecore: Icecore, trained: Any) -> None:
    assert icecore("store", "tag", trained.store, "photos", "first").code == 0
    next(trained.photos.rglob("*.png")).unlink()
    assert icecore("extract", trained.config).code == 0
    out = trained.folder / "out.h5"
    words = ("--version", "first", "--dtype", "float32", "--format", "hdf5", "--json")
    facts = icecore("store", "export", trained.store, "photos", "--to", out, *words).outcome
    assert (facts["rows"], facts["version"], facts["format"], facts["files"]) == (18, 1, "hdf5", [str(out)])
    assert facts["columns"] == [{"name": "features.3:avg", "width": 128}]
    assert facts["bytes"] == out.stat().st_size
    with h5py.File(out) as file:
        assert file["columns/features.3:avg"].dtype == np.float32


def test_export_replaces_a_file_only_by_force(icecore: Icecore, trained: Any) -> None:
    (trained.folder / "out.npy").write_text("mine")
    words = ("store", "export", trained.store, "photos", "--to", trained.folder / "out.npy")
    done = icecore(*words)
    assert (done.code, done.out) == (1, b"")
    assert "out.npy: exists already" in done.told
    assert (trained.folder / "out.npy").read_text() == "mine"
    assert icecore(*words, "--force").code == 0
    assert np.load(trained.folder / "out.npy").shape == (18, 128)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("phtos", "--to", "out.npy"), "did you mean 'photos'"),
        (("photos", "--layer", "features.4", "--to", "out.npy"), "did you mean 'features.3:avg'"),
        (("photos", "--version", "9", "--to", "out.npy"), "no version 9"),
        (("photos", "--version", "best", "--to", "out.npy"), "no tag 'best'"),
        (("photos", "--to", "nowhere/out.npy"), "there is no folder"),
        (("photos", "--to", "out.npy", "--format", "csv"), "'csv' is not one of"),
        (("photos",), "Missing option '--to'"),
    ],
)
def test_a_wrong_word_for_export_ends_with_2(
    icecore: Icecore, trained: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(trained.folder)
    done = icecore("store", "export", trained.store, *words)
    assert (done.code, done.out) == (2, b"")
    assert message in done.told


def test_a_format_that_cannot_be_told_ends_with_1(icecore: Icecore, trained: Any) -> None:
    done = icecore("store", "export", trained.store, "photos", "--to", trained.folder / "out.csv")
    assert (done.code, done.out) == (1, b"")
    assert "out.csv: what format? name one (npy, parquet, hdf5, vds)" in done.told
